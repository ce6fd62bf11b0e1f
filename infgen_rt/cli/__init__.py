"""The command `infgen-rt`."""

from infgen_rt.cli.main import main

__all__ = ["main"]
