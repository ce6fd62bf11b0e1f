"""Makes shards, trains a model and evaluates it, all within a given time.

Usage: ``python -m infgen_training.session --photos DIR --val DIR ... -o SESSION --minutes 28``.

It is meant for a device that is available for a limited time, such as half an hour. If the command is run again, it
uses the existing shards and continues the training run. By default, the learning-rate schedule ends with the first
session. ``--set minutes=N`` spreads the schedule over several sessions. To try the command on a CPU, use ``--minutes
3`` and a few photographs.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import click

from infgen_rt.errors import InputError
from infgen_training import train, views
from infgen_training.losses import Vgg
from infgen_training.options import COUNT, FILE, FOLDER, MIDDLE, MINUTES, device_option
from infgen_training.photos import photo_files
from infgen_training.teacher import AUTOENCODER, AUTOENCODER_HELP

_MAKING = 0.2
"""Share of the session's time in which views with sharp pictures are made."""
_EVALUATING = 0.12
"""Share of the session's time that is reserved for the evaluation."""


@click.command()
@click.option("--photos", type=FOLDER, required=True, help="Folder of photographs to train on.")
@click.option("--val", type=FOLDER, required=True, help="Folder of photographs to evaluate on.")
@click.option("--teacher", type=AUTOENCODER, required=True, help=AUTOENCODER_HELP)
@click.option("--enlarger", type=FILE, required=True, help="Python file with load_x4plus() and load_animevideo().")
@click.option("--vgg", type=FILE, help="Weights of LPIPS with VGG16, for LPIPS and the adversary.")
@click.option(
    "--fonts", type=FOLDER, help="Folder of fonts, for a quarter as many views with drawn letters and shapes."
)
@click.option("--start", type=FOLDER, help="Checkpoint to start from. Default: the teacher and the enlarger.")
@train.OTHERS
@click.option("--count", type=COUNT, default=340, show_default=True, help="Maximum number of views of each kind.")
@click.option("--minutes", type=MINUTES, default=28.0, show_default=True, help="Length of the session.")
@click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="Same as in infgen_training.train.")
@click.option("--evaluate/--no-evaluate", "evaluated", default=True, show_default=True, help="Evaluate at the end.")
@click.option(
    "--middle", type=MIDDLE, default=448, show_default=True, help="Side of the squares that are evaluated, in pixels."
)
@click.option("--eye/--no-eye", default=True, show_default=True, help="Measure LPIPS and patch Frechet distances.")
@device_option
@click.option("-o", "--session", type=click.Path(file_okay=False, path_type=Path), required=True)
def main(
    photos: Path, val: Path, teacher: Path, enlarger: Path, vgg: Path | None, fonts: Path | None,
    start: Path | None, others: tuple[tuple[Path, Path], ...], count: int, minutes: float, settings: tuple[str, ...],
    evaluated: bool, middle: int, eye: bool, device: str, session: Path,
) -> None:  # fmt: skip
    """Makes shards, trains a model and evaluates it, all within a given time."""
    began = time.monotonic()
    shards, run = session / "shards", session / "run"
    # What is missing is found before any time is spent.
    try:
        evaluation = _evaluation(eye) if evaluated else None
        if evaluated:
            photo_files(val)
        if vgg:
            Vgg(vgg)
        config = train.config_of(run, settings)
    except (InputError, FileNotFoundError) as error:
        raise click.ClickException(str(error)) from error

    def left() -> float:
        return minutes - (time.monotonic() - began) / 60

    if not shards.exists():
        # The folder gets its name when it has views of both kinds. A session that was stopped before starts again.
        making = shards.with_name(f"{shards.name}.part")
        shutil.rmtree(making, ignore_errors=True)
        source = ("--photos", photos, "--teacher", teacher, "--device", device, "-o", making)
        _call(views.main, *source, "--count", count)
        if fonts:
            _call(views.main, *source, "--count", max(1, count // 4), "--fonts", fonts)
        _call(views.main, *source, "--count", count, "--enlarger", enlarger, "--minutes", _MAKING * minutes)
        making.rename(shards)
    options: list[object] = ["--shards", shards, "--device", device, "-o", run]
    options += ["--start", start] if start else ["--enlarger", enlarger]
    options += ["--teacher", teacher] if start is None or config.part == "trunk" else []
    options += ["--vgg", vgg] if vgg else []
    for checkpoint, autoencoder in others:
        options += ["--other", checkpoint, autoencoder]
    training = left() - (_EVALUATING * minutes if evaluated else 0.0)
    if training <= 0:
        raise click.ClickException(f"{minutes:g} minutes are over before training starts: use --minutes or --count")
    schedule = () if (run / "train.json").exists() else (f"minutes={training}",)
    for setting in (*schedule, *settings):
        options += ["--set", setting]
    _call(train.main, *options, "--minutes", training)
    if evaluation is not None:
        known = ("--photos", val, "--teacher", teacher, "--enlarger", enlarger, "-o", session / "report")
        _call(evaluation, run / "checkpoint", *known, "--middle", middle, *(() if eye else ("--no-eye",)))
    click.echo(f"{minutes - left():.1f} of {minutes:g} minutes")


def _evaluation(eye: bool) -> click.Command:
    """The command that evaluates. Its packages are not needed without it.

    Raises:
        InputError: A package is missing.
    """
    try:
        from infgen_training import evaluate
        from infgen_training.perception import Eye
    except ImportError as error:
        raise InputError(
            f"the evaluation cannot run: {error}; install the extra train, or use --no-evaluate"
        ) from error
    if eye:
        Eye()
    return evaluate.main


def _call(command: click.Command, *arguments: object) -> None:
    command.main([str(each) for each in arguments], standalone_mode=False)


if __name__ == "__main__":
    main()
