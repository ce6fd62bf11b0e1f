"""Lets the pipelines of diffusers be imported without transformers, whose text encoders they only annotate with."""

import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from typing import Any

import pytest

# What the pipelines inherit from `diffusers.loaders`, which lacks these without transformers. It only loads weights.
LOADERS = (
    "FluxIPAdapterMixin",
    "Flux2LoraLoaderMixin",
    "FluxLoraLoaderMixin",
    "FromSingleFileMixin",
    "IPAdapterMixin",
    "SD3IPAdapterMixin",
    "SD3LoraLoaderMixin",
    "StableDiffusionLoraLoaderMixin",
    "StableDiffusionXLLoraLoaderMixin",
    "TextualInversionLoaderMixin",
)


class _Stub(types.ModuleType):
    """Stands for transformers. Prompts are given embedded."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


@contextmanager
def without_transformers() -> Iterator[None]:
    """Replace transformers by a stub if it is not installed. The pipelines that were imported meanwhile are removed."""
    import diffusers.loaders

    if "transformers" in sys.modules:
        yield
        return
    stub = _Stub("transformers")
    stub.__spec__ = ModuleSpec("transformers", None)
    before = set(sys.modules)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "transformers", stub)
        for name in LOADERS:
            patch.setattr(diffusers.loaders, name, type(name, (), {}), raising=False)
        yield
    for name in set(sys.modules) - before:
        if name.startswith("diffusers.pipelines."):
            del sys.modules[name]
