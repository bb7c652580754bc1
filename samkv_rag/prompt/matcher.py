"""Find known chunk texts inside any prompt, by content, without keeping the texts in memory.

A chunk is anchored on its first 32 characters (a shorter one on the largest power of two that fits), so a chunk may
start anywhere, even in the middle of a word. The hashes of all windows of the prompt go through a filter of all
anchors; at the few places left, chunks with that anchor are tried, longest first: length, 16-character tail, digest.

A prompt that was cut to a size holds only the beginning of its last chunk. Keys and values of a prefix are exact,
so such a place gives a partial span, verified against the chunk's text.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from samkv_rag.prompt.windows import TOP_LEVEL, Hashes, WindowFilter, hash_text, hash_windows
from samkv_rag.types import TAIL_CHARS, MatchRecord, text_digest

MIN_CHARS = 32
"""Texts shorter than this are not worth looking for in prompts: they occur in ordinary sentences by chance."""

MIN_PARTIAL = 64
"""Characters of a cut chunk below which its prefix is not worth reusing."""

_TAIL_LEVEL = TAIL_CHARS.bit_length() - 1
# Texts that are fetched to find a cut chunk: at one place, and in one prompt. Only chunks that share their first 32
# characters compete for these, so a limit may cost reuse under long boilerplate heads, but never correctness.
_TRIES = 64
_TRIES_PER_PROMPT = 512
# More lengths than this under one anchor are sieved by their tails' hashes in one numpy step.
_MANY_LENGTHS = 16


@dataclass(frozen=True, slots=True)
class Span:
    """`text[start:stop]` is the chunk that `key` names, or, if `partial`, only a prefix of it."""

    start: int
    stop: int
    key: str
    partial: bool


@dataclass(frozen=True, slots=True)
class _Index:
    """The lengths under one anchor, longest first; if there are many, also all (length, hash of tail) pairs."""

    lengths: list[int]
    pair_lengths: NDArray[np.int64]
    pair_tails: Hashes

    def fitting(self, start: int, size: int, tails: Hashes) -> list[int]:
        """Possible lengths of a chunk at `start` of `size` characters; `tails` hashes every 16-character window."""
        if len(self.lengths) <= _MANY_LENGTHS:
            return [length for length in self.lengths if start + length <= size]
        ends = start + self.pair_lengths - TAIL_CHARS
        inside = int(np.count_nonzero(ends < len(tails)))
        first = len(ends) - inside
        alive = tails[ends[first:]] == self.pair_tails[first:]
        return list(dict.fromkeys(self.pair_lengths[first:][alive].tolist()))


class _Family:
    """The chunks that share an anchor: length -> tail -> digest -> keys, the oldest key first.

    Written under the matcher's lock; read without it, one atomic dictionary look-up at a time.
    """

    __slots__ = ("index", "members")

    def __init__(self) -> None:
        self.members: dict[int, dict[str, dict[str, tuple[str, ...]]]] = {}
        self.index: _Index | None = None

    def add(self, key: str, record: MatchRecord) -> None:
        digests = self.members.setdefault(record.length, {}).setdefault(record.tail, {})
        digests[record.digest] = (*digests.get(record.digest, ()), key)
        self.index = None

    def discard(self, key: str, record: MatchRecord) -> None:
        """Forget that `key` holds this text; KeyError if it does not."""
        tails = self.members[record.length]
        digests = tails[record.tail]
        keys = tuple(other for other in digests.pop(record.digest) if other != key)
        if keys:
            digests[record.digest] = keys
        if not digests:
            del tails[record.tail]
        if not tails:
            del self.members[record.length]
        self.index = None

    def build(self) -> _Index:
        """The index of the current members."""
        lengths = sorted(self.members, reverse=True)
        if len(lengths) <= _MANY_LENGTHS:
            return _Index(lengths, np.zeros(0, np.int64), np.zeros(0, np.uint32))
        pairs = [(length, tail) for length in lengths for tail in self.members[length]]
        tails = hash_windows([tail for _, tail in pairs], _TAIL_LEVEL)
        return _Index(lengths, np.array([length for length, _ in pairs], np.int64), tails)

    def key_of(self, text: str, start: int, length: int) -> str | None:
        """The chunk of this length that is `text[start : start + length]`."""
        stop = start + length
        tails = self.members.get(length, {})
        digests = tails.get(text[max(start, stop - TAIL_CHARS) : stop])
        if not digests:
            return None
        keys = digests.get(text_digest(text[start:stop]))
        return keys[0] if keys else None

    def keys_longer_than(self, length: int, index: _Index) -> Iterator[str]:
        """One key of each text longer than this, the longest text first."""
        for longer in index.lengths:
            if longer <= length:
                return
            for digests in list(self.members.get(longer, {}).values()):
                for keys in list(digests.values()):
                    yield keys[0]


class Matcher:
    """The known chunks. `text_of` gives a chunk's text (or None); it is called only where a chunk may have been cut."""

    def __init__(self, text_of: Callable[[str], str | None] | None = None) -> None:
        self._text_of = text_of
        self._lock = threading.Lock()
        self._records: dict[str, MatchRecord] = {}
        self._families: dict[str, _Family] = {}
        self._filters: dict[int, WindowFilter] = {}
        self._pending: dict[int, list[str]] = {}

    def __len__(self) -> int:
        return len(self._records)

    def __contains__(self, key: object) -> bool:
        return key in self._records

    def add(self, key: str, record: MatchRecord) -> None:
        """Add this chunk; a key that is already known gets the new record. Empty texts are never found."""
        with self._lock:
            if self._records.get(key) == record:
                return
            self._forget(key)
            self._records[key] = record
            if record.length:
                self._family(_anchor(record)).add(key, record)

    def discard(self, key: str) -> None:
        """Forget this chunk, if it is known."""
        with self._lock:
            self._forget(key)

    def find(self, text: str) -> list[Span]:
        """Known chunks in `text`, leftmost first and the longest at each place, in order and without overlap."""
        filters = self._ready()
        if not filters or not text:
            return []
        hashes = hash_text(text, TOP_LEVEL)
        places = [filter_.where(hashes[level]) for level, filter_ in filters.items()]
        starts = places[0] if len(places) == 1 else np.unique(np.concatenate(places))
        widths = sorted((1 << level for level in filters), reverse=True)
        tickets = iter(range(_TRIES_PER_PROMPT))
        spans: list[Span] = []
        stop = 0
        for start in starts.tolist():
            if start < stop:
                continue
            span = self._at(text, start, widths, hashes[_TAIL_LEVEL], tickets)
            if span is not None:
                spans.append(span)
                stop = span.stop
        return spans

    def _at(self, text: str, start: int, widths: list[int], tails: Hashes, tickets: Iterator[int]) -> Span | None:
        """The longest whole chunk at `start`, or else the longest prefix of one."""
        cut: tuple[_Family, _Index] | None = None
        for width in widths:
            family = self._families.get(text[start : start + width])
            if family is None:
                continue
            index = self._index(family)
            for length in index.fitting(start, len(text), tails):
                key = family.key_of(text, start, length)
                if key is not None:
                    return Span(start, start + length, key, partial=False)
            cut = cut or (family, index)
        return self._prefix_at(text, start, *cut, tickets) if cut and self._text_of else None

    def _prefix_at(self, text: str, start: int, family: _Family, index: _Index, tickets: Iterator[int]) -> Span | None:
        """The longest prefix at `start`, of at least `MIN_PARTIAL` characters, of a chunk of this family."""
        assert self._text_of is not None
        common, best, best_key = 0, "", ""
        keys = islice(family.keys_longer_than(MIN_PARTIAL, index), _TRIES)
        for key, _ in zip(keys, tickets, strict=False):
            chunk = self._text_of(key) or ""
            length = _common_prefix(chunk, text, start)
            if length > common:
                common, best, best_key = length, chunk, key
        cut = _safe_cut(best, common)
        return Span(start, start + cut, best_key, partial=True) if cut >= MIN_PARTIAL else None

    def _family(self, anchor: str) -> _Family:
        family = self._families.get(anchor)
        if family is None:
            family = self._families[anchor] = _Family()
            self._pending.setdefault(_level(len(anchor)), []).append(anchor)
        return family

    def _forget(self, key: str) -> None:
        record = self._records.pop(key, None)
        if record is None or not record.length:
            return
        anchor = _anchor(record)
        family = self._families[anchor]
        family.discard(key, record)
        if not family.members:
            # Its hash is left in the filter until that grows: this costs a look-up that finds nothing, no wrong answer.
            del self._families[anchor]

    def _index(self, family: _Family) -> _Index:
        index = family.index
        if index is None:
            with self._lock:
                index = family.index = family.index or family.build()
        return index

    def _ready(self) -> dict[int, WindowFilter]:
        """The filters by level, including the anchors added since the last call."""
        with self._lock:
            for level, anchors in self._pending.items():
                known = self._filters.get(level)
                if known is not None:
                    known.add(hash_windows(anchors, level))
                if known is None or known.full:
                    anchors = [anchor for anchor in self._families if len(anchor) == 1 << level]
                    self._filters[level] = WindowFilter(hash_windows(anchors, level))
            self._pending.clear()
            return dict(self._filters)


def _level(length: int) -> int:
    return min(TOP_LEVEL, length.bit_length() - 1)


def _anchor(record: MatchRecord) -> str:
    return record.head[: 1 << _level(record.length)]


def _common_prefix(chunk: str, text: str, start: int) -> int:
    """How many characters of `chunk` match `text[start:]`, by bisection: slices compare far faster than a loop."""
    low, high = 0, min(len(chunk), len(text) - start)
    while low < high:
        middle = (low + high + 1) // 2
        if text.startswith(chunk[low:middle], start + low):
            low = middle
        else:
            high = middle - 1
    return low


def _safe_cut(chunk: str, length: int) -> int:
    """The longest cut of at most `length` before white space that follows a word: a token cannot extend across it.

    Tokenizers may join punctuation with the line break after it (".\\n" is one token in several families), so a
    break counts only after a letter or digit.
    """
    for cut in range(min(length, len(chunk) - 1), 0, -1):
        before, after = chunk[cut - 1], chunk[cut]
        if after.isspace() and not before.isspace() and (before.isalnum() or after not in "\r\n"):
            return cut
    return 0
