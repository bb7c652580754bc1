"""What a model calls the cache that it is handed: "cache" since transformers 5.24, "past_key_values" before."""

from __future__ import annotations

from functools import cache
from inspect import signature
from typing import Any

NAMES = ("cache", "past_key_values")


def handing(model: Any, entries: Any) -> dict[str, Any]:
    """The keyword that hands `entries` to a model's forward, or to its decoder's."""
    return {cache_name(model): entries}


def cache_name(model: Any) -> str:
    """By its class, not by the version: code that came with a model may have the older name."""
    return _named(type(model).__mro__)


@cache
def _named(kinds: tuple[type, ...]) -> str:
    """As the first forward calls it that names it; one that hands on whatever it gets does not."""
    for forward in filter(None, (vars(kind).get("forward") for kind in kinds)):
        for name in NAMES:
            if name in signature(forward).parameters:
                return name
    return NAMES[-1]
