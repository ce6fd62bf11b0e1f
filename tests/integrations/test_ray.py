"""Ray Data with `infgen_rt.ray.Decode`: on a local cluster of two workers, and without a cluster what needs none."""

import io
import os
import secrets
import signal
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import infgen_rt
from infgen_rt.errors import LatentError, OutputError

from ..rt import tiny

ray = pytest.importorskip("ray")
data = pytest.importorskip("ray.data")

SIZE = (96, 80)
COUNT = 6


def latents() -> list[np.ndarray]:
    return [tiny.random_latent(5, 6, seed) for seed in range(COUNT)]


@pytest.fixture(scope="module")
def expected(bundle: Path) -> dict[str, np.ndarray]:
    """The pictures that the library makes, by key."""
    with infgen_rt.open(bundle, "onnxruntime") as decoder:
        pictures = [decoder.picture(latent, SIZE, normalisation="model").read() for latent in latents()]
    return {f"a/{number}": pixels for number, pixels in enumerate(pictures)}


@pytest.fixture
def options(bundle: Path) -> dict[str, Any]:
    return {"path": str(bundle), "backend": "onnxruntime", "size": SIZE, "normalisation": "model"}


def pixels(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)))


def batch(**columns: Any) -> dict[str, np.ndarray]:
    rows = {"key": np.array([f"a/{number}" for number in range(COUNT)], object), "latent": np.stack(latents())}
    return rows | columns


def test_a_column_has_complete_files(options: dict[str, Any], expected: dict[str, np.ndarray]) -> None:
    result = infgen_rt.ray.Decode(**options)(batch(caption=np.arange(COUNT)))
    assert list(result) == ["key", "caption", "png"]
    for key, content in zip(result["key"], result["png"], strict=True):
        assert np.array_equal(pixels(content), expected[key])


def test_latents_may_be_nested_lists_or_files(options: dict[str, Any], expected: dict[str, np.ndarray]) -> None:
    def nested(array: np.ndarray) -> np.ndarray:
        made = np.empty(len(array), object)
        made[:] = [nested(part) if part.ndim > 1 else part for part in array]
        return made

    stream = io.BytesIO()
    np.save(stream, latents()[1])
    column = np.empty(2, object)
    column[:] = [nested(latents()[0]), stream.getvalue()]
    result = infgen_rt.ray.Decode(**options)({"key": np.array(["a/0", "a/1"]), "latent": column})
    assert [np.array_equal(pixels(content), expected[f"a/{row}"]) for row, content in enumerate(result["png"])] == [
        True,
        True,
    ]


def test_a_folder_has_files_by_key_and_none_is_decoded_again(
    options: dict[str, Any], expected: dict[str, np.ndarray], tmp_path: Path
) -> None:
    decode = infgen_rt.ray.Decode(**options, folder=tmp_path / "pictures", root="/latents")
    keys = np.array([f"/latents/a/{number}" for number in range(COUNT)], object)
    first = decode(batch(key=keys))["file"]
    assert list(first) == [str(tmp_path / "pictures" / f"{key}.png") for key in expected]
    for name, key in zip(first, expected, strict=True):
        assert np.array_equal(np.asarray(Image.open(name)), expected[key])
    Path(first[0]).unlink()
    before = [Path(name).stat().st_mtime_ns for name in first[1:]]
    assert list(decode(batch(key=keys))["file"]) == list(first)
    assert [Path(name).stat().st_mtime_ns for name in first[1:]] == before and Path(first[0]).exists()


