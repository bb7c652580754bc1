"""Hits, misses and uses that are still to be written down."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from contextlib import suppress

from samkv_rag.store.catalogue import Catalogue
from samkv_rag.store.errors import StoreError
from samkv_rag.store.rows import Rows


class PendingUse:
    """Hits, misses and uses that the catalogue does not know yet: one transaction a look-up would be too dear."""

    BATCH = 256
    SECONDS = 2.0

    def __init__(self) -> None:
        self._lock = threading.Lock()
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

    def due(self) -> bool:
        """Whether it is time to write them down."""
        waiting = self.hits + self.misses
        return waiting >= self.BATCH or (waiting > 0 and time.monotonic() - self._since > self.SECONDS)

    def take(self) -> PendingUse:
        """All that is pending; nothing is, afterwards."""
        taken = PendingUse()
        with self._lock:
            taken.hits, taken.misses, taken.touched = self.hits, self.misses, self.touched
            self.hits, self.misses, self.touched = 0, 0, OrderedDict()
            self._since = time.monotonic()
        return taken

    def give_back(self, taken: PendingUse) -> None:
        """Make what was taken pending again, as older than what came since."""
        with self._lock:
            self.hits += taken.hits
            self.misses += taken.misses
            older = [key for key in taken.touched if key not in self.touched]
            self.touched = OrderedDict.fromkeys([*older, *self.touched])

    def write_down(self, rows: Rows) -> None:
        """Count and touch in the catalogue what is pending here."""
        rows.touch(self.touched)
        for name, by in (("hits", self.hits), ("misses", self.misses)):
            if by:
                rows.count(name, by)


def flush(catalogue: Catalogue, use: PendingUse, wait: bool = True) -> None:
    """Write down what is pending; it stays pending when that fails."""
    taken = use.take()
    try:
        if taken.hits or taken.misses:
            catalogue.write(taken.write_down, wait)
    except BaseException:
        use.give_back(taken)
        raise


def finish(catalogue: Catalogue, use: PendingUse) -> None:
    """Write down what is pending, if that is possible, and close the catalogue."""
    with suppress(StoreError):
        flush(catalogue, use)
    catalogue.close()
