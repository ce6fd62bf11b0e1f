"""Whatever type an argument of a public function has, it is used as it means, or refused by its name.

What describes a latent, a size or an amount may be of several types, and gives the package's own errors. Anything else
gives a TypeError of one line, with the argument's name and what was expected.
"""

import inspect
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import infgen_rt
from infgen_rt import spaces
from infgen_rt.errors import InfGenError, InfGenWarning
from infgen_rt.viewing import Opener, Pyramid, Tile, TileReader, levels_of
from infgen_rt.viewing.server import TileServer

from . import tiny

LATENT = tiny.random_latent(4, 6)
# No argument takes the first of these.
VALUES: list[Any] = [
    object(),
    *(5, 2.5, -1, 0, 10**30, float("nan"), True, "text", b"x", "\0", "\ud800", Path("x/y")),
    *([], [1], {}, {1: 2}, (), {1}, (1, 2), ("a", "b"), [None, None], (1, 2, 3, 4), np.zeros(3), ValueError),
]
Call = Callable[..., Any]


class Case:
    """A public function with possible arguments.

    Args:
        function: the function, whose signature says which arguments it has.
        given: arguments that are possible.
        then: what is done with its result.
    """

    def __init__(self, function: Call, given: dict[str, Any] | None = None, then: Call = lambda result: None) -> None:
        self.function, self.given, self.then = function, given or {}, then
        self.arguments = [name for name in inspect.signature(function).parameters if name != "self"]

    def call(self, **changed: Any) -> None:
        self.then(self.function(**(self.given | changed)))


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Case]]:
    folder = tmp_path_factory.mktemp("types")
    bundle, file = tiny.write_bundle(folder / "bundle"), folder / "latent.npy"
    np.save(file, LATENT)
    space = spaces.latent_space("flux2")
    loading = {"path": file, "normalisation": "model"}
    converting = {"value": LATENT, "space": space, "normalisation": "model"}
    with infgen_rt.open(bundle, "onnxruntime") as decoder:
        picture = decoder.picture(LATENT, normalisation="model")
        pyramid, tile = Pyramid(picture, 16), Tile(0, 0, 0)
        with (
            TileReader(picture, tile=16) as reader,
            closing(Opener("1x", model=bundle, normalisation="model")) as opener,
        ):
            opening = {"path": bundle, "backend": "onnxruntime"}
            yield {
                "open": Case(infgen_rt.open, opening, lambda made: made.close()),
                "picture": Case(decoder.picture, {"latent": LATENT, "normalisation": "model"}),
                "pictures": Case(decoder.pictures, {"latents": LATENT, "normalisation": "model"}),
                "native_size": Case(decoder.native_size, {"latent": LATENT}),
                "encode": Case(decoder.encode),
                "read": Case(picture.read),
                "tiles": Case(picture.tiles, then=list),
                "at": Case(picture.at),
                "keep": Case(picture.keep),
                "preview": Case(picture.preview),
                "save": Case(picture.save, {"path": folder / "out.png", "force": True}),
                "save .jpg": Case(picture.save, {"path": folder / "out.jpg", "force": True}),
                "check_save": Case(picture.check_save, {"path": folder / "checked.dzi"}),
                "load_latent": Case(infgen_rt.load_latent, loading),
                "load_latents": Case(infgen_rt.load_latents, loading),
                "load_sample": Case(infgen_rt.load_sample),
                "display_size": Case(infgen_rt.display_size),
                "fit": Case(infgen_rt.fit, {"native": (64, 48), "target": (100, 100), "how": "cover"}),
                "Bundle.open": Case(infgen_rt.Bundle.open, {"path": bundle}),
                "latent_space": Case(spaces.latent_space),
                "as_latent": Case(spaces.as_latent, converting),
                "as_latents": Case(spaces.as_latents, converting),
                "space_of": Case(spaces.space_of, {"value": LATENT}),
                "levels_of": Case(levels_of, {"size": picture.size}),
                "Pyramid": Case(Pyramid, {"picture": picture}),
                "Pyramid.box": Case(pyramid.box),
                "Pyramid.read": Case(pyramid.read, {"tile": tile}),
                "Pyramid.region": Case(pyramid.region, {"level": 0, "box": (0, 0, 4, 4)}),
                "TileReader": Case(TileReader, {"picture": picture}, lambda made: made.close()),
                "TileReader.cached": Case(reader.cached, {"tile": tile}),
                "TileReader.read": Case(reader.read, {"tile": tile}),
                "TileReader.request": Case(reader.request, {"tile": tile}, lambda made: made.cancel()),
                "TileReader.want": Case(reader.want, {"tiles": [tile]}),
                "Opener.open": Case(opener.open, {"path": file, "cancel": None}),
                "TileServer": Case(TileServer, {"pictures": [picture]}, lambda made: made.server_close()),
            }


def refusal(call: Call, argument: str, value: Any) -> str | None:
    """The message with which a value is refused, or None if it is used. Any other error fails the test."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InfGenWarning)
        try:
            call(**{argument: value})
        except InfGenError as error:
            assert str(error) and "\n" not in str(error)
            return str(error)
        except TypeError as error:
            assert re.fullmatch(rf"{argument} is .*: expected .*", str(error)), (argument, value)
            return str(error)
    return None


def test_every_argument_of_a_wrong_type_is_refused_by_its_name(cases: dict[str, Case]) -> None:
    used = [
        f"{name}: {argument}"
        for name, case in cases.items()
        for argument in case.arguments
        if refusal(case.call, argument, VALUES[0]) is None
    ]
    assert used == []


@pytest.mark.parametrize("value", VALUES[1:], ids=repr)
def test_no_value_gives_an_error_that_is_not_about_it(cases: dict[str, Case], value: Any) -> None:
    for case in cases.values():
        for argument in case.arguments:
            if value is not ValueError or argument not in ("progress", "cancel", "done"):  # a class can be called
                refusal(case.call, argument, value)
