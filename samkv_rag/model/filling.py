"""Filling a cache from the store: what goes where, gathered and turned to its position, some layers at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import tee

import torch
from torch import Tensor

from samkv_kernels.backend import Backend
from samkv_kernels.rope_gather import Angles, Piece, Stored, rope_gather_pieces_into
from samkv_rag.model.beginnings import Head
from samkv_rag.model.buffers import Buffers
from samkv_rag.model.cache import SlotCache
from samkv_rag.model.shape import Cut, KVShape


@dataclass(frozen=True, slots=True)
class Part:
    """Stored tokens that go to neighbouring slots, from slot `start` on: the row of each among the `stored` ones (int
    `(T,)`; -1: none, zeros), of which there is one for each stack that has layers of the cache."""

    start: int
    stored: Sequence[Stored]
    rows: Tensor


Parts = Callable[[range], Iterable[Part]]
"""What fills a run of a model's layers, in order of the slots."""

Loading = Callable[[], AbstractContextManager[None]]


@dataclass(frozen=True, slots=True)
class Filling:
    """Fills the first `slots` slots of the `stacks` of a cache that has `layers`, a run of a model's layers of this
    `shape`. Keys are turned by the `angles` of their layers; what no part holds is zeros, except for the `head`. This
    is done within `loading`."""

    stacks: Sequence[Buffers]
    layers: range
    shape: KVShape
    slots: int
    angles: Callable[[Sequence[int]], Angles]
    backend: Backend
    head: Head
    loading: Loading = nullcontext

    def come(self, cache: SlotCache, parts: Parts, steps: Sequence[range]) -> None:
        """Have each of `steps`, runs of layers, filled by `parts` before its layers are read; a single step now."""
        for step in steps:
            cache.later(step.start - self.layers.start, partial(self.fill, parts, step))
        if len(steps) == 1:
            cache.arrive()

    def fill(self, parts: Parts, step: range) -> None:
        """Fill the layers of a step now."""
        cuts = self.shape.cuts(step)
        own = {cut.index: one for cut, one in zip(self.shape.cuts(self.layers), self.stacks, strict=True)}
        with self.loading():
            for place, (cut, found) in enumerate(zip(cuts, tee(parts(step), len(cuts)), strict=True)):
                keys, values = self._of(cut, own[cut.index]).slots(0, self.slots).both
                pieces = map(partial(_piece, place, keys.device), found)
                rope_gather_pieces_into(keys, values, pieces, self.angles(cut.layers), self.backend)
                self.head.put(cut, keys, values)

    def _of(self, cut: Cut, buffers: Buffers) -> Buffers:
        """The buffers of a cut's layers, among all that its stack has here."""
        below = cut.stack.within(self.layers).start
        return buffers.layers(range(cut.places.start - below, cut.places.stop - below), 0)


def _piece(place: int, device: torch.device, part: Part) -> Piece:
    """What a part has for the stack at `place`, for a cache on a device."""
    return Piece(part.start, part.stored[place], part.rows.to(device))
