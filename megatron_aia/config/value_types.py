"""Types of settings: the ranges that stand beside them, and reading a value as one of them."""

import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin


@dataclass(frozen=True)
class Range:
    """Which numbers a setting may have; written beside its type, in ``Annotated``."""

    contains: Callable[[float], bool]
    remedy: str


PositiveInt = Annotated[int, Range(lambda value: value >= 1, "use 1 or more")]
NonNegativeInt = Annotated[int, Range(lambda value: value >= 0, "use 0 or more")]
PositiveFloat = Annotated[float, Range(lambda value: value > 0, "use a value above 0")]
NonNegativeFloat = Annotated[float, Range(lambda value: value >= 0, "use 0 or more")]
Share = Annotated[float, Range(lambda value: 0 <= value < 1, "use 0 or more and less than 1")]

PositiveShare = Annotated[float, Range(lambda value: 0 < value <= 1, "use above 0 and at most 1")]

POSITIONAL = object()
"""Beside a type in ``Annotated``: an argument of a command without a flag."""


@dataclass(frozen=True)
class ValueKind:
    """A type of a setting, taken apart."""

    base: Any
    """``bool``, ``int``, ``float``, ``str``, ``Path`` or a ``Literal`` of texts."""
    is_optional: bool = False
    """May be None."""
    is_tuple: bool = False
    """Any number of values."""
    range: Range | None = None
    is_positional: bool = False

    @property
    def choices(self) -> tuple[str, ...]:
        """The texts of a ``Literal``; empty for every other type."""
        return get_args(self.base) if get_origin(self.base) is Literal else ()


def kind_of(hint: Any) -> ValueKind:
    """Take the type of a field apart, as ``get_type_hints(..., include_extras=True)`` has it."""
    found: dict[str, Any] = {}
    while True:
        origin = get_origin(hint)
        if origin is Annotated:
            for mark in hint.__metadata__:
                found["range" if isinstance(mark, Range) else "is_positional"] = mark
            hint = hint.__origin__
        elif origin in (Union, types.UnionType):
            found["is_optional"] = True
            hint = next(part for part in get_args(hint) if part is not type(None))
        elif origin is tuple:
            found["is_tuple"] = True
            hint = get_args(hint)[0]
        else:
            found["is_positional"] = "is_positional" in found
            return ValueKind(hint, **found)


def as_kind(name: str, value: Any, kind: ValueKind) -> Any:
    """Return the value of a YAML file as the type of its setting.

    Raises:
        ValueError: it is of another type; the message begins with ``name``.
    """
    if kind.is_optional and value is None:
        return None
    if kind.is_tuple:
        entries = value if isinstance(value, list) else [value]
        return tuple(_entry(name, entry, kind) for entry in entries)
    return _scalar(name, value, kind)


def from_words(name: str, words: list[str], kind: ValueKind) -> Any:
    """As ``as_kind``, from the words behind a flag; ``none`` unsets what may be unset."""
    if kind.is_optional and words == ["none"]:
        return None
    values = [_number(word) if kind.base in (int, float) else word for word in words]
    return as_kind(name, values if kind.is_tuple else values[0], kind)


def _entry(name: str, value: Any, kind: ValueKind) -> Any:
    # `data_path: [2, A, 1, B]` holds numbers to YAML, and words on a command line.
    is_number = isinstance(value, int) and not isinstance(value, bool)
    return _scalar(name, str(value) if kind.base is str and is_number else value, kind)


def _number(word: str) -> int | float | str:
    for number in (int, float):
        try:
            return number(word)
        except ValueError:
            continue
    return word


def _scalar(name: str, value: Any, kind: ValueKind) -> Any:
    if kind.choices:
        if value in kind.choices:
            return value
        raise ValueError(f"{name} must be one of {', '.join(kind.choices)}, not {value!r}")
    # A bool is an int to Python, but never what the writer of a number meant.
    is_bool = isinstance(value, bool)
    if kind.base is float and isinstance(value, int | float) and not is_bool:
        return float(value)
    if kind.base is Path and isinstance(value, str):
        return Path(value)
    if isinstance(value, kind.base) and is_bool == (kind.base is bool):
        return value
    expected = {bool: "true or false", int: "an integer", float: "a number"}
    raise ValueError(f"{name} must be {expected.get(kind.base, 'text')}, not {value!r}")
