"""The stored entries of one prompt's chunks: read once, counted, and read ahead of their use from a disk."""

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
"""Threads that read a prompt's entries from a disk: a disk serves several reads at a time faster, and verifying
checksums takes a processor longer than reading does (zlib's crc32: 1.5 GB/s a thread)."""
STEPS, STEP_BYTES = 8, 1 << 20
"""The most steps in which the layers are read, one being computed on while the next ones arrive; and the least that a
step reads of a chunk, on average: a read takes some 0.3 ms however small it is."""


class Entries:
    """What the store holds of a prompt's chunks. Bytes are those of K and V as stored; the store's own count is shared
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
        waits = store.on_disk and self._steps > 0  # less than that is read before a thread has started
        self._readers = ThreadPoolExecutor(READERS, "samkv-reader") if waits else None
        self._sizes = list[int]()

    @property
    def bytes_read(self) -> int:
        """Bytes that have been read, used or not."""
        return sum(self._sizes)

    @property
    def bytes_used(self) -> int:
        """Bytes that were read and asked for since the last release."""
        return sum(reads.used for reads in self._reads.values())

    def summary(self, index: int) -> tuple[ChunkSummary, bool]:
        """The small part of chunk `index`, and whether it was asked for the first time."""
        new = index not in self._summaries
        if new:
            self._summaries[index] = self._store.summary(self._keys[index])
        return self._summaries[index], new

    def steps(self, layers: range) -> list[range]:
        """The runs in which `layers` of the model are best read: a single one where there is nothing to wait for."""
        size = -(-self._shape.layers // self._steps) if self._readers else max(1, len(layers))
        return [layers[at : at + size] for at in range(0, len(layers), size)]

    def ask(self, index: int, blocks: Sequence[int], layers: range) -> None:
        """Have `blocks` of chunk `index` read up to the last of `layers`, in the background: they will be needed. Does
        nothing where there is nothing to wait for."""
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
        """Begin to read what is missing of some blocks, on a stack's layers up to the one before `stop`."""
        reads = self._reads.setdefault((index, stack), ChunkReads(self._keys[index]))
        for missing, layers in reads.missing(blocks, stop):
            reads.add(
                Read(missing, layers, self._begun(partial(self._read, self._keys[index], missing, layers, stack)))
            )

    def _begun(self, read: Callable[[], StoredBlocks]) -> Callable[[], StoredBlocks]:
        """A call that waits for a read that a thread has begun; the read itself, where no thread can."""
        if self._readers is None:
            return read
        try:
            return self._readers.submit(read).result
        except RuntimeError:  # at interpreter shutdown threads accept no more work
            return read

    def _read(self, key: str, blocks: list[int], layers: range, stack: int) -> StoredBlocks:
        found = self._store.read_stored(key, blocks, layers, stack, self._device.type == "cuda")
        self._sizes.append(found.nbytes)  # from any of the threads
        return found

    def release(self) -> None:
        """Forget what was read, and read no more. The counts are kept."""
        if self._readers is not None:
            self._readers.shutdown(cancel_futures=True)
        try:
            if any(reads.pinned for reads in self._reads.values()):  # a GPU may still be reading memory to be reused
                torch.cuda.current_stream(self._device).synchronize()
        finally:
            self._reads.clear()


def _as_stored(found: StoredBlocks) -> Stored:
    return found.parts or Stored.of(found.data)


def blocks_of(owner: Tensor, inside: Tensor, chunks: int) -> tuple[list[list[int]], Tensor]:
    """For every chunk, the blocks that hold its tokens, which are at places `inside` their `owner` chunks `(T,)`, both
    sorted; and the tokens' rows among these blocks `(T,)`. All chunks are done at once."""
    block = inside // BLOCK
    first = torch.ones(len(owner), dtype=torch.bool)
    first[1:] = (owner[1:] != owner[:-1]) | (block[1:] != block[:-1])
    counts = torch.bincount(owner[first], minlength=chunks)
    below = counts.cumsum(0) - counts
    rows = (first.long().cumsum(0) - 1 - below[owner]) * BLOCK + inside % BLOCK
    numbers = iter(block[first].tolist())
    return [list(islice(numbers, count)) for count in counts.tolist()], rows
