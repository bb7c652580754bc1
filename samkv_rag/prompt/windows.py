"""Hashes of all windows of a text at once, and a filter that says where a known window may be.

A window is 1, 2, 4, 8, 16 or 32 characters wide: its level is the base-2 logarithm of the width. Hashes are 32-bit
sums, doubled in width at each level, `h(2w, i) = h(w, i) * M[w] + h(w, i + w)`: six levels over a text are five numpy
passes. They only filter: the caller compares the characters afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint32]

TOP_LEVEL = 5
"""Level of the widest window: 32 characters."""

_MIX = np.uint32(0x9E3779B1)
_SECOND = np.uint32(0x85EBCA77)
_MULTIPLIERS = tuple(np.uint32(m) for m in (0x2C1B3C6D, 0xC2B2AE3D, 0x27D4EB2F, 0x165667B1, 0xD3A2646D))
_MAX_BITS = 26
_SLOTS_PER_WINDOW = 32


def codes_of(text: str) -> Hashes:
    """The code points of `text`, lone surrogates included."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)


def hash_text(text: str, top: int) -> list[Hashes]:
    """For each level up to `top`: the hash of the window at each character, as far as it fits."""
    levels = [codes_of(text) * _MIX]
    for level in range(top):
        width, narrow = 1 << level, levels[-1]
        levels.append(narrow[:-width] * _MULTIPLIERS[level] + narrow[width:])
    return levels


def hash_windows(windows: Sequence[str], level: int) -> Hashes:
    """The hash of each window of `1 << level` characters; the same numbers as `hash_text` gives."""
    rows = codes_of("".join(windows)).reshape(len(windows), 1 << level) * _MIX
    for multiplier in _MULTIPLIERS[:level]:
        rows = rows[:, ::2] * multiplier + rows[:, 1::2]
    return rows[:, 0]


class WindowFilter:
    """A Bloom filter with two probes: no known window is missed, about one in 500 of the others passes."""

    def __init__(self, hashes: Hashes) -> None:
        bits = min(_MAX_BITS, max(10, (_SLOTS_PER_WINDOW * len(hashes)).bit_length()))
        self._shift = np.uint32(32 - bits)
        self._table = np.zeros(1 << bits, dtype=np.bool_)
        self._room = (1 << bits) * 2 // _SLOTS_PER_WINDOW if bits < _MAX_BITS else 1 << 62
        self.add(hashes)

    @property
    def full(self) -> bool:
        """Whether it holds so many windows that a larger filter pays off."""
        return self._room < 0

    def add(self, hashes: Hashes) -> None:
        """Let these windows pass; safe while another thread calls `where`."""
        self._table[hashes >> self._shift] = True
        self._table[(hashes * _SECOND) >> self._shift] = True
        self._room -= len(hashes)

    def where(self, hashes: Hashes) -> NDArray[np.intp]:
        """Indices of the hashes that may be of known windows."""
        # `take` is several times faster here than indexing with the same array.
        first = np.flatnonzero(self._table.take(hashes >> self._shift))
        second = (hashes.take(first) * _SECOND) >> self._shift
        return first[self._table.take(second)]
