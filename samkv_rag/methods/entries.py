"""The stored entries of one prompt's chunks: read once, counted."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from samkv_rag.model.adapter import ModelAdapter
from samkv_rag.model.blocks import unblocked
from samkv_rag.store import ChunkKVStore
from samkv_rag.types import BLOCK, ChunkSummary, PromptPlan


class Entries:
    """What a prompt's chunks have in the store. `bytes_read` counts K and V as stored; the store's own count is shared
    with other engines."""

    def __init__(self, plan: PromptPlan, adapter: ModelAdapter, store: ChunkKVStore) -> None:
        self.bytes_read = 0
        self._keys = [str(chunk.key) for chunk in plan.chunks]
        self._layers = adapter.shape.layers
        self._store = store
        self._summaries: dict[int, ChunkSummary] = {}
        self._blocks: list[dict[int, list[Tensor]]] = [{} for _ in plan.chunks]  # of each block its layers, in parts

    def summary(self, index: int) -> tuple[ChunkSummary, bool]:
        """The small part of chunk `index`, and whether it was asked for the first time."""
        new = index not in self._summaries
        if new:
            self._summaries[index] = self._store.summary(self._keys[index])
        return self._summaries[index], new

    def tokens(self, index: int, inside: Tensor, layers: range) -> tuple[Tensor, Tensor]:
        """Position-free keys and values `(len(layers), G, T, D)` of the tokens `inside` chunk `index`."""
        blocks = torch.unique(inside // BLOCK)
        keys, values = self.load(index, blocks.tolist(), layers)
        if len(inside) == int(inside[-1]) + 1:  # all tokens up to the last: views instead of copies
            return keys[:, :, : len(inside)], values[:, :, : len(inside)]
        rows = torch.searchsorted(blocks, inside // BLOCK) * BLOCK + inside % BLOCK
        return keys[:, :, rows], values[:, :, rows]

    def load(self, index: int, blocks: Sequence[int], layers: range | None = None) -> tuple[Tensor, Tensor]:
        """Position-free keys and values `(L, G, len(blocks) * BLOCK, D)` of some blocks on `layers`, a run of them.

        Each layer of a block is read once, with those below it, and none above it.
        """
        layers = range(self._layers) if layers is None else layers
        known, blocks = self._blocks[index], list(blocks)
        depths = {block: sum(map(len, known.get(block, []))) for block in blocks}
        for depth in sorted({depth for depth in depths.values() if depth < layers.stop}):
            missing = [block for block in depths if depths[block] == depth]
            kv = self._read(index, missing, range(depth, layers.stop))
            for block, deeper in zip(missing, kv.unbind(1), strict=True):
                known.setdefault(block, []).append(deeper)
            if missing == blocks and depth == layers.start:
                return unblocked(kv)
        wanted = slice(layers.start, layers.stop)
        return unblocked(torch.stack([torch.cat(known[block])[wanted] for block in blocks], 1))

    def release(self) -> None:
        """Forget what was read: the caches are made, and an answer may take its time. The counts stay."""
        self._blocks = [{} for _ in self._blocks]

    def _read(self, index: int, blocks: Sequence[int], layers: Sequence[int]) -> Tensor:
        stored = self._store.read_stored(self._keys[index], blocks, layers)
        self.bytes_read += stored.nbytes
        return stored.restored()
