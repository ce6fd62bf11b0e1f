"""Watches, or replaces, the runs of graphs."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import pytest

from infgen_rt.backend.engine import Engine
from infgen_rt.bundle.graphs import Kind

Run = Callable[[], Any]


def on_runs(patch: pytest.MonkeyPatch, kind: Kind, instead: Callable[[Run, Mapping[str, Any], bool], Any]) -> None:
    """Call `instead` with each run of a kind of graph, its inputs, and whether it shares the processor with others."""
    run = Engine.run

    def on_run(
        engine: Engine, ran: Kind, inputs: Mapping[str, Any], enlargement: Any = None, shared: bool = False
    ) -> Any:
        going = partial(run, engine, ran, inputs, enlargement, shared)
        return instead(going, inputs, shared) if ran.name == kind.name else going()

    patch.setattr(Engine, "run", on_run)
