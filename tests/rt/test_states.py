"""What has ended, was cancelled or belongs to another process says so, with an error that its docstring names."""

import inspect
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import numpy as np
import pytest

import infgen_rt
from infgen_rt.errors import Cancelled, DecodeError
from infgen_rt.viewing import Pyramid, Request, Tile, TileReader
from infgen_rt.viewing.server import TileServer
from infgen_rt.writers import FORMATS

from . import tiny

LATENT = tiny.random_latent(18, 22)
SECONDS = 60


class Objects:
    """A decoder and an object of each public class that belongs to it."""

    def __init__(self, bundle: Path, folder: Path) -> None:
        self.folder = folder
        self.decoder = infgen_rt.open(bundle, "onnxruntime")
        self.picture = self.decoder.picture(LATENT, (642, 525), tile=64, normalisation="model")
        self.pyramid = Pyramid(self.picture)
        self.reader = TileReader(self.picture)
        self.last = Tile(len(self.reader.levels) - 1, 0, 0)

    def close(self) -> None:
        self.reader.close()
        self.decoder.close()


Use = tuple[Callable[..., Any], Callable[[Objects], object]]
# What needs the model: the function whose docstring names the error, and a call of it.
USES: dict[str, Use] = {
    "picture": (infgen_rt.Decoder.picture, lambda it: it.decoder.picture(LATENT)),
    "pictures": (infgen_rt.Decoder.picture, lambda it: it.decoder.pictures(LATENT[None])),
    "encode": (infgen_rt.Decoder.encode, lambda it: it.decoder.encode(np.zeros((64, 64, 3), np.uint8))),
    "read": (infgen_rt.Picture.read, lambda it: it.picture.read()),
    "read a region": (infgen_rt.Picture.read, lambda it: it.picture.read((0, 0, 8, 8))),
    "image": (infgen_rt.Picture.read, lambda it: it.picture.image()),
    "array": (infgen_rt.Picture.read, lambda it: np.asarray(it.picture)),
    "tiles": (infgen_rt.Picture.tiles, lambda it: next(it.picture.tiles())),
    "preview": (infgen_rt.Picture.preview, lambda it: it.picture.preview()),
    "at": (infgen_rt.Picture.at, lambda it: it.picture.at("2x")),
    **{
        f"save {ending}": (infgen_rt.Picture.save, lambda it, ending=ending: it.picture.save(it.folder / f"a{ending}"))
        for ending in FORMATS
    },
    "save_pictures": (infgen_rt.Picture.save, lambda it: saved(it)),
    "Pyramid.read": (Pyramid.read, lambda it: it.pyramid.read(it.last)),
    "Pyramid.region": (Pyramid.region, lambda it: it.pyramid.region(0, (0, 0, 4, 4))),
    "TileReader.read": (TileReader.read, lambda it: it.reader.read(it.last)),
    "Request.result": (Request.result, lambda it: it.reader.request(it.last).result(SECONDS)),
}
# What is also possible when the decoder is closed, or in another process.
FREE: dict[str, Callable[[Objects], object]] = {
    "facts": lambda it: (it.picture.size, it.picture.levels, it.picture.plan, it.pyramid.levels, it.decoder.manifest),
    "repr": lambda it: (repr(it.picture), repr(it.decoder)),
    "native_size": lambda it: it.decoder.native_size(LATENT),
    "check_save": lambda it: it.picture.check_save(it.folder / "b.png"),
    "keep": lambda it: it.picture.keep(100),
    "Pyramid": lambda it: Pyramid(it.picture),
    "cached": lambda it: it.reader.cached(it.last),
    "close": lambda it: (it.decoder.close(), it.decoder.close()),
    "close a reader": lambda it: (it.reader.close(), it.reader.close()),
}


def saved(objects: Objects) -> None:
    for error in infgen_rt.save_pictures([(objects.picture, objects.folder / "a.png")]).values():
        raise error


@pytest.fixture
def objects(bundle: Path, tmp_path: Path) -> Iterator[Objects]:
    made = Objects(bundle, tmp_path)
    yield made
    made.close()


