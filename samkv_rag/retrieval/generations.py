"""A folder of numbered generations and a pointer to the current one: readers never see half an index.

    root/lock      held while a process writes
    root/CURRENT   the name of the generation to read
    root/gen-12/   a complete index, never changed after its rename

A generation is written under a temporary name, with a digest of each file, fsynced file by file and renamed; then
CURRENT is replaced. A process killed at any point leaves the old generation current; what it left behind is removed by
the next writer.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from filelock import FileLock, Timeout

from samkv_rag.retrieval.errors import RetrievalError

_UNFINISHED = ".unfinished-"
_NAME = re.compile(r"gen-\d+")
_DIGESTS = "digests.json"


@contextmanager
def write_lock(root: Path, on_wait: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold the writers' lock; `on_wait` is called if another process has it. The system frees it when that dies."""
    root.mkdir(parents=True, exist_ok=True)
    lock = FileLock(root / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        on_wait()
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def current(root: Path) -> Path | None:
    """The folder of the current generation, or None before the first; raises RetrievalError if the pointer is none."""
    try:
        name = (root / "CURRENT").read_text(encoding="ascii").strip()
    except FileNotFoundError:
        return None
    except UnicodeDecodeError as error:
        raise damaged(root) from error
    if not _NAME.fullmatch(name):
        raise damaged(root)
    return root / name


def damaged(root: Path) -> RetrievalError:
    """The error for an index that cannot be read."""
    return RetrievalError(f"The index in {root} is damaged: remove that folder and ingest again.")


def verify(generation: Path) -> None:
    """Raise ValueError if a file of a generation is not what was written, as far as that was recorded."""
    try:
        digests = json.loads((generation / _DIGESTS).read_text(encoding="utf-8"))
    except FileNotFoundError:  # written by an earlier version
        return
    if digests != _digests(generation, digests):
        raise ValueError(f"{generation} is damaged.")


def _digests(generation: Path, names: Iterable[str]) -> dict[str, str]:
    found = {}
    for name in names:
        with open(generation / name, "rb") as file:
            found[name] = hashlib.file_digest(file, "blake2b").hexdigest()
    return found


def publish(root: Path, write: Callable[[Path], None]) -> Path:
    """Let `write` fill a new generation and make it current; the caller holds the lock. What is not finished is
    removed; raises RetrievalError if there is no room, or no permission, to write."""
    try:
        target = _publish(root, write)
    except BaseException as error:
        _sweep(root, keep=current(root))
        if isinstance(error, OSError | RuntimeError):  # faiss raises the latter
            raise _unwritten(root, error) from error
        raise
    _sweep(root, keep=target)
    return target


def _publish(root: Path, write: Callable[[Path], None]) -> Path:
    before = current(root)
    unfinished = root / f"{_UNFINISHED}{uuid4().hex}"
    unfinished.mkdir()
    write(unfinished)
    digests = _digests(unfinished, sorted(path.name for path in unfinished.iterdir()))
    (unfinished / _DIGESTS).write_text(json.dumps(digests), encoding="utf-8")
    for path in unfinished.iterdir():
        _sync(path)
    _sync(unfinished)
    target = root / f"gen-{_number(before) + 1}"
    if target.exists():  # renamed by a process that died before it could replace CURRENT
        shutil.rmtree(target)
    os.rename(unfinished, target)
    _sync(root)
    _point(root, target)
    return target


def _unwritten(root: Path, error: OSError | RuntimeError) -> RetrievalError:
    reason = error.strerror if isinstance(error, OSError) else None
    remedy = "check the permissions of that folder" if isinstance(error, PermissionError) else "free some space"
    reason = reason or (str(error).strip().splitlines() or [type(error).__name__])[-1]
    return RetrievalError(f"The index in {root} cannot be written ({reason}): {remedy} and run the same command.")


def _number(generation: Path | None) -> int:
    return int(generation.name.removeprefix("gen-")) if generation else 0


def _point(root: Path, target: Path) -> None:
    pointer = root / f"{_UNFINISHED}CURRENT"
    pointer.write_text(target.name, encoding="ascii")
    _sync(pointer)
    os.replace(pointer, root / "CURRENT")
    _sync(root)


def _sweep(root: Path, keep: Path | None) -> None:
    """Remove leftovers and old generations, deleted documents with them; readers that were opening one try again."""
    for path in root.iterdir():
        if path.is_dir() and path != keep and path.name.startswith((_UNFINISHED, "gen-")):
            shutil.rmtree(path, ignore_errors=True)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
