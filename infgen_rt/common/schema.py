"""Converts JSON objects to frozen dataclasses, and checks their values against the dataclasses' annotations."""

import math
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

T = TypeVar("T")

# Larger integers are in no file that this project writes, and Python's own operations fail with some of them.
_LARGEST = 2**63 - 1


class SchemaError(ValueError):
    """A value is missing or does not have the annotated type. The message names its place."""


def parse(kind: type[T], value: object, where: str) -> T:
    """Build a dataclass from parsed JSON.

    Unknown keys are ignored, so that files of newer versions, which may have more keys, can be read.

    Args:
        kind: a dataclass with fields of str, int, float, bool, Any, `X | None`, tuple, dict and other dataclasses.
        value: the result of `json.loads`.
        where: the value's name in error messages.

    Raises:
        SchemaError: a value is missing, has the wrong type, or is a number that is not finite or beyond 64 bits.
    """
    result: T = _parse(kind, value, where)
    return result


def _parse(kind: Any, value: Any, where: str) -> Any:
    origin, args = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if is_dataclass(kind):
        return _parse_dataclass(kind, _expect(dict, value, where), where)
    if origin is UnionType:
        return None if value is None else _parse(args[0], value, where)
    if origin is dict:
        items = _expect(dict, value, where).items()
        return {key: _parse(args[1], item, f"{where}.{key}") for key, item in items}
    if origin is tuple:
        return tuple(_parse_tuple(args, _expect(list, value, where), where))
    if kind is int and type(value) is int and abs(value) > _LARGEST:
        raise SchemaError(f"{where} is too large: expected at most {_LARGEST}")
    if kind is float and type(value) is int:
        return float(_parse(int, value, where))
    if kind is float and type(value) is float and not math.isfinite(value):
        raise SchemaError(f"{where} is not finite, expected a number")
    return _expect(kind, value, where)


def _parse_tuple(args: tuple[Any, ...], items: list[Any], where: str) -> list[Any]:
    kinds = [args[0]] * len(items) if args[-1] is Ellipsis else args
    if len(items) != len(kinds):
        raise SchemaError(f"{where} has {len(items)} items, expected {len(kinds)}")
    return [_parse(kinds[index], item, f"{where}[{index}]") for index, item in enumerate(items)]


def _parse_dataclass(kind: Any, value: dict[str, Any], where: str) -> Any:
    hints = _hints(kind)
    arguments = {}
    for field in fields(kind):
        if field.name in value:
            arguments[field.name] = _parse(hints[field.name], value[field.name], f"{where}.{field.name}")
        elif field.default is MISSING and field.default_factory is MISSING:
            raise SchemaError(f"{where} lacks {field.name!r}")
    return kind(**arguments)


@cache
def _hints(kind: Any) -> dict[str, Any]:
    """The annotations of a dataclass. Evaluating them anew for each of a manifest's files takes most of its time."""
    return get_type_hints(kind)


def _expect(kind: type[T], value: Any, where: str) -> T:
    # The exact type is compared, because JSON's true is not an int here.
    if type(value) is not kind:
        raise SchemaError(f"{where} is {type(value).__name__}, expected {kind.__name__}")
    return value
