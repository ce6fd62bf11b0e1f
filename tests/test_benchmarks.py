import itertools
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest
import torch
from click.testing import CliRunner
from numpy.typing import NDArray
from PIL import Image, ImageFilter

import benchmarks.__main__
import infgen_rt
from benchmarks import backends, batches, compare, cost, memory, methods, peers, plots, process, profile, report, suite
from benchmarks.latents import latent_file
from benchmarks.studies import attention, chooser, comb, extrapolation, jump, parallel, precision, stopping, study
from infgen_export.work import multiply_adds
from infgen_model import PRESETS, InfGen, edge
from infgen_model.checkpoint import load_checkpoint, save_checkpoint
from infgen_rt.geometry.shapes import Size
from infgen_training.evaluate import Task
from infgen_training.teacher import Teacher, load_function
from infgen_training.views import save_shards

from .training.conftest import ENLARGER, TEACHER, TINY, texture, view


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Whose latent is the mean colour of every cell."""
    file = tmp_path_factory.mktemp("teacher") / "teacher.py"
    file.write_text(TEACHER)
    return file


@pytest.fixture(scope="module")
def enlarger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Repeats pixels with more contrast."""
    file = tmp_path_factory.mktemp("enlarger") / "enlarger.py"
    file.write_text(ENLARGER)
    return file


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a tiny model with three enlargements."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("checkpoint")
    save_checkpoint(folder, InfGen(TINY))
    return folder


class StandIn:
    """Sees no more than colours, without the weights of others."""

    def __init__(self) -> None:
        self.lpips = SimpleNamespace(of=lambda made, true: float(np.abs(made.astype(float) - true).mean()) / 255)
        self.features = SimpleNamespace(of=self.colours)

    @staticmethod
    def colours(picture: NDArray[np.uint8]) -> NDArray[np.float64]:
        return picture[::16, ::16].reshape(-1, 3).astype(float)


def table_of(text: str) -> list[list[str]]:
    """The cells of all rows of a text's tables."""
    rows = (line for line in text.splitlines() if line.startswith("| "))
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in rows]


def test_cost_of_the_edge_preset_is_within_the_project_s_budget(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, InfGen(edge()))
    result = CliRunner().invoke(cost.main, [str(tmp_path)])
    assert result.exit_code == 0, result.output
    figures = {line.split(":")[0]: float(line.split(": ")[1].split()[0]) for line in result.output.splitlines()[4:]}
    assert figures["scale 1"] <= 300 and figures["scale 2"] <= 150 and figures["scale 4"] <= 60
    assert figures["encode"] <= 235 / 2  # half of what the teacher's encoder costs


def test_multiply_adds_of_a_known_layer() -> None:
    layer = torch.nn.Conv2d(3, 5, 3, padding=1)
    assert multiply_adds(lambda: layer(torch.zeros(1, 3, 10, 20))) == 3 * 5 * 9 * 200


QUALITY = {
    "1": {"infgen": {"psnr": 35.0, "flat": 1.0}, "teacher": {"psnr": 34.0, "flat": 2.0}},
    "2": {
        "infgen": {"lpips": 0.21, "frechet": 12.34, "psnr": 31.0, "ssimulacra2": 33.0, "flat": 1.5, "vivid": None},
        "teacher + bicubic": {"lpips": 0.3, "frechet": 20.0, "psnr": 30.0, "flat": None, "vivid": None},
        "teacher + Real-ESRGAN": {"lpips": 0.2, "frechet": 10.0, "psnr": 29.0, "flat": 1.75, "vivid": None},
    },
}


@pytest.fixture
def results() -> suite.Results:
    """As a run on a machine of nobody's would have found."""
    runs = {
        str(job): {
            method.label: [
                {"seconds": 1.5 * seconds, "again": seconds, "peak": 2e8}
                for factor in (1.0, 1.1, 1.2)
                for seconds in [(20 if method.upscaler else 1) * factor * job.size[0] / 1e3]
            ]
            for method in methods.METHODS
            if methods.FULL.includes(method, job)
        }
        for job in (*methods.FULL.jobs, methods.SMALL)
    }
    viewport = {"infgen-rt, ONNX Runtime": [{"seconds": 1.0, "again": 0.1, "moved": 0.5, "peak": 2e8}]}
    peaks = {"onnxruntime exact": 1e11, "openvino exact": 1e11, "openvino fast": 2e11}
    costs = {"taef2": 2e7, "vae": 3e8, "esrgan": 2e7}
    own = {scale: {"context": 4e6 * int(scale), "decode": 3e4, "pixel": 1e5} for scale in ("1", "2", "4")}
    machine = {"processor": "abacus", "threads": 2, "system": "none", "versions": {"numpy": "2"}}
    machine["trained"] = ["esrgan", "taef2"]
    starts = {"infgen-rt, ONNX Runtime": [{"first": 0.5, "finished": 0.75, "peak": 2e8}]}
    return suite.Results(machine, costs, own, peaks, runs, viewport, starts, {"numpy": 10**7}, QUALITY)


