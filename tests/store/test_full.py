"""A full disk is reported in a sentence, and the store goes on."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from samkv_rag.store import ChunkKVStore, StoreError, StoreFull

from .samples import KEYS, files, make_chunk, names, same

A, B = KEYS[:2]


CALLS = [
    ("write", 1),
    ("write", 2),
    ("write", 3),
    ("fsync", 1),
    ("fsync", 2),
    ("fsync", 3),
    ("replace", 1),
    ("replace", 2),
]


@pytest.mark.parametrize(("call", "nth"), CALLS)
def test_full_at_any_call(folder: Path, monkeypatch: pytest.MonkeyPatch, call: str, nth: int) -> None:
    with ChunkKVStore(folder) as store:
        store.put(A, make_chunk(0))
        (folder / "entries" / B[:2]).mkdir()
        _fail(monkeypatch, call, nth, errno.ENOSPC)
        with pytest.raises(StoreFull, match="is full.*Free some space.*max_bytes.*prune"):
            store.put(B, make_chunk(1))
        monkeypatch.undo()
        assert files(folder) == names(A) and B not in store and same(store, A, make_chunk(0))
        store.put(B, make_chunk(1))
        assert same(store, B, make_chunk(1)) and store.verify() == []


@pytest.mark.parametrize("code", [errno.EDQUOT, errno.EACCES, errno.EROFS])
def test_other_troubles_are_sentences_too(folder: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    with ChunkKVStore(folder) as store:
        _fail(monkeypatch, "write", 1, code)
        kind = StoreFull if code == errno.EDQUOT else StoreError
        with pytest.raises(kind, match="[Ff]ree some space|check that it is a folder"):
            store.put(A, make_chunk())
        monkeypatch.undo()
        store.put(A, make_chunk())


def test_a_full_disk_keeps_what_the_put_would_have_replaced(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with ChunkKVStore(folder) as store:
        store.put(A, make_chunk(0))
        _fail(monkeypatch, "write", 2, errno.ENOSPC)
        with pytest.raises(StoreFull):
            store.put(A, make_chunk(5))
        assert A in store and same(store, A, make_chunk(0))


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of one MiB."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("mounting a small disk needs root and mount")
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"a small disk could not be mounted: {mounted.stderr.decode().strip()}")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_really_full_disk(tiny_disk: Path) -> None:
    put: list[str] = []
    with ChunkKVStore(tiny_disk / "kv") as store:
        with pytest.raises(StoreFull, match="Free some space"):
            for turn in range(200):
                store.put(f"{turn:040}", make_chunk(turn, n_tokens=60))
                put.append(f"{turn:040}")
        assert len(put) > 5
        for turn, key in enumerate(put):
            assert same(store, key, make_chunk(turn, n_tokens=60))
        assert store.verify() == [] and list(store.keys()) == put
        assert files(tiny_disk / "kv") == names(*put)
        half = store.stats().bytes // 2
        assert store.prune(max_bytes=half).evicted >= len(put) // 2
        store.put(A, make_chunk())
        assert same(store, A, make_chunk())
    with ChunkKVStore(tiny_disk / "kv") as store:
        assert store.verify() == [] and A in store


def test_a_disk_filled_while_the_store_is_open(tiny_disk: Path) -> None:
    """Reading goes on to the last byte, and all is well once there is room."""
    with ChunkKVStore(tiny_disk / "kv") as store:
        store.put(A, make_chunk(0))
        _fill(tiny_disk / "ballast")
        assert same(store, A, make_chunk(0)) and A in store
        with pytest.raises(StoreFull):
            store.put(B, make_chunk(1))
        assert same(store, A, make_chunk(0)) and store.stats().entries == 1
        (tiny_disk / "ballast").unlink()
        store.put(B, make_chunk(1))
        assert store.verify() == [] and list(store.keys()) == [A, B]


def test_a_store_on_a_full_disk_can_be_opened_and_pruned(tiny_disk: Path) -> None:
    with ChunkKVStore(tiny_disk / "kv") as store:
        store.put(A, make_chunk(0))
    _fill(tiny_disk / "ballast")
    with ChunkKVStore(tiny_disk / "kv") as store:
        assert same(store, A, make_chunk(0)) and not (tiny_disk / "kv" / "reserve").exists()
        assert store.prune(max_bytes=0).evicted == 1
    (tiny_disk / "ballast").unlink()
    with ChunkKVStore(tiny_disk / "kv") as store:
        assert (tiny_disk / "kv" / "reserve").exists()
        store.put(B, make_chunk(1))
        assert store.verify() == [] and list(store.keys()) == [B]


def test_a_new_store_on_a_full_disk_is_refused(tiny_disk: Path) -> None:
    _fill(tiny_disk / "ballast")
    with pytest.raises(StoreFull, match="Free some space"):
        ChunkKVStore(tiny_disk / "kv")
    (tiny_disk / "ballast").unlink()
    with ChunkKVStore(tiny_disk / "kv") as store:
        store.put(A, make_chunk())
        assert same(store, A, make_chunk())


def _fill(path: Path) -> None:
    with open(path, "wb", buffering=0) as file:
        for size in (4096, 1):
            try:
                while True:
                    file.write(b"x" * size)
            except OSError as error:
                assert error.errno == errno.ENOSPC


def _fail(monkeypatch: pytest.MonkeyPatch, call: str, nth: int, code: int) -> None:
    """Make the nth call fail, and all after it."""
    real, calls = getattr(os, call), []

    def failing(*args: object) -> object:
        calls.append(args)
        if len(calls) >= nth:
            raise OSError(code, os.strerror(code))
        return real(*args)

    monkeypatch.setattr(os, call, failing)
