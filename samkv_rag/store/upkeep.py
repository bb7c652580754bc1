"""Check a disk store as a whole, and remove what no longer belongs to it."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from samkv_rag.store.backend import Progress
from samkv_rag.store.catalogue import ASIDE
from samkv_rag.store.errors import EntryError
from samkv_rag.store.files import remove, remove_abandoned
from samkv_rag.store.reports import PruneReport
from samkv_rag.store.rows import Row, Rows

if TYPE_CHECKING:
    from samkv_rag.store.disk import DiskBackend


def verify(store: DiskBackend, progress: Progress | None) -> list[str]:
    """Sorted keys of the entries whose bytes are wrong or missing; entries without a row are adopted first."""
    adopt_all(store)
    listed = list(store.rows(None))
    bad = []
    for done, row in enumerate(listed, start=1):
        if not _is_sound(store, row):
            bad.append(row.key)
        if progress:
            progress(done, len(listed))
    return bad


def prune(store: DiskBackend, max_bytes: int | None, drop_damaged: bool) -> PruneReport:
    """Drop what is damaged, what belongs to no entry, and the oldest entries above `max_bytes`."""
    adopted = adopt_all(store)
    dropped = [_drop(store, key) for key in (verify(store, None) if drop_damaged else [])]
    damaged = [freed for freed in dropped if freed is not None]
    orphans = [freed for freed in (_clear(store, key) for key in list(store.files.found())) if freed]
    rests = [freed for freed in map(remove_abandoned, list(store.files.unfinished())) if freed]
    aside = [remove(path) for path in _set_aside(store.path)]
    evicted, freed = store.write_in_order(lambda rows: store.evict(rows, max_bytes))
    return PruneReport(
        damaged=len(damaged),
        evicted=evicted,
        adopted=adopted,
        orphans=len(orphans) + len(rests),
        bytes_freed=sum((*damaged, *orphans, *rests, *aside, freed)),
    )


def adopt_all(store: DiskBackend) -> int:
    """Adopt all whole entries without a row; returns how many have one now."""
    ghosts = [key for key in store.files.found() if _has_no_row(store, key) and store.files.size(key) is not None]
    return sum(store.catalogue.write(partial(store.adopt, key=key)) for key in ghosts)


def _is_sound(store: DiskBackend, row: Row) -> bool:
    try:
        store.check(row.key)
    except EntryError:
        # Another process may have deleted it since the rows were listed: then nothing is wrong.
        return _has_no_row(store, row.key)
    if row.damaged:
        store.catalogue.write(partial(Rows.mark, key=row.key, damaged=False))
    return True


def _has_no_row(store: DiskBackend, key: str) -> bool:
    return store.catalogue.read(lambda rows: rows.get(key)) is None


def _drop(store: DiskBackend, key: str) -> int | None:
    """Drop an entry; returns bytes freed, None if it was put again meanwhile. Owners are kept: the text is theirs."""

    def dropped(rows: Rows) -> int | None:
        """Within one transaction: nothing is put meanwhile."""
        row = rows.get(key)
        if row is None or (not row.damaged and store.files.size(key) == row.nbytes):
            return None
        try:
            freed = store.files.remove(key)
        except PermissionError:  # another user's
            return None
        rows.remove(key)
        return freed

    return store.catalogue.write(dropped)


def _clear(store: DiskBackend, key: str) -> int:
    """Remove files of `key` that form no entry; returns bytes freed. Inside a transaction no put is between renames."""

    def cleared(rows: Rows) -> int:
        """Within one transaction, too."""
        if rows.get(key) is not None:
            return 0
        try:
            store.files.load(key)
        except EntryError:
            return store.files.remove(key)
        except PermissionError:
            pass  # another user's
        return 0

    return store.catalogue.write(cleared) if _has_no_row(store, key) else 0


def _set_aside(folder: Path) -> list[Path]:
    """Damaged catalogues that were replaced."""
    return list(folder.glob(f"{ASIDE}*"))
