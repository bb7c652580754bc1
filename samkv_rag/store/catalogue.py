"""The catalogue: a SQLite file that tells what is stored without opening the entries.

Everything it holds about an entry can be rebuilt from the entry's own files, and is, when the catalogue is damaged or
lost: it is moved aside, and a new one adopts every entry found. Its write transaction is also the lock, across all
processes, under which files are renamed into place and removed.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import time
import uuid
import warnings
from collections.abc import Callable, Iterable
from contextlib import closing, suppress
from pathlib import Path
from typing import TypeVar

from samkv_rag.store.errors import StoreError, StoreFull, StoreReadOnly
from samkv_rag.store.files import FULL_ADVICE, folder_lock, make_folder, sentences
from samkv_rag.store.forks import AtRest
from samkv_rag.store.rows import COUNTERS, SCHEMA, Row, RowDamaged, Rows

T = TypeVar("T")
NAME = "catalogue.sqlite"
ASIDE = "catalogue.damaged-"
_BUSY_SECONDS = 60.0
_FEW_BYTES = 1 << 20
# UnicodeDecodeError: how Python passes on an SQLite message that quotes damaged text.
_TROUBLE = (sqlite3.Error, RowDamaged, UnicodeDecodeError)
LOGS = ("-wal", "-shm")
_DAMAGE = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
_IO_TROUBLE = frozenset({sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN})
_INHERITED: list[sqlite3.Connection] = []


class Catalogue(AtRest):
    """Transactions on the catalogue of `folder`. `scan` yields the rows of all entries on disk, for a rebuild."""

    rank = 0
    only_read = False

    def __init__(self, folder: Path, scan: Callable[[], Iterable[Row]]) -> None:
        super().__init__()
        self.folder = folder
        self._path = folder / NAME
        self._scan = scan
        self._connection: sqlite3.Connection | None = None
        self._opened_as: tuple[int, ...] = (0, 0)
        self._closed = False
        self.read(Rows.schema)

    def read(self, action: Callable[[Rows], T]) -> T:
        """Run `action` and return its result. It may run twice, if the catalogue turns out to be damaged."""
        return self._repairing(lambda connection: action(Rows(connection)))

    def write(self, action: Callable[[Rows], T], wait: bool = True) -> T:
        """Run `action` as one transaction, the only writer in all processes, and return its result. It may run twice.

        With `wait=False` StoreError is raised at once if another writer is active, or a thread that waits for one.
        """
        self.require_writable()
        return self._repairing(lambda connection: _transaction(connection, action, wait), wait)

    def require_writable(self) -> None:
        """Raise `StoreReadOnly` if nothing can be written."""
        if self.only_read:
            raise StoreReadOnly(self.folder)

    def check_open(self) -> None:
        """Raise StoreError after `close`."""
        if self._closed:
            raise StoreError("The store is closed: open it again with ChunkKVStore(path).")

    def close(self) -> None:
        """Release the file; a second call does nothing."""
        with self._lock:
            self._closed = True
            self._disconnect()

    def rest(self) -> None:
        """Close the connection, too: SQLite would believe that a child holds the locks that its parent has."""
        super().rest()
        self._disconnect()

    def _repairing(self, action: Callable[[sqlite3.Connection], T], wait: bool = True) -> T:
        if not self._lock.acquire(blocking=wait):
            raise StoreError(f"Another thread uses {self._path}: try again when it is done.")
        try:
            with sentences(self.folder):
                try:
                    return action(self._connected())
                except _TROUBLE as error:
                    self._repair(error)
                    return action(self._connected())
        except _TROUBLE as error:
            raise self._explained(error) from error
        finally:
            self._lock.release()

    def _connected(self) -> sqlite3.Connection:
        self.check_open()
        # A forked process must not use its parent's connection, and once another process has moved the catalogue
        # aside or it was deleted, our connection no longer belongs to the current one.
        if self._connection is None or self._opened_as != (os.getpid(), _inode(self._path)):
            self._disconnect()
            make_folder(self.folder)
            with folder_lock(self.folder):
                self._connection = self._connect()
        return self._connection

    def _connect(self) -> sqlite3.Connection:
        """A connection to a sound catalogue, created if there is none; the caller holds the folder's lock."""
        try:
            return self._open()
        except sqlite3.OperationalError as error:
            # The statements in `_open` are correct: if SQLite cannot make sense of one, the file is at fault.
            if _primary_code(error) == sqlite3.SQLITE_ERROR:
                raise RowDamaged(str(error)) from error
            raise

    def _open(self) -> sqlite3.Connection:
        self._opened_as = (os.getpid(), _inode(self._path))
        if not self._path.exists():
            # The log of a deleted catalogue, which others may still have open, does not belong to the new one.
            for suffix in LOGS:
                Path(f"{self._path}{suffix}").unlink(missing_ok=True)
        connection = _opened(self._path)
        self._opened_as = (os.getpid(), _inode(self._path))
        try:
            rows = Rows(connection)
            if rows.schema() == 0:
                _transaction(connection, lambda _: self._create(rows), wait=True)
        except BaseException:
            connection.close()
            raise
        return sound(connection)

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None and self._opened_as[0] != os.getpid():
            # Closing it here could disturb the parent: keep it from being garbage-collected, too.
            _INHERITED.append(connection)
        elif connection is not None:
            with suppress(sqlite3.Error):
                connection.close()

    def _create(self, rows: Rows) -> None:
        if rows.schema() == 0:
            rows.create()
            for row in self._scan():
                rows.add(row)
            _salvage(self.folder, rows)

    def _repair(self, error: Exception) -> None:
        """Replace a damaged catalogue with one rebuilt from the files; raise `error` for any other problem."""
        if not _is_damage(error, self._path):
            raise error
        self._disconnect()
        with folder_lock(self.folder):
            # Another process may already have done this: then the file is not the one that we found damaged.
            if self._opened_as[1] == _inode(self._path):
                self._replace(error)

    def _replace(self, error: Exception) -> None:
        aside = self.folder / f"{ASIDE}{uuid.uuid4().hex[:8]}"
        warnings.warn(
            f"The catalogue {self._path} was damaged ({error}) and is made again from the stored entries; "
            f"the damaged one is kept as {aside.name} until the next prune.",
            RuntimeWarning,
            stacklevel=2,
        )
        _move(self._path, aside)
        self._connect().close()

    def _explained(self, error: Exception) -> StoreError:
        code = _primary_code(error)
        if code == sqlite3.SQLITE_FULL or (code in _IO_TROUBLE and shutil.disk_usage(self.folder).free < _FEW_BYTES):
            return StoreFull(f"The disk of {self.folder} is full ({error}). {FULL_ADVICE}.")
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            return StoreError(f"Another process keeps {self._path} locked ({error}): try again when it is done.")
        return StoreError(
            f"The catalogue {self._path} cannot be used ({error}): check that the folder is on a local disk and that "
            "you may write to it; deleting the catalogue file is safe, it is made again from the entries."
        )


