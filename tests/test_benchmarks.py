import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import benchmarks.__main__
from benchmarks import (
    attention,
    backends,
    compare,
    cost,
    extrapolation,
    headroom,
    memory,
    mixtures,
    parallel,
    plots,
    profile,
    report,
    stopping,
    study,
    suite,
    training,
)
from infgen_export.checkpoint import load_checkpoint, save_checkpoint
from infgen_export.model import PRESETS, InfGen, edge

from .export import tiny
from .training.test_evaluate import TEACHER


def test_cost_of_the_edge_preset_is_within_the_project_s_budget(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, InfGen(edge()))
    result = CliRunner().invoke(cost.main, [str(tmp_path)])
    assert result.exit_code == 0, result.output
    figures = {line.split(":")[0]: float(line.split(": ")[1].split()[0]) for line in result.output.splitlines()[4:]}
    assert figures["context"] <= 8
    assert max(value for name, value in figures.items() if name.startswith("decode")) <= 50
    assert figures["encode"] <= 235 / 2  # half of what the teacher's encoder costs


def test_multiply_adds_of_a_known_layer() -> None:
    layer = torch.nn.Conv2d(3, 5, 3, padding=1)
    assert cost.multiply_adds(lambda: layer(torch.zeros(1, 3, 10, 20))) == 3 * 5 * 9 * 200


QUALITY = {
    "2": {
        "infgen": {"psnr": 31.0, "ssimulacra2": 33.0, "flat": 1.5, "vivid": None},
        "teacher + lanczos": {"psnr": 30.0, "ssimulacra2": 32.0, "flat": 1.7, "vivid": None},
    }
}


@pytest.fixture
def results() -> suite.Results:
    """As a run on a machine of nobody's would have found."""
    runs = {
        str(job): {
            method.label: [{"seconds": factor * job.size[0] / 1e3, "peak": 2e8} for factor in (1.0, 1.1, 1.2)]
            for method in suite.METHODS
            if suite.FULL.includes(method, job)
        }
        for job in suite.FULL.jobs
    }
    viewport = {"infgen-rt, ONNX Runtime": [{"seconds": 1.0, "again": 0.1, "moved": 0.5, "peak": 2e8}]}
    peaks = {"onnxruntime exact": 1e11, "openvino exact": 1e11, "openvino fast": 2e11}
    costs = {"context": 8e6, "decode": 3e4, "taef2": 2e7, "vae": 3e8, "esrgan": 2e7}
    machine = {"processor": "abacus", "threads": 2, "system": "none", "versions": {"numpy": "2"}}
    starts = {"infgen-rt, ONNX Runtime": [{"first": 0.5, "finished": 0.75, "peak": 2e8}]}
    return suite.Results(machine, costs, peaks, runs, viewport, starts, {"numpy": 10**7}, QUALITY)


def test_results_become_a_table_and_plots(results: suite.Results, tmp_path: Path) -> None:
    text = report.markdown(results)
    row = next(line for line in text.splitlines() if line.startswith("| infgen-rt, ONNX Runtime |"))
    # 1024x1024 from 64x64 cells: 3.4e10 + 3.3e7 x 1e3 multiply-adds in 1.1 x 1.024 seconds.
    assert row.startswith("| infgen-rt, ONNX Runtime | 1.13 | 1.02 - 1.23 | 1.074 | 1.00x | 191 | 57% | 31.00 | 33.0 |")
    assert "TAEF2 + Lanczos" in text and "Real-ESRGAN" in text and "abacus, 2 threads" in text
    assert "| infgen-rt, ONNX Runtime | 0.50 | 0.75 | 191 |" in text
    files = plots.draw(results, tmp_path)
    assert [file.name for file in files] == ["time.png", "memory.png", "quality.png"]
    assert all(min(Image.open(file).size) > 300 for file in files)


