"""Instructions for mending a missing or broken installation. They differ between pip's environments and frozen apps."""

import re
import sys
from collections.abc import Sequence

PACKAGE = "infgen-rt"
# Windows does not say which library is missing.
_NAMELESS = "DLL load failed"
_LIBRARY = re.compile(r"([^\s:]+\.(?:so|dylib)[.\d]*): cannot open shared object file|Library not loaded: (\S+)")


def is_frozen() -> bool:
    """Whether this is an app that PyInstaller or a similar program has built. pip cannot change such an app."""
    return bool(getattr(sys, "frozen", False))


def installed(distributions: Sequence[str]) -> list[str]:
    """The given distributions that are installed. In a frozen app, the metadata for this may be missing."""
    from importlib import metadata  # slow to import, and only needed here

    found = []
    for name in distributions:
        try:
            metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        found.append(name)
    return found


def installing(extra: str) -> str:
    """The instruction for installing one of this package's extras."""
    if is_frozen():
        return f"this app was built without it, and must be built with {PACKAGE}[{extra}]"
    return f'pip install "{PACKAGE}[{extra}]"'


def reinstalling(distributions: Sequence[str]) -> str:
    """The instruction for replacing the files of an installed library, or of this package.

    Args:
        distributions: the names under which it may be installed, the usual one first.
    """
    if is_frozen():
        return f"build this app again with all of {distributions[0]}"
    # Without --force-reinstall, pip leaves a package of the right version as it is.
    name = (installed(distributions) or distributions)[0]
    return f"reinstall it: pip install --force-reinstall --no-deps {name}"


def upgrading(distributions: Sequence[str]) -> str:
    """The instruction for upgrading an installed library. The arguments are those of `reinstalling`."""
    if is_frozen():
        return f"this app must be built with a newer {distributions[0]}"
    return f"pip install --upgrade {' '.join(installed(distributions)) or distributions[0]}"


def missing_library(error: ImportError) -> str | None:
    """What to do about a library of the system that an import needs, or None if the error is of another kind."""
    text = str(error)
    if named := _LIBRARY.search(text):
        return f"install the system's package that has {named[1] or named[2]}"
    if _NAMELESS in text:
        return "install Microsoft's current Visual C++ Redistributable, and the libraries of the GPU if it is for one"
    return None