def test_results_become_a_table_and_plots(results: suite.Results, tmp_path: Path) -> None:
    text = report.markdown(results)
    rows = {row[0]: row for row in reversed(table_of(text.partition("**1024x1024 from 64x64 cells**")[2]))}
    # 1024x1024 from 64x64 cells: 3.3e10 + 3.1e10 multiply-adds in 1.1 x 1.024 seconds.
    assert rows["infgen-rt, ONNX Runtime"][1:] == [
        *("1.69", "1.13", "1.02 - 1.23", "1.074", "1.00x", "191", "57%", "0.210", "12.3", "31.00", "1.50")
    ]
    assert rows["TAEF2 + bicubic, OpenVINO"][-4:] == ["0.300", "20.0", "30.00", ""]
    assert rows["TAEF2 + Real-ESRGAN, OpenVINO fast"][5:6] == ["20.00x"]
    assert rows["TAEF2 + Real-ESRGAN, OpenVINO fast"][-4:] == ["0.200", "10.0", "29.00", "1.75"]
    assert (
        "abacus, 2 threads" in text
        and "These have random weights, because only their cost matters: FLUX.2's VAE\n" in text
    )
    assert "| infgen-rt, ONNX Runtime | 0.50 | 0.75 | 191 |" in text
    assert "| 1 | TAEF2 |  |  | 34.00 | 2.00 |" in text and "| 2 | infgen-rt | 0.210 | 12.3 | 31.00 | 1.50 |" in text
    for width, height in methods.SIZES[:3]:
        mine = f"{1.1 * width / 1e3:.2f} | {22 * width / 1e3:.2f} | 20.0 |"
        assert f"| {width}x{height} from 64x64 cells | ONNX Runtime | {mine}" in text
    files = plots.draw(results, tmp_path)
    assert [file.name for file in files] == ["time.png", "memory.png", "quality.png"]
    assert all(min(Image.open(file).size) > 300 for file in files)


def test_work_is_that_of_the_enlargement_of_a_job_s_scale(results: suite.Results) -> None:
    method = next(each for each in methods.METHODS if each.name == methods.PROJECT)
    for size, context, decoded in (
        ((512, 512), 4e6, 512 * 512),
        ((768, 512), 8e6, 768 * 512),  # by the longer way
        ((1024, 1024), 8e6, 1024 * 1024),
        ((1032, 1024), 16e6, 1032 * 1024),
        ((3840, 2160), 16e6, 2048 * 2048),  # beyond all of them: resampled
    ):
        work = report.work(method, methods.Job((64, 64), size), results)
        assert work == pytest.approx(context * 64 * 64 + 3e4 * decoded)
    # An earlier version's results do not tell.
    results.own = {}
    assert report.work(method, methods.Job((64, 64), (512, 512)), results) is None
    assert "| infgen-rt, ONNX Runtime | 1.69 | 1.13 |" in report.markdown(results)


def test_what_does_not_fit_whole_is_decoded_in_tiles_and_no_other_picture() -> None:
    def sizes(tiling: bool) -> set[tuple[int, int]]:
        heavy = [method for method in methods.METHODS if method.native and method.heavy and method.tiling == tiling]
        return {job.size for job in methods.FULL.jobs for method in heavy if methods.FULL.includes(method, job)}

    assert sizes(tiling=False) == {(1024, 1024), (1920, 1080)} and sizes(tiling=True) == {(3840, 2160)}
    for extent, count in ((methods.FULL, 4), (methods.QUICK, 1)):
        strong = [method for method in extent.methods if method.name == methods.ENLARGED]
        made = {job for job in (*extent.heavy, *extent.jobs) for method in strong if extent.includes(method, job)}
        assert made == set(extent.enlarged) and len(made) == count
        assert all(job.pixels > 64 * job.cells[0] * job.cells[1] for job in made)
        assert all(extent.once(method, job) and not extent.starts(method) for method in strong for job in made)
    assert not any(method.full for method in methods.QUICK.methods) and set(methods.FULL.methods) == set(
        methods.METHODS
    )