@pytest.fixture(scope="module")
def forked(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What each use gave in a forked process: `ok`, or the class and the text of the error."""
    folder = tmp_path_factory.mktemp("forked")
    command = [sys.executable, "-W", "ignore", "-c", _FORKED, str(bundle), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=5 * SECONDS, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    assert list(folder.iterdir()) == []
    found: dict[str, str] = json.loads(done.stdout)
    return found


_FORKED = """
import json, os, sys
from pathlib import Path
from tests.rt.test_states import FREE, USES, Objects
objects = Objects(Path(sys.argv[1]), Path(sys.argv[2]))
process = os.fork()
if process:
    status = os.waitpid(process, 0)[1]
    objects.close()
    sys.exit(os.waitstatus_to_exitcode(status))
found = {}
for name, use in {**{name: use for name, (_, use) in USES.items()}, **FREE}.items():
    try:
        use(objects)
        found[name] = "ok"
    except Exception as error:
        found[name] = f"{type(error).__name__}: {error}"
print(json.dumps(found), flush=True)
"""
needs_fork = pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="processes are not forked here")


def named(function: Callable[..., Any]) -> str:
    """The section of a docstring that names the errors."""
    return inspect.getdoc(function).partition("Raises:")[2]  # type: ignore[union-attr]


@pytest.mark.parametrize("name", USES)
def test_a_closed_decoder_is_said_to_be_closed_by_all_that_needs_it(objects: Objects, name: str) -> None:
    function, use = USES[name]
    objects.decoder.close()
    with pytest.raises(DecodeError, match="the decoder is closed: read what you need before close"):
        use(objects)
    assert "DecodeError: " in named(function) and "the decoder is closed" in named(function)
    assert list(objects.folder.iterdir()) == []


@needs_fork
@pytest.mark.parametrize("name", USES)
def test_a_forked_process_is_told_so_by_all_that_needs_the_model(forked: dict[str, str], name: str) -> None:
    assert forked[name].startswith("DecodeError: this decoder was opened before the process was forked: start")


@pytest.mark.parametrize("name", FREE)
def test_what_does_not_need_the_model_is_still_possible(objects: Objects, name: str) -> None:
    objects.decoder.close()
    FREE[name](objects)


@needs_fork
@pytest.mark.parametrize("name", FREE)
def test_what_does_not_need_the_model_is_possible_in_a_forked_process(forked: dict[str, str], name: str) -> None:
    assert forked[name] == "ok"


CANCELLED: dict[str, Use] = {
    "open": (infgen_rt.open, lambda it: infgen_rt.open(it.decoder._engine._bundle.path, cancel=_yes)),
    "read": (infgen_rt.Picture.read, lambda it: it.picture.read(cancel=_yes)),
    "tiles": (infgen_rt.Picture.tiles, lambda it: next(it.picture.tiles(cancel=_yes))),
    "save": (infgen_rt.Picture.save, lambda it: it.picture.save(it.folder / "a.png", cancel=_yes)),
    "save_pictures": (
        infgen_rt.save_pictures,
        lambda it: infgen_rt.save_pictures([(it.picture, it.folder / "a.png")], cancel=_yes),
    ),
    "Pyramid.read": (Pyramid.read, lambda it: it.pyramid.read(it.last, cancel=_yes)),
    "Pyramid.region": (Pyramid.region, lambda it: it.pyramid.region(0, (0, 0, 4, 4), cancel=_yes)),
    "TileReader.read": (TileReader.read, lambda it: it.reader.read(it.last, cancel=_yes)),
    "Request.result": (Request.result, lambda it: _cancelled(it.reader)),
}


def _yes() -> bool:
    return True


def _cancelled(reader: TileReader) -> None:
    reader.close()
    reader.request(Tile(0, 0, 0)).result(SECONDS)


@pytest.mark.parametrize("name", CANCELLED)
def test_what_was_cancelled_is_cancelled(objects: Objects, name: str) -> None:
    function, use = CANCELLED[name]
    with pytest.raises(Cancelled, match="^cancelled$"):
        use(objects)
    assert "Cancelled: " in named(function)
    assert list(objects.folder.iterdir()) == []


def test_a_decoder_is_closed_by_the_first_block_that_ends(objects: Objects) -> None:
    with objects.decoder:
        with objects.decoder as inner:
            assert inner.picture(LATENT, normalisation="model").size
        with pytest.raises(DecodeError, match="the decoder is closed"):
            objects.decoder.picture(LATENT)
    with objects.decoder, pytest.raises(DecodeError, match="the decoder is closed"):
        objects.picture.read()


@pytest.mark.parametrize("end", ["exhausted", "closed", "failed"])
def test_an_iterator_that_has_ended_has_no_further_tiles(objects: Objects, end: str) -> None:
    stop = threading.Event()
    tiles = objects.picture.tiles(cancel=stop)
    next(tiles)
    if end == "exhausted":
        assert len(list(tiles)) > 3
    elif end == "closed":
        tiles.close()  # type: ignore[attr-defined]
    else:
        stop.set()
        with pytest.raises(Cancelled):
            list(tiles)
    assert list(tiles) == []


def test_an_iterator_says_so_when_the_decoder_is_closed_in_between(objects: Objects) -> None:
    tiles = objects.picture.tiles()
    next(tiles)
    objects.decoder.close()
    # Some tiles were decoded ahead.
    with pytest.raises(DecodeError, match="the decoder is closed"):
        list(tiles)
    assert list(tiles) == []


def at_once(use: Callable[[], object], count: int = 6) -> list[BaseException]:
    """Call a function in several threads at once, and return what they have raised."""
    errors: list[BaseException] = []
    ready = threading.Barrier(count)

    def run() -> None:
        ready.wait()
        try:
            use()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, daemon=True) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
    assert not any(thread.is_alive() for thread in threads)
    return errors


@pytest.mark.parametrize("name", ["decoder", "reader", "server"])
def test_several_threads_may_close_at_once(objects: Objects, name: str) -> None:
    server = TileServer([objects.picture])
    close = {"decoder": objects.decoder.close, "reader": objects.reader.close, "server": server.server_close}[name]
    assert at_once(close) == []
    server.server_close()


def test_those_who_read_while_another_thread_closes_are_told(objects: Objects) -> None:
    begun = threading.Event()

    def read() -> None:
        for _ in range(1000):
            objects.picture.keep(0)
            objects.picture.read()
            begun.set()

    closing = threading.Thread(target=lambda: begun.wait(SECONDS) and objects.decoder.close())
    closing.start()
    errors = at_once(read, 3)
    closing.join(SECONDS)
    assert len(errors) == 3
    assert all(isinstance(error, DecodeError) and "the decoder is closed" in str(error) for error in errors)


def test_a_server_answers_with_the_error_of_a_closed_decoder(objects: Objects) -> None:
    with TileServer([objects.picture]) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            objects.decoder.close()
            with pytest.raises(HTTPError) as raised:
                urlopen(f"{server.address}1/full/max/0/default.png", timeout=SECONDS)
            assert raised.value.code == 500 and b"the decoder is closed" in raised.value.read()
            assert urlopen(f"{server.address}1/info.json", timeout=SECONDS).status == 200
        finally:
            server.shutdown()
            thread.join()
    server.server_close()