def sound(connection: sqlite3.Connection) -> sqlite3.Connection:
    """A connection to a whole catalogue of this version; closed, and RowDamaged or SQLite's error, if it is none."""
    try:
        connection.text_factory = lambda raw: raw.decode("utf-8", "replace")
        rows = Rows(connection)
        if rows.schema() != SCHEMA or not rows.sound():
            raise RowDamaged("The catalogue is not one that this version wrote.")
    except BaseException:
        connection.close()
        raise
    return connection


def _opened(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    try:
        _use_wal(connection)
        # Every commit survives a killed process; the last ones may be lost in a power failure, and are then adopted
        # again from the files, which are synced one by one.
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("PRAGMA secure_delete = ON")  # no texts of deleted chunks remain in free pages
    except BaseException:
        connection.close()
        raise
    return connection


def _use_wal(connection: sqlite3.Connection) -> None:
    """Switch to write-ahead logging. SQLite does not wait for others here, so we must."""
    deadline = time.monotonic() + _BUSY_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL").fetchone()
            return
        except sqlite3.OperationalError as error:
            if _primary_code(error) != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def _transaction(connection: sqlite3.Connection, action: Callable[[Rows], T], wait: bool) -> T:
    _begin(connection, wait)
    try:
        result = action(Rows(connection))
        connection.execute("COMMIT")
        return result
    except BaseException:
        if connection.in_transaction:
            with suppress(sqlite3.Error):
                connection.execute("ROLLBACK")
        raise


def _begin(connection: sqlite3.Connection, wait: bool) -> None:
    if wait:
        connection.execute("BEGIN IMMEDIATE")
        return
    connection.execute("PRAGMA busy_timeout = 0")
    try:
        connection.execute("BEGIN IMMEDIATE")
    finally:
        connection.execute(f"PRAGMA busy_timeout = {int(_BUSY_SECONDS * 1000)}")


def _salvage(folder: Path, rows: Rows) -> None:
    """Recover from the catalogue last set aside what no entry's file records, as far as it can be read."""
    aside = [path for path in folder.glob(f"{ASIDE}*") if not path.name.endswith(LOGS)]
    if not aside:
        return
    latest = max(aside, key=lambda path: path.stat().st_mtime_ns)
    with suppress(*_TROUBLE), closing(sqlite3.connect(latest)) as connection:
        old = Rows(connection)
        for name in COUNTERS:
            rows.count(name, old.counter(name))
        for key, owner in old.owners():
            if isinstance(key, str) and isinstance(owner, str):
                rows.retain(key, owner)


def _move(path: Path, aside: Path) -> None:
    for suffix in (*LOGS, ""):
        with suppress(FileNotFoundError):
            os.replace(f"{path}{suffix}", f"{aside}{suffix}")


def _inode(path: Path) -> int:
    with suppress(FileNotFoundError):
        return path.stat().st_ino
    return 0


def _is_damage(error: Exception, path: Path) -> bool:
    code = _primary_code(error)
    # A flipped version byte makes SQLite treat a file as read-only that the system lets us write.
    mistaken = code == sqlite3.SQLITE_READONLY and os.access(path, os.W_OK) and os.access(path.parent, os.W_OK)
    return not isinstance(error, sqlite3.Error) or code in _DAMAGE or mistaken


def _primary_code(error: Exception) -> int:
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF
