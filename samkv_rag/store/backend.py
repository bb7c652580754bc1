"""The interface of every tier of the store. Keys and chunks are checked before they get here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

from samkv_rag.store.quantise import StoredBlocks
from samkv_rag.store.reports import PruneReport, StoreStats
from samkv_rag.types import ChunkKV, ChunkSummary, MatchRecord

Progress = Callable[[int, int], None]
"""Called with (entries done, entries in total)."""


class Backend(Protocol):
    """A place for entries; `ChunkKVStore` documents each method."""

    on_disk: bool
    store_id: str
    bytes_read: int

    def put(self, key: str, chunk: ChunkKV, namespace: str, fingerprint: str, kv_dtype: str) -> None: ...

    def require_writable(self) -> None: ...

    def contains(self, key: str) -> bool: ...

    def count(self) -> int: ...

    def keys(self, namespace: str | None) -> Iterator[str]: ...

    def records(self, namespace: str, fingerprint: str | None) -> Iterator[tuple[str, MatchRecord]]: ...

    def summary(self, key: str) -> ChunkSummary: ...

    def read_blocks(
        self, key: str, blocks: Sequence[int] | None, layers: Sequence[int] | None, stack: int, pinned: bool
    ) -> StoredBlocks: ...  # fmt: skip

    def delete(self, keys: Iterable[str]) -> int: ...

    def retain(self, key: str, owner: str, leave_free: bool) -> None: ...

    def release(self, owner: str, keys: Iterable[str] | None) -> list[str]: ...

    def owned(self, prefix: str) -> list[tuple[str, str]]: ...

    def owned_by(self, owner: str) -> list[str]: ...

    def verify(self, progress: Progress | None) -> list[str]: ...

    def prune(self, max_bytes: int | None, drop_damaged: bool) -> PruneReport: ...

    def stats(self) -> StoreStats: ...

    def close(self) -> None: ...