def test_what_is_wrong_is_said_with_the_key(options: dict[str, Any], tmp_path: Path) -> None:
    decode = infgen_rt.ray.Decode(**options)
    with pytest.raises(LatentError, match=r"no column 'latent', but key, bytes: name the column of the latents"):
        decode({"key": np.array(["1"]), "bytes": np.array([b""])})
    with pytest.raises(LatentError, match=r"'b/7': shape \[3, 5, 6\]"):
        decode({"key": np.array(["b/7"]), "latent": np.zeros((1, 3, 5, 6), np.float32)})
    for column, changed in (("png", {}), ("key", {"column": "key"}), ("file", {"folder": tmp_path})):
        full = {"key": np.array(["1"]), "latent": np.zeros((1, 4, 5, 6), np.float32), column: np.array(["kept"])}
        with pytest.raises(LatentError, match=rf"has a column '{column}' already, which the results would replace"):
            infgen_rt.ray.Decode(**options | changed)(full)
    broken = np.empty(1, object)
    broken[0] = b"no latent"
    with pytest.raises(LatentError, match=r"'b/8': its latent is damaged"):
        decode({"key": np.array(["b/8"]), "latent": broken})
    for parts in ([np.zeros((5, 6)), np.zeros((5, 7))], []):
        broken[0] = np.empty(len(parts), object)
        broken[0][:] = parts
        with pytest.raises(LatentError, match=r"'b/9': its parts are not of one shape"):
            decode({"key": np.array(["b/9"]), "latent": broken})
    with pytest.raises(OutputError, match=r"the folder pictures depends on where a worker runs: pass an absolute path"):
        infgen_rt.ray.Decode(**options, folder="pictures")
    with pytest.raises(OutputError, match=r"a \.dzi is many files, and a row has one"):
        infgen_rt.ray.Decode(**options, ending="dzi")
    save = infgen_rt.ray.Decode(**options, folder=tmp_path)
    for key in ("/latents/1.npy", "../1", ""):
        with pytest.raises(OutputError, match=r"the key is not a name inside the folder"):
            save({"key": np.array([key]), "latent": np.stack(latents()[:1])})
    assert not any(tmp_path.iterdir())
    (tmp_path / "taken").touch()
    for key, text in {
        "a" * 300: r"'a{300}': a{60}\.\.\. is too long for the file system",
        "nul\0/x": r"cannot be a file's name",
        "taken/x": r"'taken/x': .*taken",
    }.items():
        with pytest.raises(OutputError, match=text):
            save({"key": np.array([key], object), "latent": np.stack(latents()[:1])})


# What needs a cluster.


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A cluster on this machine, with processors for two workers and for what reads and writes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))  # otherwise it writes one to the home folder
        ray.init(num_cpus=4, object_store_memory=10**8, include_dashboard=False, log_to_driver=False)
        context = data.DataContext.get_current()
        context.enable_progress_bars = False
        context.use_datasource_v2 = False  # its reader of Parquet starts 32 processes
        yield
        ray.shutdown()


@pytest.fixture
def decoding(options: dict[str, Any]) -> dict[str, Any]:
    """How `map_batches` is called: two actors with a processor each, one latent at a time."""
    actors = data.ActorPoolStrategy(size=2)
    return {"compute": actors, "num_cpus": 1, "batch_size": 1, "fn_constructor_kwargs": options}


def rows() -> Any:
    """The data set, in as many blocks as it has rows."""
    items = [{"key": f"a/{number}", "latent": latent} for number, latent in enumerate(latents())]
    return data.from_items(items, override_num_blocks=COUNT)


def unreliable(folder: Path, kill: bool) -> type:
    """`Decode` that notes what it decodes. At the fourth latent it is killed, or fails, once."""

    class Unreliable(infgen_rt.ray.Decode):
        def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            name = str(batch[self._key][0]).replace("/", "_")
            if name.endswith("3") and not (folder / "failed").exists():
                (folder / "failed").touch()
                if kill:
                    os.kill(os.getpid(), signal.SIGKILL)
                raise MemoryError("this worker has had enough")
            result = super().__call__(batch)
            with (folder / f"{name}.txt").open("a") as note:
                note.write("decoded\n")
            return result

    return Unreliable


def decoded(folder: Path) -> dict[str, int]:
    """How often each latent was decoded."""
    return {file.stem.replace("_", "/"): len(file.read_text().split()) for file in folder.glob("*.txt")}


def assert_complete(found: list[dict[str, Any]], expected: dict[str, np.ndarray]) -> None:
    assert Counter(row["key"] for row in found) == Counter(expected.keys())
    for row in found:
        assert_near(pixels(row["png"]), expected[row["key"]])


def assert_near(found: np.ndarray, expected: np.ndarray) -> None:
    """Within one level, because an actor has another number of threads."""
    assert found.shape == expected.shape and np.abs(found.astype(int) - expected).max() <= 1


@pytest.mark.slow
def test_a_worker_that_is_killed_loses_nothing_and_decodes_nothing_twice_into_shards(
    cluster: None, decoding: dict[str, Any], expected: dict[str, np.ndarray], tmp_path: Path
) -> None:
    notes, shards = tmp_path / "notes", tmp_path / "shards"
    notes.mkdir()
    rows().map_batches(unreliable(notes, kill=True), **decoding).write_parquet(str(shards))
    assert (notes / "failed").exists()
    assert_complete(_shards(shards), expected)
    assert decoded(notes).keys() == expected.keys()


