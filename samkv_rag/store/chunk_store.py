"""The store that users work with, in memory or on disk."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from numbers import Real
from os import PathLike
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from samkv_rag.store.backend import Backend, Progress
from samkv_rag.store.errors import MissingEntry, StoreError
from samkv_rag.store.keys import check_key, is_key
from samkv_rag.store.layout import check_chunk
from samkv_rag.store.memory import MemoryBackend
from samkv_rag.store.profiles import Profiles
from samkv_rag.store.quantise import StoredBlocks
from samkv_rag.store.reports import PruneReport, StoreStats
from samkv_rag.types import ChunkKV, ChunkSummary, MatchRecord

MEMORY = ":memory:"
SUMMARY_CACHE_BYTES = 256 << 20


class ChunkKVStore:
    """Chunk caches by key, in memory or in a folder. Threads may share one; processes may share a folder.

    A folder store is for POSIX systems and a local disk. One that may only be read can be used, and nothing in it be
    changed: `StoreReadOnly`. What `summary` returns is shared: do not change its tensors.
    What `read_blocks` returns is the caller's own.
    """

    def __init__(
        self,
        path: str | Path = MEMORY,
        max_bytes: int | None = None,
        *,
        summary_cache_bytes: int = SUMMARY_CACHE_BYTES,
        device: str | torch.device = "cpu",
    ) -> None:
        """Open the store in the folder `path`, creating it if there is none; ":memory:" is gone with the process.

        Above `max_bytes` (K, V and summaries) a `put` evicts the least recently used entries. Summaries read from
        disk are cached in memory up to `summary_cache_bytes`. A store in memory keeps K and V on `device`; on the
        model's GPU nothing crosses the bus at query time. What comes from a GPU and is kept on the host takes pinned
        memory, whose size counts as the power of two that torch allocates for it.

        ValueError for a device with a folder. StoreError if `path` names no folder, if the folder or the device cannot
        be used, or the folder was made by a newer version; a damaged catalogue is rebuilt, with a warning.
        """
        _check_limit(max_bytes)
        if not isinstance(path, str | PathLike) or path == "":
            raise StoreError(f'A store is named by a folder, or ":memory:", not by {path!r}.')
        folder = None if str(path) == MEMORY else _absolute(path)
        if folder is not None and str(device) != "cpu":
            raise ValueError(f"device={str(device)!r} is for a store in memory: what is in a folder lies on disk.")
        self._backend: Backend = (
            MemoryBackend(max_bytes, device) if folder is None else _on_disk(folder, max_bytes, summary_cache_bytes)
        )
        self.profiles = Profiles(folder)

    @property
    def store_id(self) -> str:
        """An id created with the store and kept as long as the store exists."""
        return self._backend.store_id

    @property
    def on_disk(self) -> bool:
        """Whether keys and values are in files, so that something else can run while they are read."""
        return self._backend.on_disk

    @property
    def bytes_read(self) -> int:
        """K/V bytes, as stored, that `read_blocks` of this object has read so far."""
        return self._backend.bytes_read

    def put(
        self, key: str, chunk: ChunkKV, namespace: str = "default", fingerprint: str = "", kv_dtype: str = "model"
    ) -> None:
        """Store `chunk` under `key`, durably once this returns, replacing any entry there, damaged or not.

        `kv_dtype` is how K and V are stored: "model" (unchanged), "bf16", "fp16", "int8", "fp8" or "int4". Writes
        nothing if the same entry is already there and sound. ValueError if the chunk's shapes do not fit together;
        StoreError if K or V do not fit `kv_dtype`; StoreFull if the disk is full or the chunk is larger than
        `max_bytes`. In these cases nothing is stored.
        """
        check_key(key)
        check_chunk(chunk)
        self.require_writable()
        for text in (namespace, fingerprint):
            _check_text(text)
        self._backend.put(key, chunk, namespace, fingerprint, kv_dtype)

    def require_writable(self) -> None:
        """Raise `StoreReadOnly` if the store's folder may only be read here: before anything is computed for it."""
        self._backend.require_writable()

    def __contains__(self, key: object) -> bool:
        """Whether the entry is there and, as far as can be told without reading it, whole."""
        return isinstance(key, str) and is_key(key) and self._backend.contains(key)

    def __len__(self) -> int:
        """The number of entries, including those found damaged."""
        return self._backend.count()

    def __bool__(self) -> bool:
        """True: an empty store is a store."""
        return True

    def keys(self, namespace: str | None = None) -> Iterator[str]:
        """The keys in order, of `namespace` or of all namespaces."""
        return self._backend.keys(namespace)

    def records(
        self, namespace: str = "default", fingerprint: str | None = None
    ) -> Iterator[tuple[str, MatchRecord]]:  # fmt: skip
        """(key, match record) of every entry in `namespace`, in key order, damaged ones included; opens no entry.

        With `fingerprint`, only of entries that were put with it.
        """
        return self._backend.records(namespace, fingerprint)

    def summary(self, key: str) -> ChunkSummary:
        """The entry's summary; counts a hit or a miss and makes the entry the most recently used.

        MissingEntry if it is not there, DamagedEntry if its bytes are wrong.
        """
        _check_known(key)
        return self._backend.summary(key)

    def read_blocks(
        self, key: str, blocks: Sequence[int] | None = None, layers: Sequence[int] | None = None, stack: int = 0
    ) -> Tensor:  # fmt: skip
        """K and V of `blocks` of `layers` (None: all), `(len(layers), len(blocks), 2, G, BLOCK, D)`, in `put`'s dtype.

        Layers are numbered within the `stack`. Reads only those requested, in that order, and checks them. What follows
        the chunk's last token is zero, or arbitrary if K and V are quantised. MissingEntry, DamagedEntry; IndexError
        for a block, a layer or a stack that the entry does not have.
        """
        return self.read_stored(key, blocks, layers, stack).restored().clone()

    def read_stored(
        self, key: str, blocks: Sequence[int] | None = None, layers: Sequence[int] | None = None, stack: int = 0,
        pinned: bool = False,
    ) -> StoredBlocks:  # fmt: skip
        """Like `read_blocks`, but as stored: numbers and parameters of quantised blocks, and the bytes that were read.
        `pinned`: read from disk into memory that a GPU can access directly, if the system allows it.

        Do not write to the result: from a store in memory it may be the entry itself. From a store on disk an answer
        reads in several threads."""
        _check_known(key)
        return self._backend.read_blocks(key, blocks, layers, stack, pinned)

    def delete(self, keys: Iterable[str]) -> int:
        """Delete the entries and forget their owners; returns how many entries there were."""
        return self._backend.delete([key for key in dict.fromkeys(keys) if is_key(key)])

    def retain(self, key: str, owner: str, leave_free: bool = False) -> None:
        """Record that `owner` needs `key`. Do so before checking whether the entry is there: it may be put later.

        With `leave_free` an entry that is there and has no owner is left without one: to release it would delete it."""
        check_key(key)
        _check_text(owner)
        self._backend.retain(key, owner, leave_free)

    def release(self, owner: str, keys: Iterable[str] | None = None) -> list[str]:
        """Release all that `owner` needs, or `keys`; deletes entries left without an owner, returns their sorted keys.

        Entries that were never retained are left alone.
        """
        return self._backend.release(owner, keys)

    def owned(self, prefix: str = "") -> list[tuple[str, str]]:
        """The sorted (owner, key) pairs of all owners whose name begins with `prefix`."""
        return sorted(self._backend.owned(prefix))

    def owned_by(self, owner: str) -> list[str]:
        """The sorted keys that `owner` needs."""
        return sorted(self._backend.owned_by(owner))

    def verify(self, progress: Progress | None = None) -> list[str]:
        """Read everything and return the sorted keys of entries whose bytes are wrong or missing.

        `progress` is called with (entries done, entries in total).
        """
        return self._backend.verify(progress)

    def prune(self, max_bytes: int | None = None, drop_damaged: bool = True) -> PruneReport:
        """Remove leftovers of killed processes, damaged entries, and the oldest entries above `max_bytes`.

        Other processes may continue to read and write. `drop_damaged` reads everything, as `verify` does. ValueError
        for a negative `max_bytes`.
        """
        _check_limit(max_bytes)
        self.require_writable()
        return self._backend.prune(max_bytes, drop_damaged)

    def stats(self) -> StoreStats:
        """The store's counts."""
        return self._backend.stats()

    def close(self) -> None:
        """Save the counters and release the files; a second call does nothing."""
        self._backend.close()

    def __enter__(self) -> ChunkKVStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _check_text(text: str) -> None:
    """Raise ValueError for half of a character (a lone surrogate), which no file can hold."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{text!r} is no text that can be stored: it has half of a character.") from error


def _check_limit(max_bytes: int | None) -> None:
    if max_bytes is not None and not (isinstance(max_bytes, Real) and max_bytes >= 0):
        raise ValueError(f"max_bytes must be None or at least 0, not {max_bytes!r}.")


def _check_known(key: str) -> None:
    if not is_key(key):
        raise MissingEntry(str(key), "no entry can have this key")


def _on_disk(path: Path, max_bytes: int | None, cache_bytes: int) -> Backend:
    if sys.platform == "win32":
        raise StoreError('A store on disk needs a POSIX system: use ":memory:", or run under WSL.')
    from samkv_rag.store.disk import DiskBackend

    return DiskBackend(path, max_bytes, cache_bytes)


def _absolute(path: str | Path) -> Path:
    try:
        return Path(path).expanduser().absolute()
    except RuntimeError as error:  # nobody has that name
        raise StoreError(f"{path} names no folder ({error}): write its path in full.") from error
