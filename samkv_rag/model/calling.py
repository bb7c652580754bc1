"""How a model takes its cache: under which name ("cache" since transformers 5.24, "past_key_values" before), and as
what."""

from __future__ import annotations

from functools import cache
from inspect import signature
from typing import Any

from samkv_rag.model.latent import LatentCache, Shown, all_slots

NAMES = ("cache", "past_key_values")


def handing(model: Any, entries: Any, latent: bool = False, shown: Shown = all_slots) -> dict[str, Any]:
    """The keyword argument that passes `entries` to a model's forward, or to its decoder's; `latent`: to a model that
    caches latents, whose layers need the slots that `shown` tells."""
    return {cache_name(model): LatentCache(entries, shown) if latent else entries}


def cache_name(model: Any) -> str:
    """The name, by the model's class, not the version: code that came with a model may use the older one."""
    return _named(type(getattr(model, "_orig_mod", model)).__mro__)


@cache
def _named(kinds: tuple[type, ...]) -> str:
    """The name in the first forward that has one; a forward that just passes on its arguments has none."""
    for forward in filter(None, (vars(kind).get("forward") for kind in kinds)):
        for name in NAMES:
            if name in signature(forward).parameters:
                return name
    return NAMES[-1]