def test_a_slower_run_is_told_from_noise(results: suite.Results, tmp_path: Path) -> None:
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    results.save(old)
    results.save(new)
    assert CliRunner().invoke(compare.main, [str(old), str(new)]).exit_code == 0
    job, method = str(methods.FULL.jobs[0]), methods.METHODS[0].label
    for factor, told, code in ((1.15, "nothing changed", 0), (1.5, "WORSE", 1), (0.5, "better", 0)):
        data = json.loads(old.read_text())
        data["runs"][job][method] = [{**entry, "again": factor * entry["again"]} for entry in data["runs"][job][method]]
        new.write_text(json.dumps(data))
        result = CliRunner().invoke(compare.main, [str(old), str(new)])
        assert result.exit_code == code and told in result.output
    data = json.loads(old.read_text())
    data["quality"]["2"]["infgen"]["psnr"] -= 0.1
    data["quality"]["2"]["infgen"]["flat"] -= 0.2
    data["quality"]["2"]["infgen"]["lpips"] += 0.01
    data["starts"][method][0]["first"] *= 2
    new.write_text(json.dumps(data))
    told = CliRunner().invoke(compare.main, [str(old), str(new)]).output.splitlines()
    assert [line.split(": ")[0] for line in told] == [
        f"WORSE  {method}, start",
        "WORSE  infgen, scale 2",
        "WORSE  infgen, scale 2",
        "better infgen, scale 2",
    ]
    data["machine"]["processor"] = "other"
    new.write_text(json.dumps(data))
    assert "different processors" in CliRunner().invoke(compare.main, [str(old), str(new)]).output
    data = json.loads(old.read_text())
    for part, name in (("starts", "peak"), ("viewport", "moved")):
        data[part] = {key: [{**run, name: 10 * run[name]} for run in runs] for key, runs in data[part].items()}
    del data["quality"]["2"]["infgen"], data["runs"][job][method]
    new.write_text(json.dumps(data))
    result = CliRunner().invoke(compare.main, [str(old), str(new)])
    assert result.exit_code == 1
    for words in (f"{method}, start: peak", "viewport: moved", "MISSING infgen, 2", f"MISSING {method}, {job}"):
        assert words in result.output


def test_an_enlarger_is_timed_with_the_weights_that_it_is_given(tmp_path: Path, teacher: Path, enlarger: Path) -> None:
    files = {name: tmp_path / f"{name}.onnx" for name in ("taef2", "esrgan")}
    for name, weights in (("taef2", teacher), ("esrgan", enlarger)):
        peers.write_peer(name, weights, files[name])
    image = np.random.default_rng(0).random((1, 3, 5, 7), np.float32)
    (large,) = onnxruntime.InferenceSession(files["esrgan"]).run(None, {"input": image})
    assert np.allclose(large, 1.5 * image.repeat(4, 2).repeat(4, 3) - 0.25, atol=1e-6)
    latent = latent_file(tmp_path, (3, 4))
    order = process.Order("graph", files["taef2"], latent, (100, 80), 1, upscaler=files["esrgan"])
    assert min(process.run(order)[name] for name in ("seconds", "again")) > 0
    # The network that Real-ESRGAN is: what random weights stand in for.
    with torch.device("meta"):
        assert sum(value.numel() for value in peers.SuperResolution().parameters()) == pytest.approx(16.7e6, rel=0.01)


@pytest.mark.slow
def test_a_quick_run_measures_every_method(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    job, view = methods.Job((8, 8), (256, 256)), methods.Job((8, 8), (512, 512))
    extent = methods.Extent((), (job,), (job,), view, methods.Job((8, 8), (64, 64)), 10**6)
    monkeypatch.setattr(methods, "QUICK", extent)
    save_checkpoint(tmp_path / "checkpoint", InfGen(edge()))
    options = ["--quick", "--repeat", "1", "--checkpoint", str(tmp_path / "checkpoint"), "-o", str(tmp_path / "o")]
    result = CliRunner().invoke(benchmarks.__main__.main, options)
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "o" / "results.json").read_text())
    assert set(found["runs"][str(job)]) == {method.label for method in methods.METHODS if extent.includes(method, job)}
    assert all(min(entry["seconds"], entry["again"]) > 0 for runs in found["runs"][str(job)].values() for entry in runs)
    assert set(found["starts"]) == {method.label for method in methods.METHODS if extent.starts(method)}
    assert all(0.1 < entry["first"] <= entry["finished"] for runs in found["starts"].values() for entry in runs)
    # What the literature says of them: 4.7 M and 271 thousand multiply-adds per pixel, and 16.7 M parameters' worth.
    assert found["costs"]["vae"] / 64 == pytest.approx(4.73e6, rel=0.05)
    assert found["costs"]["taef2"] / 64 == pytest.approx(271e3, rel=0.01)
    assert found["costs"]["esrgan"] == pytest.approx(17.9e6, rel=0.05)
    assert set(found["own"]) == {"1", "2", "4"} and found["machine"]["trained"] == []
    written = {"results.json", "results.md", "time.png", "memory.png"}
    assert {file.name for file in (tmp_path / "o").iterdir()} == written
    # Drawn again, with the quality that an evaluation found.
    report_file = tmp_path / "report.json"
    report_file.write_text(json.dumps({"pictures": 1, "scales": {"4": QUALITY["2"]}}))
    again = [
        "--again",
        str(tmp_path / "o" / "results.json"),
        "--quality",
        str(report_file),
        "-o",
        str(tmp_path / "again"),
    ]
    result = CliRunner().invoke(benchmarks.__main__.main, again)
    assert result.exit_code == 0, result.output
    assert {file.name for file in (tmp_path / "again").iterdir()} == {*written, "quality.png"}
    result = CliRunner().invoke(benchmarks.__main__.main, ["--again", str(report_file)])
    assert result.exit_code == 1 and "not the results.json of a run" in result.output


