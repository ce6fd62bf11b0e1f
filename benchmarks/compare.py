"""Shows what became slower, larger or worse between two runs: ``python -m benchmarks.compare OLD.json NEW.json``."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from benchmarks import options
from benchmarks.suite import Results
from infgen_training.options import FILE

NOISE = 0.10
"""Smallest relative difference that is reported, even if the samples of a run differ by less."""
QUALITY = {"lpips": 0.001, "frechet": 0.5, "psnr": 0.02, "ssimulacra2": 0.1, "flat": 0.05, "vivid": 0.1}
"""Smallest difference of each quality metric that is reported. Rounding and threads change the metrics by less."""
LOWER = ("lpips", "frechet", "flat", "vivid")
"""Quality metrics that are better when lower."""


def changes(old: dict[str, Any], new: dict[str, Any]) -> Iterator[tuple[str, float, float, bool]]:
    """Finds the figures of two runs that differ by more than the noise.

    Args:
        old: The earlier ``results.json``.
        new: The later ``results.json``.

    Yields:
        The figure's name, its medians before and after, and whether it got worse.
    """
    for job, methods in old["runs"].items():
        for method, before in methods.items():
            after = new["runs"].get(job, {}).get(method)
            for name in ("seconds", "again", "peak") if after else ():
                yield from _change(f"{method}, {job}: {name}", before, after, name)
    for method, before in old["viewport"].items():
        if after := new["viewport"].get(method):
            for name in ("seconds", "again", "moved", "peak"):
                yield from _change(f"{method}, viewport: {name}", before, after, name)
    for method, before in old["starts"].items():
        if after := new["starts"].get(method):
            for name in ("first", "finished", "peak"):
                yield from _change(f"{method}, start: {name}", before, after, name)
    for scale, costs in old["own"].items():
        for name, cost in costs.items():
            if now := new["own"].get(scale, {}).get(name):
                yield from _change(f"multiply-adds, {scale}: {name}", [{"cost": cost}], [{"cost": now}], "cost")
    for scale, methods in old["quality"].items():
        for method, levels in methods.items():
            for name, least in QUALITY.items():
                was, now = levels.get(name), new["quality"].get(scale, {}).get(method, {}).get(name)
                if was is not None and now is not None and abs(now - was) > least:
                    yield f"{method}, scale {scale}: {name}", was, now, (now > was) == (name in LOWER)
    for name, size in old["installed"].items():
        if now := new["installed"].get(name):
            yield from _change(f"{name}: installed bytes", [{"size": size}], [{"size": now}], "size")


def vanished(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """What was measured before and is not any more, by the names of jobs, methods, scales and packages."""
    found = []
    for part in ("runs", "quality", "own"):
        for key, methods in old[part].items():
            now = new[part].get(key, {})
            found += [f"{method}, {key}" for method in methods if method not in now]
            if part == "quality":
                found += [
                    f"{method}, {key}: {name}"
                    for method in methods
                    for name, value in methods[method].items()
                    if method in now and name in QUALITY and value is not None and now[method].get(name) is None
                ]
    for part in ("viewport", "starts", "installed"):
        found += [f"{name}: {part}" for name in old[part] if name not in new[part]]
    return found


def _change(
    what: str, before: Sequence[dict[str, float]], after: Sequence[dict[str, float]], name: str
) -> Iterator[tuple[str, float, float, bool]]:
    if not all(name in entry for entry in (*before, *after)):  # an older run has fewer figures
        return
    first, second = ([entry[name] for entry in runs] for runs in (before, after))
    low, high = statistics.median(first), statistics.median(second)
    # The noise is the larger spread of the samples of the two runs, and at least a fixed share.
    noise = max(NOISE * low, max(first) - min(first), max(second) - min(second))
    if abs(high - low) > noise:
        yield what, low, high, high > low


@click.command(cls=options.Command)
@click.argument("old", type=FILE)
@click.argument("new", type=FILE)
def main(old: Path, new: Path) -> None:
    """Compares the results.json of two runs.

    The exit status is 1 if a figure became worse by more than the noise, or is missing in the second run.
    """
    before, after = (asdict(Results.load(file)) for file in (old, new))
    if before["machine"]["processor"] != after["machine"]["processor"]:
        raise click.ClickException("the two runs are from different processors: compare two runs from the same machine")
    found = list(changes(before, after))
    for what, low, high, worse in found:
        click.echo(f"{'WORSE ' if worse else 'better'} {what}: {low:.4g} -> {high:.4g} ({high / low - 1:+.0%})")
    missing = vanished(before, after)
    for what in missing:
        click.echo(f"MISSING {what}")
    if not found and not missing:
        click.echo("nothing changed by more than the noise")
    raise SystemExit(bool(missing) or any(worse for *_, worse in found))


if __name__ == "__main__":
    main()