def test_what_does_not_fit_whole_is_decoded_in_tiles_and_no_other_picture() -> None:
    def sizes(tiling: bool) -> set[tuple[int, int]]:
        heavy = [method for method in suite.METHODS if method.native and method.heavy and method.tiling == tiling]
        return {job.size for job in suite.FULL.jobs for method in heavy if suite.FULL.includes(method, job)}

    assert sizes(tiling=False) == {(1024, 1024), (1920, 1080)} and sizes(tiling=True) == {(3840, 2160)}
    assert not any(method.full for method in suite.QUICK.methods) and set(suite.FULL.methods) == set(suite.METHODS)


def test_a_slower_run_is_told_from_noise(results: suite.Results, tmp_path: Path) -> None:
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    results.save(old)
    results.save(new)
    assert CliRunner().invoke(compare.main, [str(old), str(new)]).exit_code == 0
    job, method = str(suite.FULL.jobs[0]), suite.METHODS[0].label
    for factor, told, code in ((1.15, "nothing changed", 0), (1.5, "WORSE", 1), (0.5, "better", 0)):
        data = json.loads(old.read_text())
        data["runs"][job][method] = [
            {**entry, "seconds": factor * entry["seconds"]} for entry in data["runs"][job][method]
        ]
        new.write_text(json.dumps(data))
        result = CliRunner().invoke(compare.main, [str(old), str(new)])
        assert result.exit_code == code and told in result.output
    data = json.loads(old.read_text())
    data["quality"]["2"]["infgen"]["psnr"] -= 0.1
    data["quality"]["2"]["infgen"]["flat"] -= 0.2
    data["starts"][method][0]["first"] *= 2
    new.write_text(json.dumps(data))
    told = CliRunner().invoke(compare.main, [str(old), str(new)]).output.splitlines()
    assert [line.split(": ")[0] for line in told] == [
        f"WORSE  {method}, start",
        "WORSE  infgen, scale 2",
        "better infgen, scale 2",
    ]
    data["machine"]["processor"] = "other"
    new.write_text(json.dumps(data))
    assert "different processors" in CliRunner().invoke(compare.main, [str(old), str(new)]).output


@pytest.mark.slow
def test_a_quick_run_measures_every_method(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    job, view = suite.Job((8, 8), (256, 256)), suite.Job((8, 8), (512, 512))
    extent = suite.Extent((), (job,), view, suite.Job((8, 8), (64, 64)), 10**6, repeat=1)
    monkeypatch.setattr(suite, "QUICK", extent)
    result = CliRunner().invoke(benchmarks.__main__.main, ["--quick", "-o", str(tmp_path)])
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "results.json").read_text())
    assert set(found["runs"][str(job)]) == {method.label for method in suite.METHODS if extent.includes(method, job)}
    assert all(entry["seconds"] > 0 for runs in found["runs"][str(job)].values() for entry in runs)
    assert set(found["starts"]) == {method.label for method in suite.METHODS if extent.starts(method)}
    assert all(0.1 < entry["first"] <= entry["finished"] for runs in found["starts"].values() for entry in runs)
    # What the literature says of them: 4.7 M and 271 thousand multiply-adds a pixel, 16.7 M parameters' worth a pixel.
    assert found["costs"]["vae"] / 64 == pytest.approx(4.73e6, rel=0.05)
    assert found["costs"]["taef2"] / 64 == pytest.approx(271e3, rel=0.01)
    assert found["costs"]["esrgan"] == pytest.approx(17.9e6, rel=0.05)
    written = {"results.json", "results.md", "time.png", "memory.png"}
    assert {file.name for file in tmp_path.iterdir()} == written
    # Drawn again, with the quality that an evaluation found.
    report_file = tmp_path / "report.json"
    report_file.write_text(json.dumps({"scales": {"4": QUALITY["2"]}}))
    again = ["--again", str(tmp_path / "results.json"), "--quality", str(report_file), "-o", str(tmp_path / "again")]
    result = CliRunner().invoke(benchmarks.__main__.main, again)
    assert result.exit_code == 0, result.output
    assert {file.name for file in (tmp_path / "again").iterdir()} == {*written, "quality.png"}
    result = CliRunner().invoke(benchmarks.__main__.main, ["--again", str(report_file)])
    assert result.exit_code == 1 and "not the results.json of a run" in result.output


