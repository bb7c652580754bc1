"""What the fields of an options class may be: stated once, in their types, and checked when an instance is made."""

from __future__ import annotations

import math
import os
import types
import typing
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, fields
from functools import cache
from numbers import Integral, Real
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from samkv_rag.errors import SamKVError

LARGEST = (1 << 31) - 1
"""Of what is counted: more is a mistake, and does not fit into what torch counts with."""


@dataclass(frozen=True)
class Within:
    """The least and the most that a number may be."""

    least: float
    most: float = math.inf

    def __str__(self) -> str:
        return f"{self.least:g} or more" if self.most >= LARGEST else f"{self.least:g} to {self.most:g}"


T = TypeVar("T")

Share = Annotated[float, Within(0, 1)]
Count = Annotated[int, Within(0, LARGEST)]
Positive = Annotated[int, Within(1, LARGEST)]
BlockSize = Annotated[int, Within(1, 1 << 16)]
Seed = Annotated[int, Within(-(1 << 63), (1 << 64) - 1)]
Vicinity = Annotated[float, Within(0, 100)]
Exponent = Annotated[float, Within(0, 10)]
Weight = Annotated[float, Within(1, 100)]

_PLAIN: dict[Any, tuple[str, Callable[[Any], bool]]] = {
    bool: ("True or False", lambda value: isinstance(value, bool)),
    int: ("a whole number", lambda value: isinstance(value, Integral) and not isinstance(value, bool)),
    float: ("a number", lambda value: isinstance(value, Real) and not isinstance(value, bool)),
    str: ("text", lambda value: isinstance(value, str)),
    type(None): ("None", lambda value: value is None),
}


def known(*values: T | None) -> T:
    """The first of `values` that is not None: the caller's, else what was measured, else the default."""
    return next(value for value in values if value is not None)


def portion(share: float, total: int) -> int:
    """How many of `total` a share is, rounded down, but not for what floats lack (0.29 of 100 is 29)."""
    return int(share * total + 1e-9)


class Options:
    """A dataclass whose fields are checked against their types: `SamKVError` says which does not fit, and what would,
    after the `name` of the class if it has one. A list that stands for a tuple becomes one, and every number an `int`
    or a `float`, as its type says."""

    name: str = ""

    def __post_init__(self) -> None:
        whose = f"{self.name}: " if self.name else ""
        hints = _hints(type(self))  # type: ignore[arg-type]
        for field in fields(self):  # type: ignore[arg-type]
            value, hint = getattr(self, field.name), hints[field.name]
            if isinstance(value, list):
                value = tuple(value)
            object.__setattr__(self, field.name, require(value, hint, f"{whose}{field.name}"))


@cache
def _hints(kind: type) -> dict[str, Any]:
    """The types of a class's fields, read once: options are made for every request."""
    return get_type_hints(kind, include_extras=True)


def require(value: Any, hint: Any, what: str) -> Any:
    """`value`, as its type says; raises `SamKVError` if it does not fit that."""
    with suppress(OverflowError):  # a whole number that no float can be
        if fits(value, hint):
            return _as_typed(value, hint)
    raise SamKVError(f"{what} must be {_said(hint)}, not {value!r}.")


def fits(value: Any, hint: Any) -> bool:
    """Whether a value fits the type of a field, bounds included."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return fits(value, inner[0]) and all(bound.least <= value <= bound.most for bound in inner[1:])
    if origin is Literal:
        return isinstance(value, str) and value in inner
    if origin in (types.UnionType, typing.Union):
        return any(fits(value, part) for part in inner)
    if origin is tuple:
        return isinstance(value, tuple) and _all_fit(value, inner)
    return _PLAIN[hint][1](value)


def _as_typed(value: Any, hint: Any) -> Any:
    """A value that fits a type, with that type's own numbers: transformers and torch refuse an integer or NumPy's
    numbers in places where they want a float or an `int`."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _as_typed(value, inner[0])
    if origin in (types.UnionType, typing.Union):
        return _as_typed(value, next(part for part in inner if fits(value, part)))
    if origin is tuple:
        return tuple(map(_as_typed, value, _hints_of_parts(value, inner)))
    return hint(value) if hint in (int, float) else value


def of_environment(variable: str, *choices: str) -> str:
    """What an environment variable chooses, or the first of the `choices` if it chooses none. Raises `SamKVError` on
    anything else."""
    choice = os.environ.get(variable) or choices[0]
    if choice not in choices:
        raise SamKVError(f"{variable} must be {' or '.join(map(repr, choices))}, not {choice!r}.")
    return choice


def _all_fit(value: tuple[Any, ...], parts: tuple[Any, ...]) -> bool:
    hints = _hints_of_parts(value, parts)
    return len(value) == len(hints) and all(map(fits, value, hints))


def _hints_of_parts(value: tuple[Any, ...], parts: tuple[Any, ...]) -> tuple[Any, ...]:
    """The type of every part of a tuple."""
    return parts[:1] * len(value) if parts[-1] is ... else parts


def _said(hint: Any) -> str:
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return f"{_said(inner[0])}, {inner[1]}"
    if origin is Literal:
        return " or ".join(map(repr, inner))
    if origin in (types.UnionType, typing.Union):
        return " or ".join(map(_said, inner))
    if origin is tuple and inner[-1] is ...:
        return f"a tuple of which each part is {_said(inner[0])}"
    if origin is tuple:
        return f"a tuple of {len(inner)} parts: {'; '.join(map(_said, inner))}"
    return _PLAIN[hint][0]
