"""Writes tables in Markdown."""

from __future__ import annotations


def head(*names: object) -> str:
    """The first two lines of a table: the names of its columns, and the line below them."""
    return f"{row(*names)}\n{'|---' * len(names)}|"


def row(*cells: object) -> str:
    """A line of a table."""
    return f"| {' | '.join(map(str, cells))} |"
