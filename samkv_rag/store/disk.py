"""The tier on disk: two files per entry, a catalogue, and any number of processes that read, put and evict at once.

An entry is what its two files say; the catalogue only records it. Files are renamed and removed inside the catalogue's
write transaction, which one process holds at a time, and the row is committed last. A process killed at any point
leaves the old state, a whole entry without a row (adopted when requested), or leftovers that `prune` removes.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import TypeVar

from samkv_rag.store import upkeep
from samkv_rag.store.backend import Progress
from samkv_rag.store.catalogue import Catalogue
from samkv_rag.store.entry import EncodedEntry, check_kv, encode, read_kv
from samkv_rag.store.errors import DamagedEntry, EntryError, MissingEntry, StoreError, StoreFull, StoreReadOnly
from samkv_rag.store.files import RESERVE, PendingFile, keep_reserve, make_folder, remove, sentences, sync_folder
from samkv_rag.store.folder import EntryFolder, row_of
from samkv_rag.store.forks import AtRest
from samkv_rag.store.identity import identify
from samkv_rag.store.quantise import StoredBlocks
from samkv_rag.store.reading import ReadCatalogue, only_read
from samkv_rag.store.reports import PruneReport, StoreStats
from samkv_rag.store.rows import Row, Rows
from samkv_rag.store.usage import PendingUse, finish, flush, in_order
from samkv_rag.types import ChunkKV, ChunkSummary, MatchRecord

T = TypeVar("T")


class DiskBackend(AtRest):
    """Entries in the folder `path`."""

    on_disk = True

    def __init__(self, path: Path, max_bytes: int | None, cache_bytes: int) -> None:
        super().__init__()
        self.path = path
        self.bytes_read = 0
        self._max_bytes = max_bytes
        self._use = PendingUse()
        with sentences(path):
            self.store_id = identify(path)
            self.files = EntryFolder(path, cache_bytes)
            self.catalogue = self._open_catalogue()
        # What is pending is also written down when the store is garbage-collected or the process ends.
        self._finish = weakref.finalize(self, finish, self.catalogue, self._use)

    def put(self, key: str, chunk: ChunkKV, namespace: str, fingerprint: str, kv_dtype: str) -> None:
        """Write the entry, or note its use if the same one is already there; raises `StoreFull` if it does not fit."""
        encoded = encode(key, chunk, namespace, fingerprint, kv_dtype)
        self._check_size(key, encoded)
        if self._holds(key, encoded):
            self.write_in_order(lambda rows: rows.touch([key]))
            return
        with sentences(self.path):
            make_folder(self.files.shard(key))
            self._write(key, encoded)

    def require_writable(self) -> None:
        self.catalogue.require_writable()

    def contains(self, key: str) -> bool:
        row = self.catalogue.read(lambda rows: rows.get(key))
        if row is not None:
            return not row.damaged and self.files.size(key) == row.nbytes
        if self.files.size(key) is not None:
            with suppress(StoreError):  # no room for a row, or the lock was not free
                return self.catalogue.write(lambda rows: self.adopt(rows, key))
        return False

    def count(self) -> int:
        return self.catalogue.read(Rows.totals)[0]

    def keys(self, namespace: str | None) -> Iterator[str]:
        return (row.key for row in self.rows(namespace))

    def records(self, namespace: str, fingerprint: str | None) -> Iterator[tuple[str, MatchRecord]]:
        return ((row.key, row.record) for row in self.rows(namespace) if fingerprint in (None, row.fingerprint))

    def summary(self, key: str) -> ChunkSummary:
        """The entry's summary; counts a hit or a miss and occasionally saves the counts. Raises `EntryError`."""
        try:
            entry = self._checked(key, lambda: self.files.load(key))
        except EntryError:
            self._use.miss()
            raise
        self._use.hit(key)
        if self._use.due() and not self.catalogue.only_read:
            with suppress(StoreError):
                flush(self.catalogue, self._use, wait=False)
        return entry.summary

    def read_blocks(
        self, key: str, blocks: Sequence[int] | None, layers: Sequence[int] | None, stack: int, pinned: bool
    ) -> StoredBlocks:  # fmt: skip
        path = self.files.kv_path(key)
        out = self._checked(key, lambda: read_kv(path, key, self.files.load(key), blocks, layers, stack, pinned))
        with self._lock:
            self.bytes_read += out.nbytes
        return out

    def delete(self, keys: Iterable[str]) -> int:
        with sentences(self.path):
            return self.catalogue.write(lambda rows: sum([self._delete(rows, key) for key in list(keys)]))

    def retain(self, key: str, owner: str, leave_free: bool) -> None:
        self.catalogue.write(lambda rows: None if leave_free and rows.is_free(key) else rows.retain(key, owner))

    def release(self, owner: str, keys: Iterable[str] | None) -> list[str]:
        """In one transaction, release `keys` or all that `owner` holds; returns those deleted for lack of an owner."""
        chosen = None if keys is None else sorted(set(keys))

        def released(rows: Rows) -> list[str]:
            candidates = rows.owned(owner) if chosen is None else chosen
            gone = [key for key in candidates if rows.release(key, owner)]
            for key in gone:
                self._delete(rows, key)
            return gone

        with sentences(self.path):
            return self.catalogue.write(released)

    def owned(self, prefix: str) -> list[tuple[str, str]]:
        return self.catalogue.read(lambda rows: rows.owned_under(prefix))

    def owned_by(self, owner: str) -> list[str]:
        return self.catalogue.read(lambda rows: rows.owned(owner))

    def verify(self, progress: Progress | None) -> list[str]:
        with sentences(self.path):
            return upkeep.verify(self, progress)

    def prune(self, max_bytes: int | None, drop_damaged: bool) -> PruneReport:
        with sentences(self.path):
            return upkeep.prune(self, max_bytes, drop_damaged)

    def stats(self) -> StoreStats:
        with suppress(StoreFull, StoreReadOnly):
            flush(self.catalogue, self._use)
        return self.catalogue.read(self._stats)

    def close(self) -> None:
        self._finish()

    def check(self, key: str) -> None:
        """Check every checksum of the entry; MissingEntry, or DamagedEntry after marking it as damaged."""
        self._checked(key, lambda: check_kv(self.files.kv_path(key), key, self.files.load(key)))

    def rows(self, namespace: str | None) -> Iterator[Row]:
        """The rows, read page by page, so that neither the lock nor a transaction is held while the caller works."""
        after = ""
        while page := self.catalogue.read(partial(Rows.page, namespace=namespace, after=after)):
            yield from page
            after = page[-1].key

    def adopt(self, rows: Rows, key: str) -> bool:
        """Give a row to an entry that has none; returns whether it now has one."""
        if rows.get(key) is None:
            try:
                rows.add(self.files.row(key))
            except (EntryError, OSError):
                return False
        return True

    def write_in_order(self, action: Callable[[Rows], T]) -> T:
        """Run `action` as one transaction that includes every use of this store so far, and return its result."""
        return in_order(self.catalogue, self._use, action)

    def evict(self, rows: Rows, limit: int | None, keep: str | None = None) -> tuple[int, int]:
        """Evict the least recently used, except `keep`, until the rest fits `limit`; returns (entries, bytes) freed."""
        total, entries, freed = rows.total_bytes() if limit is not None else 0, 0, 0
        while limit is not None and total > limit and (row := rows.oldest(keep)) is not None:
            freed += self.files.remove(row.key)
            rows.remove(row.key)
            total, entries = total - row.nbytes, entries + 1
        rows.count("evictions", entries)
        return entries, freed

    def _open_catalogue(self) -> Catalogue:
        """The catalogue; on a full disk the reserve is given up for it, without which one could not prune."""
        if only_read(self.path):
            return ReadCatalogue(self.path, self.files.rows)
        try:
            catalogue = Catalogue(self.path, self.files.rows)
        except StoreFull:
            if not remove(self.path / RESERVE):
                raise
            return Catalogue(self.path, self.files.rows)
        keep_reserve(self.path)
        return catalogue

    def _write(self, key: str, encoded: EncodedEntry) -> None:
        shard = self.files.shard(key)
        with ExitStack() as stack:
            kv = stack.enter_context(PendingFile(shard))
            kv.write(encoded.kv_header)
            for payload in encoded.kv_payloads:
                kv.write(payload)
            kv.sync()
            summary = stack.enter_context(PendingFile(shard))
            summary.write(encoded.summary_file)
            summary.sync()

            def named(rows: Rows) -> None:
                kv.publish(self.files.kv_path(key))
                summary.publish(self.files.summary_path(key))
                sync_folder(shard)
                rows.add(row_of(key, encoded.entry))
                self.evict(rows, self._max_bytes, keep=key)

            try:
                self.write_in_order(named)
            except StoreError:
                if kv.published:
                    with suppress(StoreError):
                        self.delete([key])
                raise

    def _check_size(self, key: str, encoded: EncodedEntry) -> None:
        size = encoded.entry.total_bytes
        if self._max_bytes is not None and size > self._max_bytes:
            raise StoreFull(
                f"Chunk {key} takes {size} bytes but the store may hold {self._max_bytes}: "
                "raise max_bytes or split the text into shorter chunks."
            )

    def _holds(self, key: str, encoded: EncodedEntry) -> bool:
        """Whether exactly this entry is stored and sound, down to the last checksum."""
        row = self.catalogue.read(lambda rows: rows.get(key))
        if row != row_of(key, encoded.entry):
            return False
        try:
            entry = self.files.load(key)
            if entry.content != encoded.entry.content:
                return False
            check_kv(self.files.kv_path(key), key, entry)
        except (EntryError, OSError):
            return False
        return True

    def _checked(self, key: str, attempt: Callable[[], T]) -> T:
        """Return what `attempt` returns. Damage that it finds is checked again while no file can be renamed: between
        the two renames of a `put` the files of an entry do not match."""
        self.catalogue.check_open()
        try:
            with sentences(self.path, key):
                return attempt()
        except DamagedEntry as damage:
            try:
                result = self.catalogue.write(lambda rows: self._confirm(rows, key, attempt))
            except StoreError:
                raise damage from None  # the disk is full, for example: a reader need not know
        if not isinstance(result, EntryError):
            return result
        try:
            raise result
        finally:
            del result  # else the error's traceback, and all that waited for the entry, would live on in a cycle

    def _confirm(self, rows: Rows, key: str, attempt: Callable[[], T]) -> T | EntryError:
        self.files.forget(key)
        try:
            with sentences(self.path, key):
                return attempt()
        except DamagedEntry as error:
            if rows.get(key) is None:
                self.files.remove(key)
            rows.mark(key, damaged=True)
            return error.with_traceback(None)  # whose frames refer to it themselves, once it is returned
        except MissingEntry as error:
            return error.with_traceback(None)

    def _delete(self, rows: Rows, key: str) -> bool:
        rows.disown(key)
        freed = self.files.remove(key)
        return rows.remove(key) or freed > 0

    def _stats(self, rows: Rows) -> StoreStats:
        entries, nbytes, damaged = rows.totals()
        return StoreStats(
            entries=entries,
            bytes=nbytes,
            hits=rows.counter("hits") + self._use.hits,
            misses=rows.counter("misses") + self._use.misses,
            evictions=rows.counter("evictions"),
            damaged=damaged,
            kv_dtypes=rows.kv_dtypes(),
            bytes_read=self.bytes_read,
            max_bytes=self._max_bytes,
            path=str(self.path),
            store_id=self.store_id,
        )
