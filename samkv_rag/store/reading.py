"""A store that may only be read: another user's, in a container's image, on a file system mounted to be read."""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path

from samkv_rag.store.catalogue import LOGS, NAME, Catalogue, sound
from samkv_rag.store.errors import StoreError
from samkv_rag.store.files import LOCK


def only_read(folder: Path) -> bool:
    """Whether `folder` is there, but it, its lock or its catalogue is not this user's to write."""
    there = [path for path in (folder, folder / LOCK, folder / NAME) if path.exists()]
    effective = os.access in os.supports_effective_ids
    return folder.is_dir() and not all(os.access(path, os.W_OK, effective_ids=effective) for path in there)


class ReadCatalogue(Catalogue):
    """A catalogue of which nothing is changed: neither its file, nor the folder it is in. What its readers use is not
    recorded, and no entry is adopted."""

    only_read = True

    def _connected(self) -> sqlite3.Connection:
        self.check_open()
        if self._connection is None or self._opened_as != self._signature():
            self._disconnect()
            self._connection = self._opened()
        return self._connection

    def _opened(self) -> sqlite3.Connection:
        self._opened_as = self._signature()
        path, log, index = self._files()
        if log.exists() and not index.exists():  # as in a copy: SQLite would make the index, or leave out the log
            return sound(_read_whole(path, log))
        way = "mode=ro" if log.exists() else "mode=ro&immutable=1"  # without a log, SQLite would make one
        return sound(sqlite3.connect(f"{path.absolute().as_uri()}?{way}", uri=True, check_same_thread=False))

    def _repair(self, error: Exception) -> None:
        """Read once more: somebody may have written while the file was taken to be one that nobody changes."""
        self._disconnect()

    def _explained(self, error: Exception) -> StoreError:
        return StoreError(
            f"The catalogue {self._path} cannot be read ({error}), and the folder may only be read here: let somebody "
            "who may write to it open the store once; that makes the catalogue again from the entries."
        )

    def _files(self) -> tuple[Path, Path, Path]:
        """The catalogue, its log, and the log's index, which is there while somebody writes."""
        log, index = (Path(f"{self._path}{suffix}") for suffix in LOGS)
        return self._path, log, index

    def _signature(self) -> tuple[int, ...]:
        """What tells the file that is read from another one, or, unless somebody writes, from a later state of it."""
        path, log, index = self._files()
        found = [each.stat() for each in (path, log) if each.exists()]
        live = log.exists() and index.exists()
        states = [] if live else [part for one in found for part in (one.st_mtime_ns, one.st_size)]
        return (os.getpid(), *(one.st_ino for one in found[:1]), *states)


def _read_whole(path: Path, log: Path) -> sqlite3.Connection:
    """The catalogue, with what is in its log, in memory."""
    whole = sqlite3.connect(":memory:", check_same_thread=False)
    with tempfile.TemporaryDirectory() as folder:
        copies = [shutil.copyfile(each, Path(folder) / each.name) for each in (path, log)]
        with closing(sqlite3.connect(copies[0])) as copied:
            copied.backup(whole)
    return whole
