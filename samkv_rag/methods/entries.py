"""The stored entries of one prompt's chunks: read once, counted, and from a disk ahead of their use."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice

import torch
from torch import Tensor

from samkv_kernels.rope_gather import Stored
from samkv_rag.methods.reads import ChunkReads, Read
from samkv_rag.model.adapter import ModelAdapter
from samkv_rag.store import ChunkKVStore, StoredBlocks
from samkv_rag.types import BLOCK, ChunkSummary, PromptPlan

READERS = min(8, max(4, (os.cpu_count() or 1) // 2))
"""Threads that read a prompt's entries from a disk: it answers several at a time sooner, and checking sums takes a
processor longer than reading does (zlib's crc32: 1.5 GB/s a thread)."""
STEPS, STEP_BYTES = 8, 1 << 20
"""In how many steps the layers are read at most, while one is computed on and the next ones come; and what a chunk has
in a step at least, on average: a read takes some 0.3 ms however small it is."""


class Entries:
    """What a prompt's chunks have in the store. Bytes are those of K and V as stored; the store's own count is shared
    with other engines."""

    def __init__(self, plan: PromptPlan, adapter: ModelAdapter, store: ChunkKVStore) -> None:
        self._keys = [str(chunk.key) for chunk in plan.chunks]
        self._shape, self._device = adapter.shape, adapter.device
        self._store = store
        self._summaries: dict[int, ChunkSummary] = {}
        self._reads: dict[tuple[int, int], ChunkReads] = {}  # by chunk and stack
        self._steps = min(
            STEPS, plan.chunk_tokens * adapter.shape.bytes_per_token // (STEP_BYTES * len(self._keys) or 1)
        )
        waits = store.on_disk and self._steps > 0  # what is less is here sooner than a thread begins
        self._readers = ThreadPoolExecutor(READERS, "samkv-reader") if waits else None
        self._sizes = list[int]()

    @property
    def bytes_read(self) -> int:
        """Bytes that have been read, used or not."""
        return sum(self._sizes)

    @property
    def bytes_used(self) -> int:
        """Bytes that were read and asked for since nothing was released."""
        return sum(reads.used for reads in self._reads.values())

    def summary(self, index: int) -> tuple[ChunkSummary, bool]:
        """The small part of chunk `index`, and whether it was asked for the first time."""
        new = index not in self._summaries
        if new:
            self._summaries[index] = self._store.summary(self._keys[index])
        return self._summaries[index], new

    def steps(self, layers: range) -> list[range]:
        """The runs in which `layers` of the model had better be read: one, where nobody has to wait for it."""
        size = -(-self._shape.layers // self._steps) if self._readers else max(1, len(layers))
        return [layers[at : at + size] for at in range(0, len(layers), size)]

    def ask(self, index: int, blocks: Sequence[int], layers: range) -> None:
        """Have `blocks` of chunk `index` read down to the last of `layers`, while something else runs: they will be
        wanted. Does nothing where nobody has to wait for it."""
        if self._readers is not None and blocks:
            for cut in self._shape.cuts(layers):
                self._begin(index, cut.index, blocks, cut.places.stop)

    def blocks(self, index: int, blocks: Sequence[int], layers: range) -> list[Stored]:
        """Some `blocks` of chunk `index`, sorted, on `layers` of the model: one for each stack that has any of them."""
        cuts = self._shape.cuts(layers)
        for cut in cuts:
            self._begin(index, cut.index, blocks, cut.places.stop)
        return [_as_stored(self._reads[index, cut.index].joined(blocks, cut.places)) for cut in cuts]

    def _begin(self, index: int, stack: int, blocks: Sequence[int], stop: int) -> None:
        """Read what is missing of some blocks, on a stack's layers up to the one before `stop`."""
        reads = self._reads.setdefault((index, stack), ChunkReads(self._keys[index]))
        for missing, layers in reads.missing(blocks, stop):
            reads.add(
                Read(missing, layers, self._begun(partial(self._read, self._keys[index], missing, layers, stack)))
            )

    def _begun(self, read: Callable[[], StoredBlocks]) -> Callable[[], StoredBlocks]:
        """What waits for a reading that somebody has begun; the reading itself, where nobody can."""
        if self._readers is None:
            return read
        try:
            return self._readers.submit(read).result
        except RuntimeError:  # at the interpreter's end no thread is given work any more
            return read

    def _read(self, key: str, blocks: list[int], layers: range, stack: int) -> StoredBlocks:
        found = self._store.read_stored(key, blocks, layers, stack, self._device.type == "cuda")
        self._sizes.append(found.nbytes)  # by whichever thread
        return found

    def release(self) -> None:
        """Forget what was read, and read no more. The counts stay."""
        if self._readers is not None:
            self._readers.shutdown(cancel_futures=True)
        try:
            if any(reads.pinned for reads in self._reads.values()):  # a GPU may still read what will be others'
                torch.cuda.current_stream(self._device).synchronize()
        finally:
            self._reads.clear()


def _as_stored(found: StoredBlocks) -> Stored:
    return found.parts or Stored.of(found.data)


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
