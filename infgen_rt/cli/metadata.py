"""Collects the text that is stored in pictures, from `--metadata` and from the header of the latent's file."""

from collections.abc import Iterable
from typing import Any

import click

from infgen_rt.common.notices import Notices
from infgen_rt.errors import OutputError
from infgen_rt.latent.files import Stored
from infgen_rt.writers import Format, check_metadata
from infgen_rt.writers.metadata import MAX_ENTRIES

# Keys in a file's header that are about the file and not about its picture. Many programs write `format: pt`.
_OF_FILES = {"format"}


def entries(context: click.Context, parameter: click.Parameter, texts: Iterable[str]) -> dict[str, str]:
    """Parse and check the values of `--metadata`, each of which is KEY=TEXT.

    Raises:
        OutputError: a value has no `=`, its key is not possible or was given before, or its text has a character that
            is not possible.
    """
    found: dict[str, str] = {}
    for each in texts:
        key, equals, text = each.partition("=")
        if not equals:
            raise OutputError(f"metadata {each!r} is not understood: expected KEY=TEXT")
        if key in found:
            raise OutputError(f"metadata {key!r} is given twice: pass each key once")
        found[key] = text
    return check_metadata(found)


def metadata_of(latent: Any, given: dict[str, str], form: Format, notices: Notices) -> dict[str, str]:
    """The text for the picture of a latent: that in the header of the latent's file, and that of the user's options.

    The user did not ask for the text in the header. If it cannot be written, it is left out with a warning.

    Args:
        latent: the result of `read_latent`. An array has no text.
        given: the text for all pictures, which replaces text of the same keys in the header.
        form: the picture's format.
        notices: gives the warnings.

    Raises:
        OutputError: the format cannot hold what is given.
    """
    form.with_metadata(given)
    header = latent.metadata if isinstance(latent, Stored) else {}
    carried: dict[str, str] = {}
    problems: list[str] = []
    # The keys are sorted, because safetensors writes them in any order, and equal pictures should give equal files.
    for key, text in sorted(header.items()):
        # ComfyUI writes an empty prompt if it has none.
        if key in _OF_FILES or key in given or not text:
            continue
        try:
            carried |= check_metadata({key: text})
        except OutputError as error:
            problems.append(str(error))
    # If the format cannot hold all of it, the largest texts are left out. The first is the largest.
    largest = sorted(carried, key=lambda key: len(carried[key]), reverse=True)
    if (surplus := len(carried | given) - MAX_ENTRIES) > 0:
        problems.append(f"{largest[0]!r}, because more than {MAX_ENTRIES} entries are too many")
        for key in largest[:surplus]:
            del carried[key]
    for key in largest[max(0, surplus) :]:
        try:
            form.with_metadata(check_metadata(carried | given))
            break
        except OutputError as error:
            problems.append(f"{key!r}, because {error}")
            del carried[key]
    if problems:
        more = f"; and {len(problems) - 1} more" if len(problems) > 1 else ""
        notices.warn("metadata", f"a part of the latent file's metadata is left out: {problems[0]}{more}")
    return carried | given
