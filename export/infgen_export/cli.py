"""The command ``infgen-export``."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import click

from infgen_rt.cli.console import say as say_result
from infgen_rt.errors import InfGenError, InputError, reason

_RECIPES = "recipes"
_UNSPECIFIED = "unspecified"


class _Named(click.Path):
    """A path, which need not exist. Click would take an empty one for the current folder."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "":
            self.fail("it is empty: pass a folder, or set the variable that its name comes from", param, ctx)
        return super().convert(value, param, ctx)


_NAMED = _Named(path_type=Path)


class _Command(click.Command):
    """The command, which prints the list of recipes for ``infgen-export recipes``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args[:1] == [_RECIPES]:
            if set(args[1:]) & set(ctx.help_option_names):
                return super().parse_args(ctx, args[1:])
            if args[1:]:
                ctx.fail(f"{_RECIPES} takes no options: for a checkpoint in a folder of this name, pass ./{_RECIPES}")
            click.echo(_recipes())
            ctx.exit()
        return super().parse_args(ctx, args)

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        return [*super().collect_usage_pieces(ctx), "|", _RECIPES]


@click.command(
    cls=_Command,
    epilog="Example: infgen-export runs/edge/checkpoint --target onnx --target openvino -o bundle. "
    "'infgen-export recipes' lists what a target can be exported as.",
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.argument("checkpoints", metavar="CHECKPOINT...", nargs=-1, required=True, type=_NAMED)
@click.option(
    "--target",
    "targets",
    multiple=True,
    help="A target that 'infgen-export recipes' lists, or 'all'; repeatable.  [default: those of the recipes, or onnx]",
)
@click.option(
    "--recipe",
    "recipes",
    multiple=True,
    help="Name of a recipe, or 'all' for every recipe of the targets; repeatable.  [default: the targets' defaults]",
)
@click.option("-o", "--output", required=True, type=_NAMED, help="Folder of the bundle to write.")
@click.option("--model-version", default="0", show_default=True, help="Version of the weights, for the manifest.")
@click.option("--licence", default=_UNSPECIFIED, show_default=True, help="Licence of the weights, for the manifest.")
@click.option(
    "--training", default=_UNSPECIFIED, show_default=True, help="How the weights were made, for the manifest."
)
@click.option(
    "--leave-out",
    multiple=True,
    metavar="PATTERN",
    help="Leave out graphs that pictures do not need, such as '*.encode'; repeatable.",
)
@click.option("--opset", default=20, show_default=True, type=int, help="ONNX operator set.")
@click.option("--min-deployment-target", default="iOS18", show_default=True, help="Oldest system for Core ML programs.")
@click.option("--validate/--no-validate", default=True, show_default=True, help="Compare every graph with PyTorch.")
@click.option("--keep-going", is_flag=True, help="After a failure, try the other graphs too. No bundle is written.")
@click.option(
    "--report",
    "reports",
    multiple=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the report to a .md or .json file; repeatable.",
)
@click.option("--force", is_flag=True, help="Replace an existing bundle.")
@click.option("--quiet", is_flag=True, help="Print nothing but errors.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def main(
    checkpoints: tuple[Path, ...],
    targets: tuple[str, ...],
    recipes: tuple[str, ...],
    output: Path,
    model_version: str,
    licence: str,
    training: str,
    opset: int,
    leave_out: tuple[str, ...],
    min_deployment_target: str,
    validate: bool,
    keep_going: bool,
    reports: tuple[Path, ...],
    force: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Turns a trained CHECKPOINT folder into a verified bundle of graphs.

    Several checkpoints are written into one bundle. They must be for different latent spaces, and share all weights
    that do not belong to a space.

    Every graph is compared with PyTorch at shapes that were not used for tracing. The bundle is written only if all
    graphs pass.
    """
    for number in (signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)):
        # A handler of somebody else's stays, and so does nohup's.
        if signal.getsignal(number) == signal.SIG_DFL:
            with contextlib.suppress(ValueError):  # not in the main thread
                signal.signal(number, lambda ended, _: sys.exit(128 + ended))
    for file in reports:
        writable = os.path.isdir(file.parent) and os.access(file if os.path.exists(file) else file.parent, os.W_OK)
        if file.suffix not in {".md", ".json"} or not writable:
            raise click.BadParameter(
                f"{file} must end in .md or .json, in a folder that exists and is writable", param_hint="--report"
            )
    try:
        from infgen_export.description import Card
        from infgen_export.errors import ExportError
        from infgen_export.pipeline import export  # torch takes seconds to import; --help should not
        from infgen_export.targets import Options
    except ImportError as error:
        click.echo(f'Error: {error.name} is not installed: pip install "infgen-rt[export]"', err=True)
        raise SystemExit(2) from None

    def say(line: str) -> None:
        if not quiet:
            click.echo(line, err=True)

    try:
        report = export(
            checkpoints,
            output,
            targets,
            recipes,
            card=Card(model_version, licence, training),
            options=Options(opset, min_deployment_target),
            leave_out=leave_out,
            validate=validate,
            keep_going=keep_going,
            force=force,
            progress=say,
        )
    except InfGenError as error:
        if isinstance(error, ExportError) and error.report:
            _write(reports, error.report)
            say(str(error.report))
            if as_json:
                say_result(json.dumps(error.report.to_json(), indent=2))
        click.echo(f"Error: {error}", err=True)
        raise SystemExit(2 if isinstance(error, InputError) else 1) from None
    written = _write(reports, report)
    if as_json:
        try:
            say_result(json.dumps(report.to_json(), indent=2), needed=True)
        except InfGenError as error:
            click.echo(f"Error: {error}; {output} is written", err=True)
            raise SystemExit(1) from None
    elif not quiet:
        say_result(str(report))
        say_result(f"wrote {output}" + ("" if validate else ", whose graphs were not verified"))
        if licence == _UNSPECIFIED:
            say_result("its manifest names no licence of the weights: pass --licence and --model-version")
    if not written:
        raise SystemExit(1)


def _write(files: tuple[Path, ...], report: Any) -> bool:
    """Writes the report to each file, as JSON or Markdown by the file's ending. Says so if it cannot be written."""
    written = True
    for file in files:
        text = json.dumps(report.to_json(), indent=2) + "\n" if file.suffix == ".json" else report.to_markdown()
        try:
            file.write_text(text, encoding="utf-8")
        except OSError as error:
            click.echo(f"Error: the report cannot be written to {file}: {reason(error)}", err=True)
            written = False
    return written


def _recipes() -> str:
    """The table that ``infgen-export recipes`` prints."""
    from infgen_export.recipes import RECIPES

    rows = [("recipe", "target", "precision", "shapes", "for")]
    for recipe in RECIPES:
        shapes = ("dynamic", "fixed", "enumerated")[min(2, len(recipe.tiles))]
        about = recipe.about + (" (default)" if recipe.default else "")
        rows.append((recipe.name, recipe.target, recipe.precision, shapes, about))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return "\n".join(
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]]) for row in rows
    )


if __name__ == "__main__":
    main()
