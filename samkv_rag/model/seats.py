"""Where the caches of answers that take steps side by side are in memory, and the sizes of such steps."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from samkv_kernels.offsets import hint
from samkv_kernels.rows_attention import packed_place, place
from samkv_rag.model.cache import SlotCache

FEWEST_SLOTS = 256


@dataclass(frozen=True, slots=True)
class Spare:
    """The cache of empty rows, and what offsets of packed entries are counted from: `codes` and `steps`."""

    cache: SlotCache
    codes: Tensor
    steps: Tensor

    @classmethod
    def of(cls, cache: SlotCache) -> Spare:
        """A spare with this cache."""
        device = cache.positions.device
        kinds = torch.uint8, torch.half
        return cls(cache, *(torch.zeros(1, dtype=kind, device=device) for kind in kinds))


@dataclass(frozen=True, slots=True, eq=False)
class Seat:
    """Where an answer's cache is, by layer, int64 on the host: relative to the spare one, `(L, 4)` (see `Places`), and
    what it holds `packed`, `(L, 8)` (see `PackedPlaces`), zeros if that is nothing."""

    cache: weakref.ref[SlotCache]  # a recording outlives its answers; their caches must not
    memory: tuple[int, int]
    table: Tensor
    packed: Tensor
    hint: int

    @classmethod
    def of(cls, cache: SlotCache, spare: Spare) -> Seat:
        """The seat of a cache. Raises ValueError where that is not like the spare one."""
        pairs = zip(cache.slot_layers, spare.cache.slot_layers, strict=True)
        lines = [place(*layer.buffers, *other.buffers) for layer, other in pairs]
        layers = [] if cache.packed is None else cache.packed.layers
        packed = [packed_place(layer, spare.codes, spare.steps) for layer in layers] or [[0] * 8 for _ in lines]
        common = hint(chain(*lines, *(line[:4] for line in packed)))
        return cls(weakref.ref(cache), cache.slot_layers[0].place, torch.tensor(lines), torch.tensor(packed), common)

    @property
    def slots(self) -> int:
        """How many slots the cache has."""
        return self.memory[1]

    @property
    def packed_tokens(self) -> int:
        """How many packed tokens it holds beside them."""
        return int(self.packed[0, 4])


@dataclass(frozen=True, slots=True)
class Sizes:
    """What steps served by one recording have in common: rows, slots of the longest cache, packed tokens of the cache
    that has most, what places are multiples of."""

    rows: int
    slots: int
    packed: int
    hint: int

    @classmethod
    def of(cls, seats: Sequence[Seat], nobody: Seat) -> Sizes:
        """The sizes for some answers, rounded up so that there are few."""
        slots, packed = max(seat.slots for seat in seats), max(seat.packed_tokens for seat in seats)
        common = min(nobody.hint, *(seat.hint for seat in seats))
        return cls(rounded(len(seats)), _power(slots, 1), _power(packed, 2) if packed else 0, common)


def rounded(rows: int) -> int:
    """The number that `rows` is rounded up to: 1, 2, 4, 8, 12, 16, 24, 32, 48, 64, ..."""
    power = 1 << (rows - 1).bit_length()
    return power // 4 * 3 if power > 8 and rows <= power // 4 * 3 else power


def _power(tokens: int, bits: int) -> int:
    """The power of 2, or with two `bits` of 4, that `tokens` is rounded up to."""
    power = (max(tokens, FEWEST_SLOTS) - 1).bit_length()
    return 1 << -(-power // bits) * bits
