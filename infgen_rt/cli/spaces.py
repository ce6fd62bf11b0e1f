"""`infgen-rt spaces`."""

import json
from dataclasses import asdict
from typing import Any

import click

from infgen_rt.cli import options
from infgen_rt.cli.console import say
from infgen_rt.latent.layout import expected_shapes
from infgen_rt.latent.spaces import LatentSpace, latent_space, latent_spaces


@click.command(
    cls=options.Command,
    epilog="""Examples:
  infgen-rt spaces
  infgen-rt spaces z-image
  infgen-rt spaces --json""",
)
@click.argument("names", nargs=-1, metavar="[NAME]...")
@options.as_json
def spaces(names: tuple[str, ...], as_json: bool) -> None:
    """List the latent spaces, the models that use them, and the sources of their numbers.

    NAME is a latent space or a model that uses it. Without NAME, all spaces are listed.
    """
    found = {space.name: space for space in map(latent_space, names)} if names else latent_spaces()
    if as_json:
        say(json.dumps({name: _facts(space) for name, space in found.items()}), needed=True)
        return
    say("\n\n".join(_describe(space) for space in found.values()), needed=True)


def _facts(space: LatentSpace) -> dict[str, Any]:
    """The facts about a space as JSON, without the statistics that only the runtime needs."""
    return {
        "title": space.title,
        "channels": space.channels,
        "cell_pixels": space.cell_pixels,
        "shapes": expected_shapes(space),
        "normalisation": space.normalisation,
        "models": [asdict(model) for model in space.models],
        "source": space.source,
    }


def _describe(space: LatentSpace) -> str:
    lines = [
        f"{space.name}: {space.title}",
        f"  latents: {space.channels} channels, {space.cell_pixels} pixels per cell, {expected_shapes(space)}",
        f"  normalisation: {space.normalisation}",
        f"  numbers from: {space.source}",
        "  models:",
    ]
    for model in space.models:
        lines.append(f"    {model.title} ({', '.join(model.names)})")
        lines.append(f"      {model.source}")
    return "\n".join(lines)