@pytest.mark.slow
def test_a_worker_that_is_killed_leaves_a_complete_folder(
    cluster: None, decoding: dict[str, Any], expected: dict[str, np.ndarray], tmp_path: Path
) -> None:
    notes, folder = tmp_path / "notes", tmp_path / "pictures"
    notes.mkdir()
    decoding["fn_constructor_kwargs"] |= {"folder": str(folder)}
    files = rows().map_batches(unreliable(notes, kill=True), **decoding).take_all()
    assert (notes / "failed").exists()
    assert sorted(row["file"] for row in files) == sorted(str(folder / f"{key}.png") for key in expected)
    found = [file for file in folder.rglob("*") if file.is_file()]
    assert sorted(map(str, found)) == sorted(row["file"] for row in files)
    for key, picture in expected.items():
        assert_near(np.asarray(Image.open(folder / f"{key}.png")), picture)


@pytest.mark.slow
def test_a_program_that_failed_goes_on_where_it_stopped(
    cluster: None, decoding: dict[str, Any], expected: dict[str, np.ndarray], tmp_path: Path
) -> None:
    """With Ray Data's checkpoints: the second run decodes what the first has not written."""
    notes, shards, source = tmp_path / "notes", tmp_path / "shards", tmp_path / "latents"
    notes.mkdir()
    rows().write_parquet(str(source))
    context = data.DataContext.get_current()
    context.checkpoint_config = data.checkpoint.CheckpointConfig("key", str(tmp_path / "checkpoint"))
    # The filter of rows that are done has a processor too, and so has the actor of the first run for a while.
    decoding |= {"compute": data.ActorPoolStrategy(size=1)}
    try:
        for run in range(2):
            pictures = data.read_parquet(str(source)).map_batches(unreliable(notes, kill=False), **decoding)
            if run == 0:
                with pytest.raises(Exception, match="this worker has had enough"):
                    pictures.write_parquet(str(shards))
                written = {row["key"] for row in _shards(shards)}
                assert len(written) < COUNT
            else:
                pictures.write_parquet(str(shards))
    finally:
        context.checkpoint_config = None
    assert_complete(_shards(shards), expected)
    assert all(decoded(notes)[key] == 1 for key in written)


def _shards(folder: Path) -> list[dict[str, Any]]:
    import pyarrow.parquet

    found = sorted(folder.glob("*.parquet")) if folder.exists() else []
    return [row for file in found for row in pyarrow.parquet.read_table(file).to_pylist()]


def _tars(folder: Path) -> list[dict[str, Any]]:
    rows = []
    for file in folder.glob("*.tar"):
        with tarfile.open(file) as tar:
            for member in tar:
                content = tar.extractfile(member)
                assert content is not None
                rows.append({"key": member.name.removesuffix(".png").replace("_", "/"), "png": content.read()})
    return rows


@pytest.mark.slow
def test_latents_come_from_a_folder_and_from_webdataset_and_pictures_go_to_webdataset(
    cluster: None, decoding: dict[str, Any], expected: dict[str, np.ndarray], tmp_path: Path
) -> None:
    source, shards, pictures = tmp_path / "latents" / "a", tmp_path / "shards", tmp_path / "pictures"
    source.mkdir(parents=True)
    for number, latent in enumerate(latents()):
        np.save(source / f"{number}.npy", latent)
    options = decoding.pop("fn_constructor_kwargs")
    files = data.read_binary_files(str(tmp_path / "latents"), include_paths=True)
    own = options | {"latent": "bytes", "key": "path", "folder": str(pictures), "root": str(tmp_path / "latents")}
    made = files.map_batches(infgen_rt.ray.Decode, fn_constructor_kwargs=own, **decoding).take_all()
    assert {Path(row["file"]).relative_to(pictures).as_posix() for row in made} == {
        f"{key}.npy.png" for key in expected
    }
    tar = [{"__key__": f"a_{number}", "npy": latent} for number, latent in enumerate(latents())]
    data.from_items(tar).write_webdataset(str(shards))
    read = data.read_webdataset(str(shards), decoder=False)
    own = options | {"latent": "npy", "key": "__key__"}
    samples = read.map_batches(infgen_rt.ray.Decode, fn_constructor_kwargs=own, **decoding)
    samples.write_webdataset(str(pictures / "tar"), encoder=None)
    assert_complete(_tars(pictures / "tar"), expected)