def test_an_unreadable_quality_is_told_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(suite, "measure", lambda *_: pytest.fail("measured"))
    (tmp_path / "report.json").write_text("{}")
    result = CliRunner().invoke(benchmarks.__main__.main, ["--quality", str(tmp_path / "report.json")])
    assert result.exit_code == 1 and "--quality: " in result.output and "is not a report" in result.output


def test_memory_is_measured_against_what_was_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    small = memory.Promise((240, 160), "png", cells=(24, 16))
    monkeypatch.setattr(memory, "SMALL", small)
    monkeypatch.setattr(memory, "LARGE", [replace(small, megabytes=amount) for amount in (900, 10)])
    monkeypatch.setattr(memory, "ways", lambda _: [("onnxruntime", "cpu", "exact")])
    monkeypatch.setattr(memory, "endings", lambda: ["png", "dzi"])
    result = CliRunner().invoke(memory.main, ["--large", "onnxruntime"])
    assert result.exit_code == 0, result.output
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in result.output.splitlines()[2:]]
    assert all(row[:3] == ["onnxruntime", "exact", "24x16 cells -> 240x160"] for row in rows)
    assert [row[3] for row in rows] == ["png", "dzi", "png", "png"]
    refused = rows.pop()
    assert refused[4:7] == ["10", "", ""] and refused[7].startswith("NO: ") and "too small" in refused[7]
    for *_, limit, planned, peak, kept, seconds, _ in rows:
        assert 20 < float(planned) <= float(limit) and kept in ("yes", "within 10 %") and float(seconds) > 0
        assert 20 < float(peak) <= 1.1 * float(limit)
    assert float(rows[0][4]) < 900 == float(rows[2][4])


def test_a_peak_is_judged_by_its_limit() -> None:
    assert [memory.verdict(peak, 100) for peak in (100, 110, 111)] == ["yes", "within 10 %", "NO"]
    assert set(memory.endings()) == {"png", "jpg", "webp", "avif", "tif", "dzi"}


def test_cancelling_and_closing_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopping, "PICTURES", (((24, 24), (768, 768), None),))
    monkeypatch.setattr(stopping, "MOMENTS", (0.0, 0.01, 3600.0))  # of which the last never comes
    monkeypatch.setattr(stopping, "CLOSED", ((16, 16), (256, 256)))
    result = CliRunner().invoke(stopping.main, ["--backend", "onnxruntime"])
    assert result.exit_code == 0, result.output
    cancelled, closed = (line.split("|")[2:-1] for line in result.output.splitlines() if line.startswith("| onnx"))
    assert cancelled[0].strip() == "24x24 cells -> 768x768" and int(cancelled[1]) == 2
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


@pytest.mark.parametrize("form", [each for each in attention.FORMS["within a radius"] if each != "shifted copies"])
def test_forms_of_attention_are_the_same_attention(form: str) -> None:
    layer = attention.Layer(1.5).eval()
    values = attention.example(layer, 4)
    with torch.inference_mode():
        expected = layer(*values)
        with attention.form_of(form):
            actual = layer(*values)
    assert torch.allclose(actual, expected, atol=1e-5)


@pytest.mark.slow
def test_a_form_of_attention_is_measured() -> None:
    cells = attention.row("openvino", "within a radius", "shifted copies", 4).split(" | ")
    assert cells[:4] == ["| openvino", "within a radius", "4", "shifted copies"] and float(cells[4]) > 0


def test_tiles_are_decoded_both_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CELLS", "TILE"):
        monkeypatch.setattr(parallel, name, Size(12, 12))
    options = ["--backend", "onnxruntime", "--threads", "2", "--scales", "1,3", "--runs", "1"]
    result = CliRunner().invoke(parallel.main, options)
    assert result.exit_code == 0, result.output
    rows = [row for row in table_of(result.output) if row[0] == "onnxruntime"]
    assert [row[1:4] for row in rows] == [["fp32", "1", "8"], ["fp32", "3", "8"]]
    assert all(float(cell) > 0 for row in rows for cell in row[4:6])


