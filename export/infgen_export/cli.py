"""The command ``infgen-export``."""

from __future__ import annotations

import json
from pathlib import Path

import click

from infgen_rt.errors import InfGenError, InputError


@click.command(
    epilog="Example: infgen-export runs/edge/checkpoint --target onnx -o bundle",
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option(
    "--target", "targets", multiple=True, default=("onnx",), show_default=True, help="Format to export; repeatable."
)
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Bundle folder to make.")
@click.option("--model-version", default="0", show_default=True, help="Version of the weights, for the manifest.")
@click.option("--licence", default="unspecified", show_default=True, help="Licence of the weights, for the manifest.")
@click.option(
    "--training", default="unspecified", show_default=True, help="How the weights were made, for the manifest."
)
@click.option("--opset", default=20, show_default=True, type=click.IntRange(18, 23), help="ONNX operator set.")
@click.option("--force", is_flag=True, help="Replace an existing bundle.")
@click.option("--quiet", is_flag=True, help="Print nothing but errors.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def main(
    checkpoint: Path,
    targets: tuple[str, ...],
    output: Path,
    model_version: str,
    licence: str,
    training: str,
    opset: int,
    force: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Turns a trained CHECKPOINT folder into a verified bundle of graphs.

    Every graph is compared with PyTorch at shapes that were not used for tracing; a bundle that does not pass is not
    written.
    """
    try:
        from infgen_export.export import Card, export  # torch takes seconds to import; --help should not
    except ImportError as error:
        click.echo(f"Error: {error.name} is not installed: pip install 'infgen-rt[export]'", err=True)
        raise SystemExit(2) from None

    def say(line: str) -> None:
        if not quiet:
            click.echo(line, err=True)

    try:
        card = Card(model_version, licence, training)
        report = export(checkpoint, output, targets, card=card, opset=opset, force=force, progress=say)
    except InfGenError as error:
        click.echo(f"Error: {error}", err=True)
        raise SystemExit(2 if isinstance(error, InputError) else 1) from None
    if as_json:
        click.echo(json.dumps([entry.to_json() for entry in report.graphs], indent=2))
    elif not quiet:
        click.echo(report)
        click.echo(f"wrote {output}")


if __name__ == "__main__":
    main()
