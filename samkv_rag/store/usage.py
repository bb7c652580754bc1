"""Hits, misses and uses that have yet to be written down."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from samkv_rag.store.catalogue import Catalogue
from samkv_rag.store.errors import StoreError
from samkv_rag.store.forks import AtRest
from samkv_rag.store.rows import Rows

T = TypeVar("T")


class PendingUse(AtRest):
    """Hits, misses and uses not yet in the catalogue: one transaction per look-up would cost too much."""

    BATCH = 256
    SECONDS = 2.0

    def __init__(self) -> None:
        super().__init__()
        self._since = time.monotonic()
        self.hits = 0
        self.misses = 0
        self.touched: OrderedDict[str, None] = OrderedDict()

    def hit(self, key: str) -> None:
        with self._lock:
            self.hits += 1
            self.touched[key] = None
            self.touched.move_to_end(key)

    def miss(self) -> None:
        with self._lock:
            self.misses += 1

    @property
    def waiting(self) -> int:
        """How many hits and misses are pending."""
        return self.hits + self.misses

    def due(self) -> bool:
        """Whether it is time to write them down."""
        return self.waiting >= self.BATCH or (self.waiting > 0 and time.monotonic() - self._since > self.SECONDS)

    def take(self) -> PendingUse:
        """Take all that is pending; nothing is afterwards."""
        taken = PendingUse()
        with self._lock:
            taken.hits, taken.misses, taken.touched = self.hits, self.misses, self.touched
            self.hits, self.misses, self.touched = 0, 0, OrderedDict()
            self._since = time.monotonic()
        return taken

    def give_back(self, taken: PendingUse) -> None:
        """Make what was taken pending again, as older than what has come since."""
        with self._lock:
            self.hits += taken.hits
            self.misses += taken.misses
            older = [key for key in taken.touched if key not in self.touched]
            self.touched = OrderedDict.fromkeys([*older, *self.touched])

    def write_down(self, rows: Rows) -> None:
        """Enter in the catalogue the counts and uses that are pending here."""
        rows.touch(self.touched)
        for name, by in (("hits", self.hits), ("misses", self.misses)):
            if by:
                rows.count(name, by)


def in_order(catalogue: Catalogue, use: PendingUse, action: Callable[[Rows], T], wait: bool = True) -> T:
    """Run `action` in one transaction and return its result. What is pending is written down first, so that the order
    of use is correct before `action` adds to it or evicts by it; if that fails, it remains pending."""
    taken = use.take()

    def both(rows: Rows) -> T:
        taken.write_down(rows)
        return action(rows)

    try:
        return catalogue.write(both, wait)
    except BaseException:
        use.give_back(taken)
        raise


def flush(catalogue: Catalogue, use: PendingUse, wait: bool = True) -> None:
    """Write down what is pending; it remains pending if that fails."""
    if use.waiting:
        in_order(catalogue, use, lambda rows: None, wait)


def finish(catalogue: Catalogue, use: PendingUse) -> None:
    """Write down what is pending, if that is possible, and close the catalogue."""
    with suppress(StoreError):
        flush(catalogue, use)
    catalogue.close()
