"""Checks the types of the arguments of public functions, so that a wrong one is found before any work starts."""

import os
import reprlib
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Kind:
    """A kind of values.

    Attributes:
        words: what is expected, for messages.
        holds: whether a value is of this kind.
    """

    words: str
    holds: Callable[[Any], bool]

    def check(self, **arguments: object) -> None:
        """Raise TypeError for the first argument that is not of this kind. The message has its name and its value."""
        for name, value in arguments.items():
            if not self.holds(value):
                raise TypeError(f"{name} is {shown(value)}: expected {self.words}")

    def or_none(self, **arguments: object) -> None:
        """Raise TypeError for the first argument that is neither None nor of this kind."""
        self.check(**{name: value for name, value in arguments.items() if value is not None})


def shown(value: object) -> str:
    """A value on one short line, for messages."""
    return " ".join(reprlib.repr(value).split())


def instance(kind: type, words: str) -> Kind:
    """The instances of a class."""
    return Kind(words, lambda value: isinstance(value, kind))


def _is_path(value: object) -> bool:
    return isinstance(value, str) or (isinstance(value, os.PathLike) and isinstance(os.fspath(value), str))


def _is_whole(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _is_pair(value: Any, is_number: Callable[[object], bool]) -> bool:
    if isinstance(value, (str, bytes, bytearray, Set, Mapping)):
        return False
    try:
        first, second = value
    except (TypeError, ValueError):
        return False
    return is_number(first) and is_number(second)


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


TEXT = instance(str, "text")
PATH = Kind("a path, as text or pathlib.Path", _is_path)
WHOLE = Kind("a whole number", _is_whole)
NUMBER = Kind("a number", _is_number)
FLAG = Kind("True or False", lambda value: isinstance(value, (bool, np.bool_)))
FUNCTION = Kind("a function", callable)
MAPPING = instance(Mapping, "a dictionary")
PAIR = Kind("two whole numbers", lambda value: _is_pair(value, _is_whole))
PLACE = Kind("two numbers", lambda value: _is_pair(value, _is_number))
NAMES = Kind(
    "a sequence of names",
    lambda value: isinstance(value, (list, tuple)) and all(isinstance(each, str) for each in value),
)
