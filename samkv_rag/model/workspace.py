"""The memory that prompts are prepared in, one after another: recorded passes find every prompt in the same place."""

from __future__ import annotations

import weakref
from collections.abc import Callable

import torch
from torch import Tensor

from samkv_rag.model.buffers import Buffers
from samkv_rag.model.cache import SlotCache
from samkv_rag.model.shape import KVShape

HEADROOM, ROUND = 1.25, 256
"""Room is made for a quarter more slots than asked for, rounded up: growing loses recordings, so it should be rare."""


class Workspace:
    """Keys and values of caches of one shape, which are lent to one prompt at a time, layer by layer. `make` makes as
    many slots as it is given; at first there are none."""

    def __init__(self, shape: KVShape, make: Callable[[int], list[Buffers]]) -> None:
        self._shape, self._make = shape, make
        self._lent: list[tuple[range, weakref.ref[Tensor]]] = []
        self._set(0)

    @torch.inference_mode(False)
    def _set(self, slots: int) -> None:
        self._stacks, self._views, self.slots = self._make(slots), dict[int, SlotCache](), slots

    @property
    def in_use(self) -> bool:
        """Whether any of it is lent."""
        self._lent = [(taken, keys) for taken, keys in self._lent if keys() is not None]
        return bool(self._lent)

    def grow(self, slots: int) -> None:
        """Make room for `slots` slots, and some more if memory allows, in place of what there was. Raises
        `torch.OutOfMemoryError` when there is too little, and has no room then."""
        self._set(0)  # what there was is freed first
        try:
            self._set(-int(-slots * HEADROOM // ROUND) * ROUND)
        except torch.OutOfMemoryError:
            self._set(slots)

    def lend(self, layers: range, slots: int) -> list[Buffers] | None:
        """Room for `slots` slots of `layers`, by stack, uninitialised; None where it is lent already.

        It is given back when the returned keys are no longer in use.
        """
        if self.in_use and any(taken.start < layers.stop and layers.start < taken.stop for taken, _ in self._lent):
            return None
        cuts = self._shape.cuts(layers)
        lent = [self._stacks[cut.index].layers(cut.places, layers.start).slots(0, slots) for cut in cuts]
        self._lent += [(layers, weakref.ref(one.keys)) for one in lent]
        return lent

    def holds(self, cache: SlotCache) -> bool:
        """Whether a cache is here, slot by slot."""
        pairs = zip(cache.slot_layers, self.view(self.slots).slot_layers, strict=False)
        return all(mine.place[0] == here.place[0] for mine, here in pairs)

    @torch.inference_mode(False)
    def view(self, slots: int) -> SlotCache:
        """A cache of the first `slots` slots, all of them live; the same one for the same number."""
        if slots not in self._views:
            first = [stack.slots(0, slots) for stack in self._stacks]
            self._views[slots] = SlotCache(first, torch.arange(slots), self._shape.sources)
        return self._views[slots]


def follow(view: SlotCache, cache: SlotCache) -> None:
    """Give a view the positions of the cache at its beginning; they run on after it."""
    count, positions = min(len(cache.positions), len(view.positions)), view.positions
    positions[:count] = cache.positions[:count]
    behind = torch.arange(1, len(positions) - count + 1, device=positions.device)
    torch.add(behind, cache.positions[-1], out=positions[count:])
