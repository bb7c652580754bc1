"""A store that may only be read: another user's, in a container's image, on a file system mounted to be read."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn, TypeVar

from samkv_rag.store.catalogue import LOGS, NAME, Catalogue, sound
from samkv_rag.store.errors import StoreReadOnly
from samkv_rag.store.files import LOCK
from samkv_rag.store.rows import Rows

T = TypeVar("T")


def only_read(folder: Path) -> bool:
    """Whether `folder` is there, but it, its lock or its catalogue is not this user's to write."""
    there = [path for path in (folder, folder / LOCK, folder / NAME) if path.exists()]
    return folder.is_dir() and not all(os.access(path, os.W_OK) for path in there)


class ReadCatalogue(Catalogue):
    """A catalogue of which nothing is changed: neither its file, nor the folder it is in. What its readers use is not
    recorded, and no entry is adopted."""

    def write(self, action: Callable[[Rows], T], wait: bool = True) -> NoReturn:
        """Raise `StoreReadOnly`."""
        self.require_writable()

    def require_writable(self) -> NoReturn:
        raise StoreReadOnly(self.folder)

    def _connected(self) -> sqlite3.Connection:
        self.check_open()
        if self._connection is None or self._opened_as != self._signature():
            self._disconnect()
            self._connection = self._opened()
        return self._connection

    def _opened(self) -> sqlite3.Connection:
        self._opened_as = self._signature()
        way = "mode=ro" if self._changes() else "mode=ro&immutable=1"
        connection = sqlite3.connect(f"{self._path.absolute().as_uri()}?{way}", uri=True, check_same_thread=False)
        return sound(connection)

    def _repair(self, error: Exception) -> None:
        """Read once more: somebody may have written while the file was taken to be one that nobody changes."""
        self._disconnect()

    def _changes(self) -> bool:
        """Whether somebody writes, whose log is read as well. Without a log, SQLite would make one."""
        return all(Path(f"{self._path}{suffix}").exists() for suffix in LOGS)

    def _signature(self) -> tuple[int, ...]:
        """What tells the file that is read from another one, or from a later state of one that nobody changes."""
        if not self._path.exists():
            return (os.getpid(), 0)
        found = self._path.stat()
        return (os.getpid(), found.st_ino, *(() if self._changes() else (found.st_mtime_ns, found.st_size)))
