"""Where an entry's files are, and the operations on them that need no catalogue."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from samkv_rag.store.entry import StoredEntry, decode
from samkv_rag.store.errors import DamagedEntry, EntryError, MissingEntry
from samkv_rag.store.files import TEMPORARY, remove, size_of
from samkv_rag.store.keys import is_key
from samkv_rag.store.lru import ByteLRU
from samkv_rag.store.rows import Row
from samkv_rag.types import MatchRecord

KV_END = ".kv.safetensors"
SUMMARY_END = ".summary.safetensors"


@dataclass(frozen=True, slots=True)
class _Cached:
    entry: StoredEntry
    signature: tuple[int, int, int]


class EntryFolder:
    """The files under `entries/`; summaries that were read are cached in memory, up to `cache_bytes`."""

    def __init__(self, root: Path, cache_bytes: int) -> None:
        self.root = root / "entries"
        self._cache: ByteLRU[_Cached] = ByteLRU(cache_bytes)

    def shard(self, key: str) -> Path:
        """The folder of the entry's files: one of 256 for digests, so that none grows long."""
        return self.root / key[:2]

    def kv_path(self, key: str) -> Path:
        return self.shard(key) / f"{key}{KV_END}"

    def summary_path(self, key: str) -> Path:
        return self.shard(key) / f"{key}{SUMMARY_END}"

    def load(self, key: str) -> StoredEntry:
        """The entry of `key`; its summary file is read at most once while unchanged. MissingEntry, DamagedEntry.

        The K/V file is not opened, but it must exist and have its recorded size.
        """
        path = self.summary_path(key)
        try:
            signature = _signature(path)
            cached = self._cache.get(key)
            if cached is None or cached.signature != signature:
                cached = _Cached(decode(key, path.read_bytes()), signature)
                self._cache.put(key, cached, cached.entry.file_bytes)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise MissingEntry(key, "it was never put, or it was deleted or evicted") from error
        size = size_of(self.kv_path(key))
        if size is None:
            raise MissingEntry(key, "its K/V file is gone")
        if size != cached.entry.kv_file_bytes:
            raise DamagedEntry(key, f"its K/V file has {size} bytes, not {cached.entry.kv_file_bytes}")
        return cached.entry

    def row(self, key: str) -> Row:
        """The catalogue's row for `key`, built from its files; MissingEntry, DamagedEntry."""
        return row_of(key, self.load(key))

    def rows(self) -> Iterator[Row]:
        """The rows of all whole entries."""
        for key in self.found():
            with suppress(EntryError, OSError):
                yield self.row(key)

    def size(self, key: str) -> int | None:
        """Bytes of both files, None unless both are there."""
        kv, summary = size_of(self.kv_path(key)), size_of(self.summary_path(key))
        return None if kv is None or summary is None else kv + summary

    def remove(self, key: str) -> int:
        """Remove the entry's files; returns the bytes they had. The caller holds the catalogue's write transaction."""
        self.forget(key)
        # The summary first: a kill then leaves only a K/V file, which no reader takes for an entry.
        return remove(self.summary_path(key)) + remove(self.kv_path(key))

    def forget(self, key: str) -> None:
        """Drop the cached summary: it is read again when next requested."""
        self._cache.drop(key)

    def found(self) -> Iterator[str]:
        """The keys of all files found, each once: of entries, and of what is left of some."""
        for shard in _folders(self.root):
            names = [name for name in _names(shard) if name.endswith((KV_END, SUMMARY_END))]
            yield from sorted({name.split(".")[0] for name in names if is_key(name.split(".")[0])})

    def unfinished(self) -> Iterator[Path]:
        """Files that are being written, or were when their writer died."""
        for folder in (self.root.parent, *_folders(self.root)):
            yield from (folder / name for name in _names(folder) if name.startswith(TEMPORARY))


def row_of(key: str, entry: StoredEntry) -> Row:
    """The catalogue's row for an entry."""
    summary, kv_dtype = entry.summary, entry.stacks[0].form.kv_dtype
    record = MatchRecord.of(summary.text)
    return Row(key, entry.namespace, entry.fingerprint, summary.n_tokens, kv_dtype, entry.total_bytes, record)


def _folders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []


def _names(folder: Path) -> list[str]:
    """The names in a folder that is there, and that this user may read."""
    with suppress(FileNotFoundError, PermissionError):
        return os.listdir(folder)
    return []


def _signature(path: Path) -> tuple[int, int, int]:
    found = path.stat()
    return found.st_ino, found.st_mtime_ns, found.st_size
