"""The stored entries of one prompt's chunks: read once, counted."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor

from samkv_kernels.rope_gather import Stored
from samkv_rag.model.adapter import ModelAdapter
from samkv_rag.store import ChunkKVStore, StoredBlocks
from samkv_rag.types import BLOCK, ChunkSummary, PromptPlan


class _Read(NamedTuple):
    """What was `read` together: blocks, with the places at which they stand in it, down to the layer before `depth`."""

    read: StoredBlocks
    places: dict[int, int]
    depth: int


class Entries:
    """What a prompt's chunks have in the store. `bytes_read` counts K and V as stored; the store's own count is shared
    with other engines."""

    def __init__(self, plan: PromptPlan, adapter: ModelAdapter, store: ChunkKVStore) -> None:
        self.bytes_read = 0
        self._keys = [str(chunk.key) for chunk in plan.chunks]
        self._shape = adapter.shape
        self._store = store
        self._summaries: dict[int, ChunkSummary] = {}
        self._reads = defaultdict[tuple[int, int], list[_Read]](list)  # by chunk and stack, in order

    def summary(self, index: int) -> tuple[ChunkSummary, bool]:
        """The small part of chunk `index`, and whether it was asked for the first time."""
        new = index not in self._summaries
        if new:
            self._summaries[index] = self._store.summary(self._keys[index])
        return self._summaries[index], new

    def blocks(self, index: int, blocks: Sequence[int], layers: range) -> list[Stored]:
        """Some `blocks` of chunk `index`, sorted, on `layers` of the model: one for each stack that has any of them."""
        cuts = self._shape.cuts(layers)
        return [_as_stored(self._load(index, cut.index, list(blocks), cut.places)) for cut in cuts]

    def _load(self, index: int, stack: int, blocks: list[int], layers: range) -> StoredBlocks:
        """Some blocks on `layers`, a run of a stack's. Each layer of a block is read once, with those below it, and
        none above it."""
        reads, depths = self._reads[index, stack], dict.fromkeys(blocks, 0)
        for known in reads:  # later ones went deeper
            depths.update(dict.fromkeys(depths.keys() & known.places.keys(), known.depth))
        for depth in sorted({depth for depth in depths.values() if depth < layers.stop}):
            missing = [block for block in blocks if depths[block] == depth]
            read = self._store.read_stored(self._keys[index], missing, range(depth, layers.stop), stack)
            self.bytes_read += read.nbytes
            reads.append(_Read(read, {block: place for place, block in enumerate(missing)}, layers.stop))
            if missing == blocks and depth == layers.start:
                return read
        wanted = slice(layers.start, layers.stop)
        return StoredBlocks(reads[0].read.form, torch.stack([_joined(reads, block)[wanted] for block in blocks], 1))

    def release(self) -> None:
        """Forget what was read: the caches are made, and an answer may take its time. The counts stay."""
        self._reads.clear()


def _joined(reads: Sequence[_Read], block: int) -> Tensor:
    """All layers of a block that have been read, as stored."""
    return torch.cat([known.read.data[:, known.places[block]] for known in reads if block in known.places])


def _as_stored(found: StoredBlocks) -> Stored:
    parts = found.parts
    if parts is None:
        return Stored.of(found.data)
    return Stored(parts.keys, parts.values, parts.key_scale, parts.value_scale, parts.key_zero)


def blocks_of(owner: Tensor, inside: Tensor, chunks: int) -> tuple[list[list[int]], Tensor]:
    """Which blocks hold the tokens `inside` their `owner` chunks `(T,)`, both sorted: for every chunk; and the tokens'
    rows among its blocks `(T,)`. For all chunks at once."""
    block = inside // BLOCK
    first = torch.ones(len(owner), dtype=torch.bool)
    first[1:] = (owner[1:] != owner[:-1]) | (block[1:] != block[:-1])
    counts = torch.bincount(owner[first], minlength=chunks)
    below = counts.cumsum(0) - counts
    rows = (first.long().cumsum(0) - 1 - below[owner]) * BLOCK + inside % BLOCK
    numbers = iter(block[first].tolist())
    return [list(islice(numbers, count)) for count in counts.tolist()], rows
