"""Compares this project with its alternatives on this machine: ``python -m benchmarks --quick``.

Every run is a new process. The methods are run in turns, so that other work on the machine slows all of them alike.
TAEF2 and Real-ESRGAN have trained weights if ``--teacher`` and ``--enlarger`` are given, and else random ones. The full
VAE always has random weights, because only its cost is measured.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import click

from benchmarks import methods, options, plots, report, suite
from benchmarks.cost import decoder_cost
from infgen_model.checkpoint import CheckpointError
from infgen_rt.bundle.folder import Bundle
from infgen_rt.errors import InputError
from infgen_training.options import FILE
from infgen_training.requests import read_baseline

CHECKPOINT = Path(__file__).parents[1] / "training" / "checkpoints" / "edge-flux2"


@click.command(cls=options.Command)
@click.option(
    "--quick/--full", default=True, show_default=True, help="Measure for ten minutes, or everything for over an hour."
)
@click.option(
    "--repeat",
    type=click.IntRange(min=1),
    default=2,
    show_default=True,
    help="Processes of each method, which make several pictures each. Methods that take tens of seconds run once.",
)
@click.option(
    "--teacher",
    type=FILE,
    help="Python file that loads TAEF2 with its weights.",
)
@click.option(
    "--enlarger",
    type=FILE,
    help="Python file with load_x4plus(), which loads Real-ESRGAN with its weights.",
)
@options.model
@click.option(
    "--checkpoint",
    type=click.Path(path_type=Path),
    default=CHECKPOINT,
    help="Checkpoint of the model, to count its multiply-adds.",
)
@click.option(
    "--quality",
    type=FILE,
    help="report.json of the evaluation command.",
)
@click.option(
    "--again",
    type=FILE,
    help="Make tables and plots of an earlier results.json, optionally with another --quality. Nothing is measured.",
)
@options.threads
@click.option(
    "-o", "--output", type=click.Path(file_okay=False, path_type=Path), help="Folder for JSON, table and plots."
)
def main(
    quick: bool,
    repeat: int,
    teacher: Path | None,
    enlarger: Path | None,
    model: Path,
    checkpoint: Path,
    quality: Path | None,
    again: Path | None,
    threads: int,
    output: Path | None,
) -> None:
    """Measures, and prints tables. With -o, it also writes results.json, results.md and plots."""
    try:  # this comes first, so that an unreadable file does not end a long run
        scales = read_baseline(quality)["scales"] if quality else {}
    except InputError as error:
        raise click.ClickException(f"--quality: {error}") from error
    if output:
        try:
            output.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise click.ClickException(f"{output} cannot be a folder: {error}") from error
    if again:
        results = suite.Results.load(again)
    else:
        extent = methods.QUICK if quick else methods.FULL
        weights = {name: file for name, file in (("taef2", teacher), ("esrgan", enlarger)) if file}
        Bundle.open(model)
        try:
            own = decoder_cost(checkpoint)  # before measuring, for the same reason
        except CheckpointError as error:
            raise click.ClickException(f"--checkpoint: {error}") from error
        with tempfile.TemporaryDirectory() as folder:
            results = suite.measure(
                extent, model, weights, threads, repeat, Path(folder), lambda line: click.echo(line, err=True)
            )
        results.own = own
    if quality:
        results.quality = scales
    text = report.markdown(results)
    click.echo(text)
    if output:
        results.save(output / "results.json")
        (output / "results.md").write_text(text + "\n")
        plots.draw(results, output)


if __name__ == "__main__":
    main()