def test_batches_are_measured_in_turns(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(batches, "ENGINES", batches.ENGINES[:1])
    options = ["--cells", "6", "--side", "96", "--latents", "2", "--threads", "2", "--repeat", "1"]
    result = CliRunner().invoke(batches.main, [*options, "--json", str(tmp_path / "batches.json")])
    assert result.exit_code == 0, result.output
    _, *rows = table_of(result.output)
    saved = json.loads((tmp_path / "batches.json").read_text())
    (turn,) = saved["seconds"]["onnxruntime exact"]
    assert [row[2] for row in rows] == list(turn)
    assert [row[3] for row in rows] == [f"{120 / taken:.1f}" for taken in turn.values()]
    assert [row[5] for row in rows if row[2] == batches.AFTER] == ["1.00x"]


def test_fewer_bits_are_farther_from_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "CELLS", Size(6, 5))
    monkeypatch.setattr(precision, "Lpips", lambda: StandIn().lpips)
    result = CliRunner().invoke(precision.main, ["--scale", "2", "--runs", "1"])
    assert result.exit_code == 0, result.output
    rows = {(engine, name): values for engine, name, *values in table_of(result.output)[1:]}
    steps = ("fp32", "8-bit weights", "8-bit weights and activations")
    errors = [float(rows["onnxruntime", name][2]) for name in steps]
    assert errors[0] == np.inf and 60 > errors[1] > errors[2] + 3 and errors[2] > 20
    # Both engines compute the same graphs.
    assert float(rows["openvino", steps[1]][2]) == pytest.approx(errors[1], abs=1)


def profiled(text: str, heading: str) -> tuple[list[str], list[list[str]]]:
    """The row of all, and the others, of a table under a heading."""
    _, _, after = text.partition(f"{heading}, ")
    lines = itertools.takewhile(lambda line: line.startswith("|"), after.splitlines()[2:])
    _, total, *kinds = table_of("\n".join(lines))
    return total, kinds


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("CELLS", "TILE"):
        monkeypatch.setattr(profile, name, Size(12, 12))
    yield


@pytest.mark.usefixtures("small")
def test_a_profile_tells_of_the_graphs_of_every_enlargement() -> None:
    options = ["--threads", "1", "--scales", "1,3", "--runs", "2", "--backend", "onnxruntime"]
    result = CliRunner().invoke(profile.main, options)
    assert result.exit_code == 0, result.output
    graphs = ["statistics", "prefill", "trunk", "refine1", "decode1 at 1", "refine4", "decode4 at 3"]
    rows = [row for row in table_of(result.output) if row[1] == "onnxruntime, fp32"]
    assert [row[0] for row in rows] == graphs
    for graph, _, count, milliseconds, most in rows:
        total, kinds = profiled(result.output, f"onnxruntime, fp32, 1 threads: {graph}")
        assert total[0] == "**all**" and f": {graph}, {count} operations after optimisation\n" in result.output
        assert sum(float(cells[2]) for cells in kinds) == pytest.approx(float(total[2]), abs=0.05 * len(kinds) + 0.051)
        assert most.startswith(f"{kinds[0][0]} ") and float(milliseconds) == pytest.approx(float(total[2]), abs=0.1)
        assert int(count) >= int(total[1]) > 10  # constants take no time


@pytest.mark.usefixtures("small")
def test_a_profile_tells_of_openvino_too(monkeypatch: pytest.MonkeyPatch) -> None:
    candidates = profile._candidates
    monkeypatch.setattr(profile, "_candidates", lambda *given: candidates(*given)[:1])  # in float32
    options = ["--threads", "1", "--scales", "2", "--runs", "1", "--backend", "openvino"]
    result = CliRunner().invoke(profile.main, options)
    assert result.exit_code == 0, result.output
    rows = [row for row in table_of(result.output) if row[1] == "openvino, fp32"]
    assert [row[0] for row in rows] == ["statistics", "prefill", "trunk", "refine2", "decode2 at 2", "decode_cells2"]
    for graph, way, count, *_ in rows:
        total, kinds = profiled(result.output, f"{way}, 1 threads: {graph}")
        assert total[4] == "" and 10 < int(count) <= 3 * int(total[1])
        assert any("Convolution" in kind for kind, *_ in kinds)


def test_a_bundle_without_graphs_for_a_runtime_is_profiled_without_it(bundle: Path) -> None:
    result = CliRunner().invoke(profile.main, ["--model", str(bundle), "--backend", "openvino"])
    assert result.exit_code == 0 and "openvino is left out: " in result.output and len(table_of(result.output)) == 1


@pytest.mark.slow
def test_extrapolation_compares_every_way(
    tmp_path: Path, teacher: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extrapolation, "LEAST", 5)
    monkeypatch.setattr(extrapolation, "Eye", StandIn)
    (tmp_path / "photos").mkdir()
    for name, size in (("a", (400, 300)), ("b", (300, 290)), ("small", (230, 300))):
        Image.radial_gradient("L").convert("RGB").resize(size).save(tmp_path / "photos" / f"{name}.png")
    options = ["--photos", str(tmp_path / "photos"), "--teacher", str(teacher), "--model", str(bundle)]
    result = CliRunner().invoke(extrapolation.main, [*options, "--stages", "4,1.5", "--stages", "3,2"])
    assert result.exit_code == 0, result.output
    assert "2 of 3 photographs are large enough" in result.output
    rows = table_of(result.stdout)[1:]
    assert [row[1] for row in rows] == [
        "4, then Lanczos",
        "one stage",
        "stages 4,1.5",
        "stages 4,1.5, encoded by the teacher",
        "stages 3,2",
        "stages 3,2, encoded by the teacher",
    ]
    assert all(row[0] == "6" and all(float(cell) for cell in row[2:6]) for row in rows)
    result = CliRunner().invoke(extrapolation.main, [*options, "--no-eye", "--stages", "4,2", "--limit", "0"])
    assert result.exit_code == 0 and len(table_of(result.stdout)) == 1
    assert CliRunner().invoke(extrapolation.main, [*options, "--stages", "4+2"]).exit_code == 2


