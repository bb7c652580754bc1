"""The memory that prompts are prepared in, one after another: recorded passes find every prompt at the same place."""

from __future__ import annotations

import weakref
from collections.abc import Callable

import torch
from torch import Tensor

from samkv_rag.model.cache import Buffers, SlotCache
from samkv_rag.model.shape import KVShape

HEADROOM, ROUND = 1.25, 256
"""Room is made for a quarter more slots than asked for, rounded up: it grows seldom, and what was recorded is lost."""


class Workspace:
    """Keys and values of caches of one shape, which are lent to one prompt at a time, layer by layer.

    `make` makes so many slots. `cache` is a cache of all of them, every one live; `generation` counts its moves.
    """

    def __init__(self, shape: KVShape, make: Callable[[int], list[Buffers]]) -> None:
        self._shape, self._make = shape, make
        self._lent: list[tuple[range, weakref.ref[Tensor]]] = []
        self.generation = 0
        self._grow(0)

    @torch.inference_mode(False)
    def _grow(self, slots: int) -> None:
        self._stacks = self._make(slots)
        self.cache = SlotCache(self._stacks, torch.arange(slots), self._shape.sources)
        self.generation += 1

    def lend(self, layers: range, slots: int) -> list[Buffers] | None:
        """Room for so many `slots` of `layers`, by stack, with anything in it; None while somebody has it.

        It is given back when the keys that are returned are no longer in use.
        """
        self._lent = [(taken, keys) for taken, keys in self._lent if keys() is not None]
        if slots > len(self.cache.positions):
            if self._lent:
                return None
            self._grow(-int(-slots * HEADROOM // ROUND) * ROUND)
        if any(taken.start < layers.stop and layers.start < taken.stop for taken, _ in self._lent):
            return None
        cuts = self._shape.cuts(layers)
        lent = [self._stacks[cut.index].layers(cut.places, layers.start).slots(0, slots) for cut in cuts]
        self._lent += [(layers, weakref.ref(one.keys)) for one in lent]
        return lent

    def holds(self, cache: SlotCache) -> bool:
        """Whether a cache lies here, slot by slot."""
        pairs = zip(cache.slot_layers, self.cache.slot_layers, strict=False)
        return all(mine.place[0] == here.place[0] for mine, here in pairs)

    def follow(self, cache: SlotCache) -> None:
        """Take over the positions of a cache that lies here; they run on behind it."""
        count, positions = len(cache.positions), self.cache.positions
        positions[:count] = cache.positions
        behind = torch.arange(1, len(positions) - count + 1, device=positions.device)
        torch.add(behind, cache.positions[-1], out=positions[count:])
