"""Files of another user, in a store that both use: an entry that may not be read is missing, and all else goes on."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from samkv_rag.store import ChunkKVStore, MissingEntry, StoreError

from .samples import KEYS, file_of, in_child, make_chunk, same

A, B = KEYS[:2]
NOBODY = 65534


@pytest.fixture
def shared() -> Iterator[Path]:
    """A store of two entries in a folder that everybody may use."""
    folder = Path(tempfile.mkdtemp())
    with ChunkKVStore(folder) as store:
        store.put(A, make_chunk(0))
        store.put(B, make_chunk(1))
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o777)
    yield folder
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o777)
    shutil.rmtree(folder)


def unprivileged(action: Callable[[], None]) -> Callable[[], None]:
    """`action` without a superuser's rights, for a child."""

    def work() -> None:
        if os.getuid() == 0:
            os.setgroups([])
            os.setuid(NOBODY)
        action()

    return work


def as_nobody(action: Callable[[], None]) -> int:
    """Run `action` in a child without a superuser's rights; the files that are kept from it are nobody's to read."""
    return in_child(unprivileged(action))


@pytest.mark.parametrize("kept", ["kv", "summary", "shard"])
def test_what_may_not_be_read_is_missing(shared: Path, kept: str) -> None:
    path = file_of(shared, A, "kv")
    {"kv": path, "summary": file_of(shared, A, "summary"), "shard": path.parent}[kept].chmod(0)

    def work() -> None:
        with ChunkKVStore(shared) as store:
            with pytest.raises(MissingEntry):
                store.summary(A)
                store.read_blocks(A)
            assert same(store, B, make_chunk(1))
            assert store.verify() == [A]
            report = store.prune()
            assert report.damaged == report.orphans == report.evicted == 0 and len(store) == 2

    assert as_nobody(work) == 0
    path.parent.chmod(0o777)
    assert path.exists() and file_of(shared, A, "summary").exists()


def test_what_may_not_be_removed_is_told_in_a_sentence(shared: Path) -> None:
    file_of(shared, A, "kv").parent.chmod(0o555)

    def work() -> None:
        with ChunkKVStore(shared) as store:
            for remove in (lambda: store.delete([A]), lambda: store.prune(max_bytes=0)):
                with pytest.raises(StoreError, match="Permission denied"):
                    remove()
            assert same(store, A, make_chunk(0)) and A in store

    assert as_nobody(work) == 0
