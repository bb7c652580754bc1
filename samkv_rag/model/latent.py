"""Models that cache latents (multi-head latent attention: DeepSeek-V3, GLM-4.7-Flash, MiniCPM3, ...).

Of every token such a layer caches one vector, from which it makes the keys and values of all heads when it attends, and
the part of the keys that turns with position. Here both lie one after the other, the part that turns first, cut into
halves: keys and values of a single head, equally wide, which are stored, turned, gathered and packed like any others.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache


def can_be_joined(latent: Tensor, turning: Tensor) -> bool:
    """Whether a cache's entries `(B, 1, T, C)` and `(B, 1, T, R)` are such, as far as their shapes tell."""
    width, turned = latent.shape[-1], turning.shape[-1]
    return latent.shape[1] == turning.shape[1] == 1 and turned <= width and (width + turned) % 2 == 0


def joined(latent: Tensor, turning: Tensor) -> tuple[Tensor, Tensor]:
    """Latents `(..., C)` and what turns `(..., R)` as keys and values, each `(..., (C + R) / 2)`."""
    keys, values = torch.cat([turning, latent], -1).chunk(2, -1)
    return keys, values


def parted(keys: Tensor, values: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """The inverse of `joined`; what turns has this `width`."""
    return torch.cat([keys[..., width:], values], -1), keys[..., :width]


Shown = Callable[[int], Tensor | None]
"""Which slots of a cache a layer needs the entries of, sorted; None: all."""


def all_slots(layer: int) -> None:
    """Every layer needs them all."""


def whole(keys: Tensor, values: Tensor) -> Tensor:
    """The entries `(..., C + R)` whose halves these are: without a copy where they lie side by side."""
    if not side_by_side(keys, values):
        return torch.cat([keys, values], -1)
    return keys.as_strided((*keys.shape[:-1], 2 * keys.shape[-1]), keys.stride(), keys.storage_offset())


def side_by_side(keys: Tensor, values: Tensor) -> bool:
    """Whether every token's value follows its key in memory."""
    if keys.stride() != values.stride() or keys.untyped_storage().data_ptr() != values.untyped_storage().data_ptr():
        return False
    width = keys.shape[-1]
    return keys.stride(-2) >= 2 * width and values.storage_offset() - keys.storage_offset() == width


class LatentCache(Cache):
    """A cache as a model takes it that caches latents; they are held in the cache `entries`, joined. `shown` tells
    which slots of it a layer needs (None: all)."""

    def __init__(self, entries: Cache, shown: Shown = all_slots) -> None:
        super().__init__(layers=entries.layers)
        self._entries, self._shown = entries, shown

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Store a layer's new latents (which such models hand over as keys) and what turns (as values); returns what
        the layer attends to, likewise."""
        keys, values = self._entries.update(*joined(key_states, value_states), layer_idx, *args, **kwargs)
        slots = self._shown(layer_idx)
        if slots is not None:
            keys, values = keys.index_select(2, slots), values.index_select(2, slots)
        return parted(keys, values, value_states.shape[-1])
