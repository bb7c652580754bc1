"""What prompts begin with, kept: instructions, tools and whatever else precedes the first chunk.

It attends to nothing after it, so its entries are the same in every prompt that begins with it, at the same positions
(but for rounding, because fewer rows are then computed). And an application's prompts begin alike.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from samkv_rag.model.buffers import Buffers
from samkv_rag.model.cache import SlotCache
from samkv_rag.model.memory import is_out_of_memory
from samkv_rag.model.shape import Cut, KVShape

LEAST = 16
"""Tokens. A shorter beginning is computed with the rest of its prompt."""
ROOM = 1024
"""Tokens kept at most, of all beginnings together: 128 MiB of an 8B Llama in bf16."""

Tokens = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Head:
    """The first `count` tokens of a prompt, which are known: their `entries`, and maybe some that follow, by stack."""

    count: int = 0
    entries: Sequence[Buffers] = ()

    def put(self, cut: Cut, keys: Tensor, values: Tensor) -> None:
        """Copy the entries of a cut's layers to the first slots of its `keys` and `values` `(L, G, T, D)`."""
        if self.count:
            known = self.entries[cut.index].layers(cut.places, 0).slots(0, self.count)
            keys[:, :, : self.count], values[:, :, : self.count] = known.both


UNKNOWN = Head()


class Beginnings:
    """The entries of the most recently used beginnings of prompts, at most `room` tokens, for a model whose caches have
    this `shape`."""

    def __init__(self, shape: KVShape, room: int = ROOM) -> None:
        self._shape, self._room = shape, room
        self._kept: OrderedDict[Tokens, list[Buffers]] = OrderedDict()

    def head_of(self, beginning: Sequence[int]) -> Head:
        """What is known of a prompt with this beginning: the longest prefix that it shares with one that is kept."""
        known, count = _longest(self._kept, tuple(beginning))
        if count < LEAST:
            return UNKNOWN
        self._kept.move_to_end(known)
        return Head(count, self._kept[known])

    def learn(self, beginning: Sequence[int], cache: SlotCache) -> None:
        """Keep the entries of what a prompt begins with, all of which are in the first slots of `cache`, if much of it
        is new and memory allows."""
        ids = tuple(beginning[: self._room])
        if len(ids) < _longest(self._kept, ids)[1] + LEAST:
            return
        try:
            copies = self._copied(cache, len(ids))
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            return
        for shorter in [one for one in self._kept if ids[: len(one)] == one]:
            del self._kept[shorter]
        self._kept[ids] = copies
        while sum(map(len, self._kept)) > self._room:
            self._kept.popitem(last=False)

    def _copied(self, cache: SlotCache, count: int) -> list[Buffers]:
        """Copies of the first `count` slots of a cache that has all layers, by stack."""
        copies = []
        for cut in self._shape.cuts(self._shape.cached()):
            own = zip(*(cache.slot_layers[layer].buffers for layer in cut.layers), strict=True)
            keys, values = (torch.stack([buffer[0, :, :count] for buffer in buffers]) for buffers in own)
            copies.append(Buffers(keys, values, cut.layers))
        return copies


def _longest(known: Iterable[Tokens], ids: Tokens) -> tuple[Tokens, int]:
    """Which of `known` shares the longest prefix with `ids`, and the length of that prefix."""
    return max(((one, _common(one, ids)) for one in known), key=lambda found: found[1], default=((), 0))


def _common(one: Tokens, other: Tokens) -> int:
    """The length of the prefix that both share."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((at for at, (mine, theirs) in pairs if mine != theirs), min(len(one), len(other)))
