"""The version of the packages, which is also the wheel's version."""

__version__ = "0.1.0"