def test_memory_is_measured_against_what_was_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    promises = (memory.Promise((640, 360), "png", 900), memory.Promise((640, 360), "tif", 900))
    monkeypatch.setattr(memory, "PROMISES", promises)
    result = CliRunner().invoke(memory.main, [])
    assert result.exit_code == 0, result.output
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in result.output.splitlines()[2:]]
    assert [row[:3] for row in rows] == [
        ["64x64 cells -> 640x360", "png", "900"],
        ["64x64 cells -> 640x360", "tif", "900"],
    ]
    assert all(20 < float(row[3]) < 900 and row[4] == "yes" and float(row[5]) > 0 for row in rows)


def test_cancelling_and_closing_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopping, "PICTURES", (((40, 40), (1280, 1280), None),))
    monkeypatch.setattr(stopping, "MOMENTS", (0.0, 0.01, 3600.0))  # of which the last never comes
    monkeypatch.setattr(stopping, "CLOSED", ((16, 16), (256, 256)))
    result = CliRunner().invoke(stopping.main, ["--backend", "onnxruntime"])
    assert result.exit_code == 0, result.output
    cancelled, closed = (line.split("|")[2:-1] for line in result.output.splitlines() if line.startswith("| onnx"))
    assert cancelled[0].strip() == "40x40 cells -> 1280x1280" and int(cancelled[1]) == 2
    assert 0 <= float(cancelled[2]) <= float(cancelled[3])
    before, after, left, kept = map(float, closed)
    assert before < after and left < after and abs(left - before - kept) <= 1


