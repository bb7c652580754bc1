"""A bounded cache of the most recently used values."""

from __future__ import annotations

from collections import OrderedDict
from typing import Generic, TypeVar

from samkv_rag.store.forks import AtRest

V = TypeVar("V")


class ByteLRU(AtRest, Generic[V]):
    """Values of up to `limit` bytes in total; the least recently used are dropped first. Thread-safe."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self._limit = limit
        self._total = 0
        self._held: OrderedDict[str, tuple[V, int]] = OrderedDict()

    def get(self, key: str) -> V | None:
        with self._lock:
            if key not in self._held:
                return None
            self._held.move_to_end(key)
            return self._held[key][0]

    def put(self, key: str, value: V, nbytes: int) -> None:
        """Hold `value`; one that is larger than the limit is not held."""
        with self._lock:
            self._drop(key)
            self._held[key] = (value, nbytes)
            self._total += nbytes
            while self._total > self._limit:
                self._drop(next(iter(self._held)))

    def drop(self, key: str) -> None:
        with self._lock:
            self._drop(key)

    def _drop(self, key: str) -> None:
        _, nbytes = self._held.pop(key, (None, 0))
        self._total -= nbytes
