"""Files that exist whole or not at all, and locks that a killed process cannot leave behind (POSIX)."""

from __future__ import annotations

import errno
import fcntl
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType

from samkv_rag.store.errors import DamagedEntry, MissingEntry, StoreError, StoreFull

TEMPORARY = ".writing-"
"""Prefix of the names of unfinished files; the writer of such a file holds a lock on it as long as it lives."""

RESERVE = "reserve"
"""A file that only takes up room, which is given up if a store cannot otherwise be opened on a full disk."""

LOCK = "lock"
"""The file whose holder may change the folder as a whole."""

_RESERVE_BYTES = 128 << 10
_PIECE = 4 << 20
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
FULL_ADVICE = "Free some space, or give the store a smaller max_bytes, or prune it (store.prune(max_bytes=...))"


class PendingFile:
    """A file being written under a temporary name in `folder`; a context manager that removes it unless published."""

    def __init__(self, folder: Path) -> None:
        self.published = False
        while True:
            self.path = folder / f"{TEMPORARY}{uuid.uuid4().hex}"
            self._fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
            _flock(self._fd, wait=True)
            # A clean-up may have taken the lock in the instant before us, and removed the file.
            if os.fstat(self._fd).st_nlink:
                break
            os.close(self._fd)

    def write(self, data: bytes | memoryview) -> None:
        """Append all of `data`."""
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(self._fd, rest[:_PIECE]) :]

    def sync(self) -> None:
        """Return once the content is on disk."""
        os.fsync(self._fd)

    def publish(self, target: Path) -> None:
        """Give the file its final name, replacing any file that had it; a second call does nothing."""
        if not self.published:
            os.replace(self.path, target)
            self.published = True

    def __enter__(self) -> PendingFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self.published:
            self.path.unlink(missing_ok=True)
        os.close(self._fd)


def sync_folder(folder: Path) -> None:
    """Return once names created or changed in `folder` are on disk."""
    fd = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def make_folder(folder: Path) -> None:
    """Create `folder` and its parents, each of them on disk before the next."""
    if not folder.is_dir():
        if folder.parent != folder:
            make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Hold the folder's lock: one holder at a time across all processes and threads, freed when a process dies."""
    fd = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        _flock(fd, wait=True)
        yield
    finally:
        with suppress(OSError):
            fcntl.flock(fd, fcntl.LOCK_UN)  # closing it would not do while a forked child has it, too
        os.close(fd)


def keep_reserve(folder: Path) -> None:
    """Set the reserve aside, if there is room for it."""
    if not (folder / RESERVE).exists():
        with suppress(OSError), PendingFile(folder) as file:
            file.write(os.urandom(_RESERVE_BYTES))  # no file system can compress these
            file.publish(folder / RESERVE)


def remove_abandoned(path: Path) -> int:
    """Remove the temporary file `path` if its writer is gone; returns bytes freed, 0 if it is being written."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    except (FileNotFoundError, PermissionError):
        return 0
    try:
        # A writer may have published the file under its name and finished: then only this path is gone.
        return remove(path) if _flock(fd, wait=False) else 0
    finally:
        os.close(fd)


def remove(path: Path) -> int:
    """Remove `path` if it exists; returns its size in bytes."""
    with suppress(FileNotFoundError):
        size = path.stat().st_size
        path.unlink()
        return size
    return 0


def size_of(path: Path) -> int | None:
    """Size of the file `path` in bytes, None if there is none, or none that this user may see."""
    with suppress(FileNotFoundError, NotADirectoryError, PermissionError):
        return path.stat().st_size
    return None


@contextmanager
def sentences(folder: Path, key: str | None = None) -> Iterator[None]:
    """Turn the system's errors into the store's; with `key`, also into those of an entry: missing, not this user's to
    read, or unreadable."""
    try:
        yield
    except OSError as error:
        if isinstance(error, FileNotFoundError) and key is not None:
            raise MissingEntry(key, "it was deleted or evicted meanwhile") from error
        if isinstance(error, PermissionError) and key is not None:
            raise MissingEntry(key, f"its files are another user's ({error})") from error
        if error.errno in _FULL:
            raise StoreFull(f"The disk of {folder} is full ({error}). {FULL_ADVICE}.") from error
        if error.errno == errno.EIO and key is not None:
            raise DamagedEntry(key, f"the disk could not read it ({error})") from error
        raise StoreError(
            f"The store {folder} cannot be used ({error}): check that it is a folder that you may read and write."
        ) from error


def _flock(fd: int, wait: bool) -> bool:
    """Whether the lock was taken: never on file systems without locks, where nothing is removed as abandoned."""
    with suppress(OSError):
        fcntl.flock(fd, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False