def test_backends_are_compared(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in {
        "SCALES": (1,),
        "CELLS": 12,
        "ways": lambda _: [backends.REFERENCE, ("openvino", "cpu", "exact")],
    }.items():
        monkeypatch.setattr(backends, name, value)
    file = tmp_path / "backends.json"
    result = CliRunner().invoke(backends.main, ["--repeat", "1", "--json", str(file)])
    assert result.exit_code == 0, result.output
    samples = json.loads(file.read_text())["samples"]
    assert set(samples) == {"onnxruntime cpu exact 1", "openvino cpu exact 1"}
    rows = [line.split(" | ") for line in result.output.splitlines() if line.startswith("| o")]
    assert float(rows[1][-1].rstrip("| ")) > 48 and rows[1][3] == "fp32"


def test_extrapolation_compares_every_way(tmp_path: Path, bundle: Path) -> None:
    (tmp_path / "teacher.py").write_text(TEACHER)
    (tmp_path / "photos").mkdir()
    Image.radial_gradient("L").convert("RGB").resize((400, 300)).save(tmp_path / "photos" / "a.png")
    options = ["--photos", str(tmp_path / "photos"), "--teacher", str(tmp_path / "teacher.py"), "--model", str(bundle)]
    result = CliRunner().invoke(extrapolation.main, [*options, "--scales", "6"])
    assert result.exit_code == 0, result.output
    rows = [line.split(" | ") for line in result.stdout.splitlines()[2:]]
    assert [row[0] for row in rows] == ["| 6"] * 4 and len({row[1] for row in rows}) == 4
    assert all(float(row[2]) > 0 and float(row[5].strip("| ")) >= 0 for row in rows)


@pytest.mark.parametrize("part", ["all", "decoder", "encoder"])
def test_training_is_timed_and_counted(monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    monkeypatch.setitem(PRESETS, "edge", lambda *_: tiny.EDGE)
    for name, value in {"PHOTO_SIZE": (300, 200), "VIEWS": 8, "PRODUCT": {"cpu": 32}}.items():
        monkeypatch.setattr(training, name, value)
    options = ["--device", "cpu", "--part", part, "--cells", "64", "--largest", "8", "--steps", "2", "--warmup", "1"]
    result = CliRunner().invoke(training.main, [*options, "--loaders", "2"])
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    table = {line.split("|")[1].strip(): line.split("|")[2:-1] for line in lines if line.startswith("| ")}
    assert set(table) >= {"loader, no threads", "loader, 2 threads", "step alone", "step and loader together"}
    assert all(float(row[-1]) > 0 for name, row in table.items() if name)
    assert "pictures a second" in result.output and "multiply-adds a second; training: " in result.output


@pytest.mark.parametrize("form", attention.FORMS["within a radius"])
def test_forms_of_attention_are_the_same_attention(form: str) -> None:
    torch.manual_seed(0)
    layer = attention.Layer(1.5).eval()
    values = attention.example(layer, 4)
    with torch.inference_mode():
        expected = layer(*values)
        with attention.form_of(form):
            actual = layer(*values)
    # The window fades towards its edge; the mask does not.
    assert (actual - expected).abs().mean() < 0.5 * expected.abs().mean()


def test_a_form_of_attention_is_measured() -> None:
    cells = attention.row("openvino", "within a radius", "shifted gathers", 4).split(" | ")
    assert cells[:4] == ["| openvino", "within a radius", "4", "shifted gathers"] and float(cells[4]) > 0


@pytest.mark.parametrize("name", study.STUDIES["parts"])
def test_a_larger_part_starts_as_the_identity(name: str) -> None:
    model, latent = tiny.model(tiny.EDGE), tiny.latent(5, 7)
    larger = study.grow(model, study.STUDIES["parts"][name].enlarge(model.config))
    assert torch.allclose(larger(latent, (70, 90)), model(latent, (70, 90)), atol=1e-6)
    counts = [sum(parameter.numel() for parameter in each.parameters()) for each in (model, larger)]
    assert counts[1] > counts[0]


def test_a_study_trains_every_variant_and_measures_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(tmp_path / "checkpoint", tiny.model(tiny.EDGE))
    (tmp_path / "teacher.py").write_text(TEACHER)
    (tmp_path / "photos").mkdir()
    for photo in ("007", "a"):  # one that is kept out of training, and one that is not
        Image.radial_gradient("L").convert("RGB").resize((400, 300)).save(tmp_path / "photos" / f"{photo}.png")
    for name, value in {"VIEWS": 4, "SHAPES": ((6, 8),), "CROP": (256, 192)}.items():
        monkeypatch.setattr(study, name, value)
    options = ["--photos", str(tmp_path / "photos"), "--teacher", str(tmp_path / "teacher.py"), "--scales", "1"]
    options += ["--steps", "2", "--cells", "64", "--only", "refine, finest", "--only", "decode, tokens"]
    result = CliRunner().invoke(
        study.main, ["parts", str(tmp_path / "checkpoint"), *options, "-o", str(tmp_path / "o")]
    )
    assert result.exit_code == 0, result.output
    results = json.loads((tmp_path / "o" / "parts.json").read_text())
    assert list(results) == ["before", "refine, finest", "decode, tokens"]
    assert results["decode, tokens"]["decode"] > results["before"]["decode"]
    assert results["refine, finest"]["scales"]["1"]["psnr"] != results["before"]["scales"]["1"]["psnr"]
    assert "| decode, tokens |" in result.output


def test_mixtures_go_from_one_checkpoint_to_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in (0, 1):
        save_checkpoint(tmp_path / str(seed), tiny.model(tiny.EDGE, seed))
    (tmp_path / "teacher.py").write_text(TEACHER)
    (tmp_path / "photos").mkdir()
    picture = Image.merge("RGB", [Image.new("L", (256, 192), level) for level in (180, 60, 40)])
    picture.save(tmp_path / "photos" / "007.png")
    options = ["--photos", str(tmp_path / "photos"), "--teacher", str(tmp_path / "teacher.py"), "--scales", "1"]
    options += ["--shares", "0,0.5,1", "-o", str(tmp_path / "o")]
    result = CliRunner().invoke(mixtures.main, [str(tmp_path / "0"), str(tmp_path / "1"), *options])
    assert result.exit_code == 0, result.output
    rows = dict(line[2:].split(" | ", 1) for line in result.stdout.splitlines() if line.startswith("| "))
    names = ("teacher + bicubic", "0", "0.5", "1")
    assert list(rows)[1:] == [name + what for name in names for what in ("", ", other colours", ", drawn")]
    assert len({rows[name] for name in ("0", "0.5", "1", "1, other colours")}) == 4
    weights = [load_checkpoint(tmp_path / "o" / share).state_dict() for share in ("0", "0.5", "1")]
    for first, mixed, last in zip(*(each.values() for each in weights), strict=True):
        assert torch.allclose(mixed.float(), (first.float() + last.float()) / 2, atol=2e-3)


def test_a_profile_tells_where_the_time_of_each_graph_goes() -> None:
    result = CliRunner().invoke(profile.main, ["--threads", "1", "--scales", "1", "--runs", "2"])
    assert result.exit_code == 0, result.output
    text = result.output
    for graph in ("prefill", "refine", "decode at 1"):
        for engine in ("onnxruntime, fp32", "openvino, fp32"):
            _, _, after = text.partition(f"{engine}, 1 threads: {graph}\n")
            lines = [line for line in after.strip().splitlines() if line.startswith("| ")]
            table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
            total, *kinds = table[1 : next(index for index, cells in enumerate(table) if cells[0] == "others") + 1]
            assert total[0] == "**all**"
            assert sum(float(cells[2]) for cells in kinds) == pytest.approx(float(total[2]), rel=0.05)
            assert any("Conv" in kind for kind, *_ in kinds)


def test_what_a_better_enlargement_could_win_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(tmp_path / "checkpoint", tiny.model(tiny.EDGE))
    (tmp_path / "teacher.py").write_text(TEACHER)
    (tmp_path / "photos").mkdir()
    for photo in ("007", "a", "b"):  # one that is kept out of training, and two that are not
        Image.effect_noise((400, 300), 90).convert("RGB").save(tmp_path / "photos" / f"{photo}.png")
    for name, value in {"CROP": 128, "PATCH": 16, "BATCH": 2}.items():
        monkeypatch.setattr(headroom, name, value)
    options = ["--photos", str(tmp_path / "photos"), "--teacher", str(tmp_path / "teacher.py"), "--steps", "3"]
    result = CliRunner().invoke(headroom.main, [str(tmp_path / "checkpoint"), *options])
    assert result.exit_code == 0, result.output
    rows = {
        cells[1]: [float(cell) for cell in cells[2:5]]
        for line in result.stdout.splitlines()
        if line.startswith(("| our", "| the true")) and (cells := [cell.strip() for cell in line.split("|")])
    }
    assert list(rows) == list(headroom.SOURCES)
    for bicubic, network, won in rows.values():
        assert bicubic != network and abs(network - bicubic - won) < 0.011
    # Random weights make no picture.
    assert rows[headroom.SOURCES[1]][0] > rows[headroom.SOURCES[0]][0]


def test_tiles_are_decoded_both_ways() -> None:
    options = ["--backend", "onnxruntime", "--threads", "2", "--scales", "1", "--runs", "1"]
    result = CliRunner().invoke(parallel.main, options)
    assert result.exit_code == 0, result.output
    (row,) = (line.split("|")[1:-1] for line in result.output.splitlines() if line.startswith("| onnxruntime"))
    assert row[1].strip() == "1" and int(row[2]) == 4 and all(float(cell) > 0 for cell in row[3:])
