"""A store whose folder may only be read: what is in it can be used, nothing is changed, and that is said."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from samkv_rag.store import ChunkKVStore, MissingEntry, StoreError, StoreReadOnly
from samkv_rag.store.profiles import ModelProfile

from .samples import KEYS, file_of, fork, in_child, make_chunk, same, wait
from .test_permissions import as_nobody, unprivileged

A, B, C = KEYS[:3]


@pytest.fixture
def folder() -> Iterator[Path]:
    """A store of two entries, which everybody may read and only its owner may write."""
    root = Path(tempfile.mkdtemp())
    folder = root / "kv"
    with ChunkKVStore(folder) as store:
        store.put(A, make_chunk(0))
        store.put(B, make_chunk(1))
        store.retain(A, "somebody")
    only_read(root)
    yield folder
    writable(root)
    shutil.rmtree(root)


def writable(root: Path) -> None:
    for path in (root, *root.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)


def only_read(root: Path) -> None:
    for path in (root, *root.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_is_there_can_be_used(folder: Path) -> None:
    before = content(folder)

    def work() -> None:
        with ChunkKVStore(folder) as store:
            assert same(store, A, make_chunk(0)) and A in store and len(store) == 2
            assert list(store.keys()) == [A, B] and store.verify() == []
            with pytest.raises(MissingEntry):
                store.summary(C)
            stats = store.stats()
            assert (stats.hits, stats.misses, stats.entries) == (1, 1, 2), "of this object; they are not recorded"
            assert store.profiles.get("a model") is None

    assert as_nobody(work) == 0
    assert content(folder) == before


CHANGES: dict[str, Callable[[ChunkKVStore], object]] = {
    "require_writable": lambda store: store.require_writable(),
    "put": lambda store: store.put(C, make_chunk(2)),
    "put again": lambda store: store.put(A, make_chunk(0)),
    "delete": lambda store: store.delete([A]),
    "retain": lambda store: store.retain(B, "somebody"),
    "release": lambda store: store.release("somebody"),
    "prune": lambda store: store.prune(max_bytes=0),
    "profile": lambda store: store.profiles.put("a model", ModelProfile((1,))),
}


@pytest.mark.parametrize("change", CHANGES)
def test_no_change_is_made_in_silence(folder: Path, change: str) -> None:
    before = content(folder)

    def work() -> None:
        with ChunkKVStore(folder) as store:
            with pytest.raises(StoreReadOnly, match="may only be read"):
                CHANGES[change](store)
            assert same(store, A, make_chunk(0)) and C not in store

    assert as_nobody(work) == 0
    assert content(folder) == before


def test_a_log_without_its_index_is_read_as_well(folder: Path) -> None:
    """As in a copy of a store whose writer was killed."""

    def killed() -> None:
        store = ChunkKVStore(folder)
        store.put(C, make_chunk(2))
        os._exit(0)

    writable(folder.parent)
    assert in_child(killed) == 0
    (folder / "catalogue.sqlite-shm").unlink()
    only_read(folder.parent)
    before = content(folder)

    def work() -> None:
        with ChunkKVStore(folder) as store:
            assert list(store.keys()) == [A, B, C] and same(store, C, make_chunk(2))

    assert as_nobody(work) == 0
    assert content(folder) == before


def test_without_a_catalogue_it_is_said_who_can_make_one(folder: Path) -> None:
    writable(folder.parent)
    (folder / "catalogue.sqlite").unlink()
    only_read(folder.parent)

    def work() -> None:
        with pytest.raises(StoreError, match="let somebody who may write to it open the store once"):
            ChunkKVStore(folder)

    assert as_nobody(work) == 0


def test_what_many_have_used_does_not_take_ever_longer(folder: Path) -> None:
    """What cannot be recorded is not gone through again at every use."""

    def work() -> None:
        with ChunkKVStore(folder) as store:
            use = store._backend._use  # type: ignore[attr-defined]
            taken, take = [], use.take
            use.take = lambda: taken.append(1) or take()
            for _ in range(2 * use.BATCH):
                store.summary(A)
            assert not taken and store.stats().hits == 2 * use.BATCH

    assert as_nobody(work) == 0


def test_damage_is_found_without_being_recorded(folder: Path) -> None:
    path = file_of(folder, A, "kv")
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    only_read(folder)

    def work() -> None:
        with ChunkKVStore(folder) as store:
            assert store.verify() == [A] and same(store, B, make_chunk(1))

    assert as_nobody(work) == 0


def test_another_process_may_write_meanwhile(folder: Path) -> None:
    """What it has stored is found, while it is still at work and once it has finished."""
    (hear, say), (listen, answer) = os.pipe(), os.pipe()

    def work() -> None:
        with ChunkKVStore(folder) as store:
            assert C not in store
            os.write(answer, b"opened")
            assert os.read(hear, 1) == b"1" and same(store, C, make_chunk(2)) and C in store
            os.write(answer, b"seen")
            assert os.read(hear, 1) == b"2" and list(store.keys()) == [A, B, C] and store.verify() == []

    child = fork(unprivileged(work))
    assert os.read(listen, 6) == b"opened"
    writable(folder.parent)
    with ChunkKVStore(folder) as store:
        store.put(C, make_chunk(2))
        os.write(say, b"1")
        assert os.read(listen, 6) == b"seen"
    os.write(say, b"2")
    assert wait(child) == 0
    for end in (hear, say, listen, answer):
        os.close(end)


def test_a_folder_that_is_no_store_does_not_become_one() -> None:
    root = Path(tempfile.mkdtemp())
    root.chmod(0o555)

    def work() -> None:
        with pytest.raises(StoreReadOnly, match="use another folder"):
            ChunkKVStore(root)

    assert as_nobody(work) == 0
    root.rmdir()
