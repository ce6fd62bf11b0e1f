"""The version of the packages, which is that of the wheel."""

__version__ = "0.1.0"
