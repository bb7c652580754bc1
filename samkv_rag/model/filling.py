"""Filling a cache from the store: what stands where, gathered and turned to its position, some layers at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from samkv_kernels.backend import Backend
from samkv_kernels.rope_gather import Stored, rope_gather_into
from samkv_rag.model.buffers import Buffers
from samkv_rag.model.cache import SlotCache
from samkv_rag.model.rotary import RotaryTable
from samkv_rag.model.shape import Cut, KVShape


@dataclass(frozen=True, slots=True)
class Part:
    """Stored tokens that come to stand in neighbouring slots, from slot `start` on: of every one its row among the
    `stored` ones (int `(T,)`; -1: none, zeros), which are one for each stack that has layers of the cache."""

    start: int
    stored: Sequence[Stored]
    rows: Tensor


Parts = Callable[[range], Iterable[Part]]
"""What fills some of a model's layers, a run of them, in order of the slots."""


@dataclass(frozen=True, slots=True)
class Filling:
    """Fills the first `slots` of the `stacks` of a cache that has `layers`, a run of a model's of this `shape`; keys
    are turned by `table`, and what no part holds is zeros."""

    stacks: Sequence[Buffers]
    layers: range
    shape: KVShape
    slots: int
    table: RotaryTable
    backend: Backend

    def come(self, cache: SlotCache, parts: Parts, steps: Sequence[range]) -> None:
        """Have each of `steps`, runs of layers, filled by `parts` before anybody sees its layers: a single one now."""
        for step in steps:
            cache.later(step.start - self.layers.start, partial(self.fill, parts, step))
        if len(steps) == 1:
            cache.arrive()

    def fill(self, parts: Parts, step: range) -> None:
        """Fill the layers of a step now."""
        cuts = self.shape.cuts(step)
        own = {cut.index: one for cut, one in zip(self.shape.cuts(self.layers), self.stacks, strict=True)}
        stacks = [self._of(cut, own[cut.index]) for cut in cuts]
        turns, end = [self.table.angles(cut.layers) for cut in cuts], 0
        for part in parts(step):
            begin, end, rows = end, part.start + len(part.rows), part.rows.to(self.stacks[0].keys.device)
            for stack, stored, angles in zip(stacks, part.stored, turns, strict=True):
                stack.slots(begin, part.start).clear()
                here, angles = stack.slots(part.start, end), angles.slots(part.start, end)
                rope_gather_into(*here.both, stored.to(rows.device), rows, angles, self.backend)
        for stack in stacks:
            stack.slots(end, self.slots).clear()

    def _of(self, cut: Cut, buffers: Buffers) -> Buffers:
        """The layers of a cut among all that its stack has here."""
        below = cut.stack.within(self.layers).start
        return buffers.layers(range(cut.places.start - below, cut.places.stop - below), 0)
