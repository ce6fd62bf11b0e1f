"""`infgen-rt unpack`."""

from pathlib import Path

import click

from infgen_rt.bundle.unpacking import unpack as write_packages
from infgen_rt.cli import options
from infgen_rt.cli.console import say
from infgen_rt.latent.spaces import latent_space


@click.command(
    cls=options.Command,
    epilog="""Examples:
  infgen-rt unpack -o model
  infgen-rt unpack -o model --space flux2 --no-encoder
  infgen-rt unpack bundle.zip -o model""",
)
@click.argument("bundle", required=False, type=options.ANY_PATH)
@click.option("-o", "--output", required=True, type=options.ANY_PATH, help="The folder to write.")
@click.option(
    "--space",
    "spaces",
    multiple=True,
    help="A latent space, or a model that uses it. The option can be repeated.  [default: all spaces of the bundle]",
)
@click.option("--encoder/--no-encoder", default=True, show_default=True, help="Write the graphs that encode pictures.")
def unpack(bundle: Path | None, output: Path, spaces: tuple[str, ...], encoder: bool) -> None:
    """Write the Core ML packages of BUNDLE in full, for apps that use Core ML themselves.

    Without BUNDLE, the packages of the model that ships are written. A bundle stores the weights of all its graphs in
    one file. The packages that this command writes have their own weights.
    """
    names = dict.fromkeys(latent_space(space).name for space in spaces)
    written = write_packages(output, bundle, tuple(names), encoder)
    say(f"wrote {output}, with packages for {', '.join(written)} latents")
