"""Blocks that are read together, and what has been read of a chunk in several goes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

import torch
from torch import Tensor

from samkv_kernels.sending import few
from samkv_rag.store import DamagedEntry, StoredBlocks


class Read:
    """Some `blocks` of a chunk on some consecutive `layers` of a stack, read by `read`: at once, or by a thread that
    may have begun."""

    def __init__(self, blocks: Sequence[int], layers: range, read: Callable[[], StoredBlocks]) -> None:
        self.blocks, self.layers = list(blocks), layers
        self._read = read

    @cached_property
    def found(self) -> StoredBlocks:
        """What was read, as soon as it is there."""
        read = self._read
        del self._read  # an error refers to this frame, and the read that failed would keep it alive
        try:
            return read()
        finally:
            del read

    @property
    def used(self) -> int:
        """Bytes of what was asked for and has arrived."""
        return self.found.nbytes if "found" in self.__dict__ else 0

    @cached_property
    def _places(self) -> dict[int, int]:
        return {block: place for place, block in enumerate(self.blocks)}

    def holds(self, blocks: Sequence[int]) -> bool:
        """Whether all of these blocks were read."""
        return self.blocks == blocks or self._places.keys() >= set(blocks)

    def overlaps(self, blocks: Sequence[int], layers: range) -> bool:
        """Whether any of these blocks was read on any of these layers."""
        deep = self.layers.start < layers.stop and layers.start < self.layers.stop
        return deep and (self.blocks == blocks or not self._places.keys().isdisjoint(blocks))

    def cut(self, blocks: Sequence[int], layers: range) -> Tensor:
        """What was read of some of its blocks, as stored: `(L, B, ...)`, on those of `layers` that it has."""
        rows = slice(max(0, layers.start - self.layers.start), layers.stop - self.layers.start)
        data = self.found.data[rows]
        if self.blocks == blocks:
            return data
        if len(blocks) == 1:
            return data[:, self._places[blocks[0]], None]
        places = torch.tensor([self._places[block] for block in blocks])
        return data.index_select(1, few(places, data.device))


class ChunkReads:
    """What has been read of an entry's stack, in order: of each block every layer up to some depth, once, and none
    above that."""

    def __init__(self, key: str) -> None:
        self._key = key
        self._reads: list[Read] = []
        self._depths: dict[int, int] = {}

    def missing(self, blocks: Sequence[int], stop: int) -> list[tuple[list[int], range]]:
        """What must be read for `blocks` to be there up to the layer before `stop`: blocks, with their layers."""
        depths = [self._depths.get(block, 0) for block in blocks]
        return [
            ([block for block, known in zip(blocks, depths, strict=True) if known == depth], range(depth, stop))
            for depth in sorted({depth for depth in depths if depth < stop})
        ]

    def add(self, read: Read) -> None:
        """Count the blocks of `read` as read from now on."""
        self._reads.append(read)
        self._depths.update(dict.fromkeys(read.blocks, read.layers.stop))

    def joined(self, blocks: Sequence[int], layers: range) -> StoredBlocks:
        """Some blocks on some layers, none of them missing: without a copy, as they were read, if that was together.
        Raises `DamagedEntry` where they do not fit together."""
        blocks = list(blocks)
        deep = [read for read in self._reads if read.overlaps(blocks, layers)]
        forms = {read.found.form for read in deep}
        if len(forms) > 1:
            raise DamagedEntry(self._key, "it was replaced by one of another form while it was read")
        return StoredBlocks(forms.pop(), _joined(deep, blocks, layers))

    @property
    def used(self) -> int:
        """Bytes of what was asked for and has arrived."""
        return sum(read.used for read in self._reads)

    @property
    def pinned(self) -> bool:
        """Whether a GPU may read any of it in place."""
        return any(read.used and read.found.data.is_pinned() for read in self._reads)


def _joined(reads: Sequence[Read], blocks: list[int], layers: range) -> Tensor:
    if all(read.holds(blocks) for read in reads):
        cuts = [read.cut(blocks, layers) for read in reads]
        return cuts[0] if len(cuts) == 1 else torch.cat(cuts)
    each = [_joined([read for read in reads if read.holds([block])], [block], layers) for block in blocks]
    return torch.cat(each, 1)