def striped(period: int, axis: int, height: float, picture: comb.Levels) -> comb.Levels:
    """With teeth: as much higher and lower, half a period each, along an axis."""
    places = np.arange(picture.shape[axis]) % period
    teeth = np.where(places < period // 2, height / 2, -height / 2).astype(np.float32)
    return picture + teeth.reshape([-1 if axis == each else 1 for each in range(3)])


@pytest.fixture
def plain() -> comb.Levels:
    """A sky that grows lighter on the left, and edges that go down and across on the right."""
    picture = np.empty((96, 160, 3), np.float32)
    picture[...] = 100 + 0.15 * np.arange(160, dtype=np.float32)[None, :, None]
    picture[:51, 103:] += 90
    picture[69:, 119:] -= 80
    return picture


def test_a_plain_picture_has_no_comb(plain: comb.Levels) -> None:
    places = comb.Places.of(plain)
    assert places.flat[:, :6].all() and not (places.flat & (places.down | places.across)).any()
    assert places.down[:3, 6].all() and places.down[5, 7] and places.down.sum() == 4
    assert places.across[3, 7:].all() and places.across[4, 8:].all() and places.across.sum() == 5
    assert all(max(found.height, found.shared) < 1e-3 for found in comb.combs(plain, places).values())


@pytest.mark.parametrize("axis", ["across", "down"])
@pytest.mark.parametrize("period", comb.PERIODS)
def test_a_comb_is_measured_by_its_height_along_its_own_axis(plain: comb.Levels, period: int, axis: str) -> None:
    places = comb.Places.of(plain)
    number = 1 if axis == "across" else 0
    found = comb.combs(striped(period, number, 0.8, plain), places)
    # The wave in teeth of a period of four pixels is higher than they are, because it has no steps.
    wave = {2: 0.8, 4: 0.8 * 2**0.5}[period]
    for (where, each, along), value in found.items():
        own = (each, along) == (period, axis)
        assert value.height == pytest.approx(wave if own else 0.0, abs=0.01), (where, each, along)
        assert value.shared == pytest.approx(0.8 if own else 0.0, abs=1e-3), (where, each, along)
    # Enlarged, it is still there, and a little lower.
    large = comb.combs(comb.enlarge(striped(period, number, 0.8, plain), 2), places, 2)
    assert 0.5 * wave < large["flat", period, axis].height < 1.1 * wave
    other = "down" if axis == "across" else "across"
    assert large["flat", period, other].height < 0.05


@pytest.mark.parametrize("period", comb.PERIODS)
def test_detail_is_told_from_a_comb(plain: comb.Levels, period: int) -> None:
    """The study finds the height of a comb under detail that is as high, and nothing without a comb."""
    places = comb.Places(*(np.ones_like(comb.Places.of(plain).flat) for _ in range(3)))
    detail = np.random.default_rng(0).normal(0, 1, plain.shape).astype(np.float32)
    sky = np.full_like(plain, 100)
    for comb_of, wave in ((0.0, 0.0), (0.8, {2: 0.8, 4: 0.8 * 2**0.5}[period])):
        found = comb.combs(striped(period, 1, comb_of, sky + detail), places)["edge", period, "across"]
        assert found.height == pytest.approx(wave, abs=0.25)
        assert found.shared == pytest.approx(comb_of, abs=0.05)


def test_where_nothing_is_to_be_looked_at_there_is_no_comb(plain: comb.Levels) -> None:
    nowhere = comb.Places(*(np.zeros_like(comb.Places.of(plain).flat) for _ in range(3)))
    assert {str(found) for found in comb.combs(plain, nowhere).values()} == {""}


def test_the_comb_of_samples_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_sample(name: str) -> SimpleNamespace:
        sample = infgen_rt.load_sample(name)
        return SimpleNamespace(latent=sample.latent[:, 20:28, 30:40])

    monkeypatch.setattr(comb, "load_sample", load_sample)
    result = CliRunner().invoke(comb.main, ["--sample", "osprey", "--threads", "1"])
    assert result.exit_code == 0, result.output
    rows = table_of(result.output)[1:]
    assert [row[1:3] for row in rows] == [
        [picture, place]
        for picture in ("1x, Lanczos to 4x", "4x", "4x, Lanczos to 8x", "8x")
        for place in ("flat", "edge")
    ]
    assert all(len(row) == 9 and row[0] == "osprey" for row in rows)
    for row in rows:
        assert [cell != "" for cell in row[5:7]] == [int(count) > 0 for count in row[3:5]]


PLACES = [
    {"photo": "a", "x": 0.5, "y": 0.5, "scale": 2, "name": "middle"},
    {"photo": "a", "x": 1.0, "y": 0.0, "scale": 4, "name": "corner"},
]


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with one photograph of 1000x700 pixels, of which chooser shows squares of 48."""
    monkeypatch.setattr(chooser, "CROP", 48)
    folder = tmp_path / "photos"
    folder.mkdir()
    Image.fromarray(texture(1000, 0)[:700]).save(folder / "a.png")
    return folder


def test_only_what_a_place_needs_is_encoded(photos: Path) -> None:
    photo = Image.open(photos / "a.png")
    pixels = np.asarray(photo)
    for place in (chooser.Place(**values) for values in PLACES):
        part, (x, y, width, height) = chooser.cut(photo, place)
        cell, margin = 8 * place.scale, chooser.MARGIN * place.scale
        assert part.width % cell == part.height % cell == 0 and (width, height) == (48, 48)
        if place.name == "middle":
            left, top = 500 - 24, 350 - 24
            assert margin <= x < margin + cell and margin <= part.width - x - width < margin + cell
            assert margin <= y < margin + cell and margin <= part.height - y - height < margin + cell
        else:  # of the whole cells that there are; beyond them is nothing that could be seen
            left, top = 1000 // cell * cell - 48, 0
            assert part.width == x + 48 and margin <= x < margin + cell and y == 0
        assert (np.asarray(part)[y : y + 48, x : x + 48] == pixels[top : top + 48, left : left + 48]).all()
        assert left - x >= 0 and (left - x) % cell == 0


def test_images_to_choose_from_have_a_key(
    tmp_path: Path, photos: Path, checkpoint: Path, teacher: Path, enlarger: Path
) -> None:
    (tmp_path / "places.json").write_text(json.dumps(PLACES))
    options = [str(checkpoint), "--photos", str(photos), "--teacher", str(teacher), "--enlarger", str(enlarger)]
    options += ["--places", str(tmp_path / "places.json")]
    orders = set()
    for seed in range(3):
        output = tmp_path / str(seed)
        result = CliRunner().invoke(chooser.main, [*options, "--seed", str(seed), "-o", str(output)])
        assert result.exit_code == 0, result.output
        assert {file.name for file in output.iterdir()} == {"middle.png", "corner.png", "key.json"}
        key = json.loads((output / "key.json").read_text())["key"]
        assert all(set(order) == {"A", "B"} and set(order.values()) == set(chooser.RIVALS) for order in key.values())
        orders |= {order["A"] for order in key.values()}
        assert not any(name in result.output for name in chooser.RIVALS)
    assert orders == set(chooser.RIVALS)

    sharp = load_function(enlarger, "load_x4plus")()
    known, model = Teacher.load(teacher), load_checkpoint(checkpoint)
    for values in PLACES:
        place = chooser.Place(**values)
        found = chooser.pictures_of(Image.open(photos / "a.png"), place, model, known, sharp)
        image = np.asarray(Image.open(output / f"{place.name}.png"))
        assert image.shape == (48 + chooser.BAND, 3 * 48 + 2 * chooser.GAP, 3)
        for index, name in enumerate(("truth", key[place.name]["A"], key[place.name]["B"])):
            left = index * (48 + chooser.GAP)
            assert (image[chooser.BAND :, left : left + 48] == found[name]).all(), name
        # As if the whole photograph had been encoded.
        whole = Task.of(Image.open(photos / "a.png"), float(place.scale), known)
        x, y = (476, 326) if place.name == "middle" else (whole.size[1] - 48, 0)
        assert (found["truth"] == whole.truth[y : y + 48, x : x + 48]).all()
        ours = chooser.methods(whole, model, known, None, ours=True)[chooser.OURS][y : y + 48, x : x + 48]
        assert np.abs(found[chooser.OURS].astype(int) - ours).mean() < 3


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"x": 1.5}, "x and y are shares from 0 to 1, not 1.5 and 0.5"),
        ({"scale": 3}, "scale must be one of 2, 4, not 3"),
        ({"name": "corner"}, "several places with the name 'corner'"),
        ({"name": "a/b"}, "cannot be the name of a file"),
        ({"photo": "b"}, "has no photograph 'b'"),
        ({"y": "top"}, "place 1.y is str, expected float"),
    ],
)
def test_bad_places_are_named(
    tmp_path: Path, photos: Path, checkpoint: Path, teacher: Path, enlarger: Path, changes: dict[str, object], text: str
) -> None:
    (tmp_path / "places.json").write_text(json.dumps([PLACES[0] | changes, PLACES[1]]))
    options = [str(checkpoint), "--photos", str(photos), "--teacher", str(teacher), "--enlarger", str(enlarger)]
    options += ["--places", str(tmp_path / "places.json"), "-o", str(tmp_path / "o")]
    result = CliRunner().invoke(chooser.main, options)
    assert result.exit_code == 1 and text in result.output and not (tmp_path / "o").exists()


def test_every_variant_of_a_study_is_a_model_that_can_be_trained() -> None:
    usual = edge()
    for name, shape in study.SHAPES.items():
        assert (shape(usual) == usual) == (name == study.FIRST)
    for training in study.TRAININGS.values():
        assert training(study.TrainConfig()) != study.TrainConfig()
    assert all(
        lesson.perceptual == 0 for lesson in study.TRAININGS["no LPIPS, no adversary"](study.TrainConfig()).lessons
    )


@pytest.mark.slow
def test_a_study_trains_every_variant_and_measures_it(
    tmp_path: Path, enlarger: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PRESETS, "edge", lambda *_: TINY)
    teacher = tmp_path / "teacher.py"
    teacher.write_text(
        "from tests.training.test_warmstart import decoder, encoder\n"
        "load_decoder, load_encoder = (lambda make=make: make(blocks=1) for make in (decoder, encoder))\n"
    )
    for name, value in {"CROP": (192, 160), "Eye": StandIn, "HELD_OUT": ("a",)}.items():
        monkeypatch.setattr(study, name, value)
    (tmp_path / "photos").mkdir()
    for photo in ("a", "b"):  # one that is kept out of training, and one that is not
        Image.fromarray(texture(256, 5)).save(tmp_path / "photos" / f"{photo}.png")
    save_shards(
        tmp_path / "shards", [view(0, 16), view(1, 16, sharp=True), view(2, 16, sharp=True, photo=False)], "views"
    )
    options = ["--shards", str(tmp_path / "shards"), "--photos", str(tmp_path / "photos"), "--teacher", str(teacher)]
    options += ["--enlarger", str(enlarger), "--steps", "2", "-o", str(tmp_path / "o"), "--device", "cpu"]
    names = [study.FIRST, "no attention", "photographs only"]
    for done in (2, 3):  # the second time goes on with what is missing
        chosen = [option for name in names[:done] for option in ("--only", name)]
        result = CliRunner().invoke(study.main, [*options, *chosen])
        assert result.exit_code == 0, result.output
    results = json.loads((tmp_path / "o" / "study.json").read_text())
    assert list(results) == names
    costs = {name: found["costs"]["4"]["pixel"] for name, found in results.items()}
    assert costs["no attention"] < costs[study.FIRST] == costs["photographs only"]
    assert len({found["scales"]["2"]["lpips"] for found in results.values()}) == 3
    rows = table_of((tmp_path / "o" / "study.md").read_text())
    assert [row[0] for row in rows] == ["variant", *names] and all(len(row) == 7 for row in rows)
    assert min(Image.open(tmp_path / "o" / "study.png").size) > 300


@pytest.mark.parametrize(
    ("content", "device", "code", "text"),
    [
        (b"no picture", "cpu", 1, "a.png cannot be used as a photograph"),
        (None, "foo", 2, "'foo' cannot be used"),
    ],
)
def test_a_study_names_what_it_cannot_use_before_it_trains(
    tmp_path: Path, teacher: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | None, device: str, code: int,
    text: str,
) -> None:  # fmt: skip
    for name, value in {"Eye": StandIn, "HELD_OUT": ("a",)}.items():
        monkeypatch.setattr(study, name, value)
    monkeypatch.setattr(study, "warm_start", lambda *_: pytest.fail("begun"))
    (tmp_path / "photos").mkdir()
    Image.fromarray(texture(64, 5)).save(tmp_path / "photos" / "a.png")
    if content is not None:
        (tmp_path / "photos" / "a.png").write_bytes(content)
    save_shards(tmp_path / "shards", [view(0, 2)], "views")
    options = ["--shards", str(tmp_path / "shards"), "--photos", str(tmp_path / "photos"), "--teacher", str(teacher)]
    result = CliRunner().invoke(study.main, [*options, "-o", str(tmp_path / "o"), "--device", device])
    assert result.exit_code == code and text in result.output


def test_a_jump_between_two_scales_lowers_psnr_and_changes_sharpness() -> None:
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (16, 16, 3), np.uint8)
    lower, upper = (
        np.asarray(Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC)) for side in (64, 66)
    )
    blurred = np.asarray(Image.fromarray(upper).filter(ImageFilter.GaussianBlur(2)))
    (alike, sharp), (other, soft) = (jump.compare(lower, each) for each in (upper, blurred))
    assert alike > 35 > other
    assert 0.9 < sharp < 1.1 and soft < 0.7
