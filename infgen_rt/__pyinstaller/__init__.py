"""Hooks for PyInstaller, which finds them by the entry point `pyinstaller40`. Nothing here is imported at run time."""

from pathlib import Path


def get_hook_dirs() -> list[str]:
    """The folders with hooks."""
    return [str(Path(__file__).parent)]
