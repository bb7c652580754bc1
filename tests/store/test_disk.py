"""What only a store on disk promises: it can be reopened, and it mends what it can."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import threading
from pathlib import Path

import pytest
import torch

from samkv_rag.store import ChunkKVStore, MissingEntry, StoreError
from samkv_rag.store.catalogue import _begin
from samkv_rag.store.identity import _check

from .samples import KEYS, file_of, files, flip, in_child, make_chunk, names, same

A, B, C = KEYS[:3]


def filled(folder: Path, *keys: str) -> None:
    with ChunkKVStore(folder) as store:
        for key in keys:
            store.put(key, make_chunk(KEYS.index(key)), namespace="ns")


def test_is_there_again(folder: Path) -> None:
    with ChunkKVStore(folder) as store:
        store_id = store.store_id
        store.put(A, make_chunk(), namespace="ns")
        store.retain(A, "owner")
        store.summary(A)
        with pytest.raises(MissingEntry):
            store.summary(B)
    with ChunkKVStore(str(folder)) as store:
        stats = store.stats()
        assert (store.store_id, stats.entries, stats.hits, stats.misses) == (store_id, 1, 1, 1)
        assert same(store, A, make_chunk()) and list(store.keys("ns")) == [A]
        assert stats.path == str(folder) and stats.bytes == sum(
            file_of(folder, A, part).stat().st_size for part in ("kv", "summary")
        )
        assert store.release("owner") == [A]
    assert files(folder) == set()


def test_the_order_of_use_is_kept(folder: Path) -> None:
    filled(folder, A, B, C)
    with ChunkKVStore(folder) as store:
        store.summary(A)
    with ChunkKVStore(folder) as store:
        one = store.stats().bytes // 3
        store.prune(max_bytes=2 * one + 5)
        assert list(store.keys()) == [A, C]


def test_counters_reach_the_disk_without_close(folder: Path) -> None:
    def forgetful() -> None:
        store = ChunkKVStore(folder)
        store.put(A, make_chunk())
        store.summary(A)
        del store

    assert in_child(forgetful) == 0
    with ChunkKVStore(folder) as store:
        assert store.stats().hits == 1


def test_a_put_of_what_is_there_writes_nothing(folder: Path) -> None:
    filled(folder, A)
    before = file_of(folder, A, "kv").stat()
    filled(folder, A)
    after = file_of(folder, A, "kv").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


def test_an_entry_without_a_row_is_adopted(folder: Path) -> None:
    filled(folder, A, B)
    with sqlite3.connect(folder / "catalogue.sqlite") as connection:
        connection.execute("DELETE FROM entries")
    connection.close()
    with ChunkKVStore(folder) as store:
        assert len(store) == 0 and same(store, A, make_chunk(0))
        assert A in store and list(store.keys("ns")) == [A]
        assert store.verify() == [] and list(store.keys("ns")) == [A, B]


@pytest.mark.parametrize("while_open", [False, True])
def test_a_lost_catalogue_is_made_again(folder: Path, while_open: bool) -> None:
    filled(folder, A, B)
    store = ChunkKVStore(folder)
    store_id, records = store.store_id, list(store.records("ns"))
    if not while_open:
        store.close()
    for path in folder.glob("catalogue.sqlite*"):
        path.unlink()
    with store if while_open else ChunkKVStore(folder) as again:
        assert list(again.records("ns")) == records and again.store_id == store_id
        assert again.verify() == []


def test_files_that_are_gone_are_missing(folder: Path) -> None:
    filled(folder, A, B, C)
    file_of(folder, A, "kv").unlink()
    file_of(folder, B, "summary").unlink()
    with ChunkKVStore(folder) as store:
        assert [key in store for key in (A, B, C)] == [False, False, True]
        for key in (A, B):
            with pytest.raises(MissingEntry):
                store.read_blocks(key)
        assert store.verify() == [A, B]
        assert store.prune().damaged == 2
        assert files(folder) == names(C) and list(store.keys()) == [C]


def test_a_file_evicted_by_another_process_is_missing(folder: Path) -> None:
    with ChunkKVStore(folder) as store, ChunkKVStore(folder) as other:
        store.put(A, make_chunk())
        store.summary(A)
        other.prune(max_bytes=0)
        for ask in (store.summary, store.read_blocks):
            with pytest.raises(MissingEntry):
                ask(A)
        assert A not in store


def test_an_entry_replaced_by_another_process_is_read_anew(folder: Path) -> None:
    with ChunkKVStore(folder) as store, ChunkKVStore(folder) as other:
        store.put(A, make_chunk(1))
        assert same(store, A, make_chunk(1))
        other.put(A, make_chunk(2, n_tokens=90))
        assert torch.equal(store.read_blocks(A), make_chunk(2, n_tokens=90).kv)
        assert same(store, A, make_chunk(2, n_tokens=90)) and A in store


def test_summaries_are_held_within_their_bound(folder: Path) -> None:
    filled(folder, *KEYS[:6])
    with ChunkKVStore(folder, summary_cache_bytes=9000) as store:
        for key in KEYS[:6]:
            assert same(store, key, make_chunk(KEYS.index(key)))
        cache = store._backend.files._cache  # type: ignore[attr-defined]
        assert 0 < cache._total <= 9000 and len(cache._held) == 2


def test_prune_clears_away_rests(folder: Path) -> None:
    filled(folder, A, B)
    shard = file_of(folder, A, "kv").parent
    (shard / ".writing-abandoned").write_bytes(b"x" * 100)
    (shard / f"{A[:2]}{'0' * 38}.kv.safetensors").write_bytes(b"y" * 10)
    (shard / f"{A[:2]}{'1' * 38}.summary.safetensors").write_bytes(b"z" * 1)
    (shard / "notes.txt").write_text("not ours")
    (folder / ".writing-abandoned").write_bytes(b"")
    with ChunkKVStore(folder) as store:
        report = store.prune()
        assert (report.orphans, report.bytes_freed, report.evicted, report.damaged) == (3, 111, 0, 0), report
        assert store.verify() == []
    assert files(folder) == names(A, B) | {"notes.txt"}


def test_prune_leaves_what_is_being_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from samkv_rag.store import files as module

    filled(folder, A)
    other, real, pruned = ChunkKVStore(folder), os.replace, []

    def replace(source: Path, target: Path) -> None:
        if str(target).endswith(".kv.safetensors"):
            pruned.extend(module.remove_abandoned(path) for path in target.parent.glob(".writing-*"))
        real(source, target)

    monkeypatch.setattr(module.os, "replace", replace)
    with ChunkKVStore(folder) as store:
        store.put(B, make_chunk(1))
    assert pruned == [0, 0]
    assert same(other, B, make_chunk(1))
    other.close()


def test_a_newer_store_is_refused(folder: Path) -> None:
    filled(folder, A)
    facts = {"format": "samkv-store", "version": 2, "store_id": "x"}
    (folder / "store.json").write_text(json.dumps({**facts, "check": _check(facts)}))
    with pytest.raises(StoreError, match="newer version.*upgrade samkv-rag"):
        ChunkKVStore(folder)
    assert files(folder) == names(A)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b'{"format": "samkv-store", "version": 7}'])
def test_a_damaged_identity_gives_a_new_one(folder: Path, content: bytes) -> None:
    filled(folder, A)
    (folder / "store.json").write_bytes(content)
    with pytest.warns(RuntimeWarning, match="new id"), ChunkKVStore(folder) as store:
        assert same(store, A, make_chunk(0))
        store_id = store.store_id
    with ChunkKVStore(folder) as store:
        assert store.store_id == store_id


def test_a_path_that_is_no_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(StoreError, match="check that it is a folder"):
            ChunkKVStore(path)


def test_a_folder_removed_while_open_is_made_again(folder: Path) -> None:
    with ChunkKVStore(folder) as store:
        store.put(A, make_chunk())
        shutil.rmtree(folder)
        assert A not in store and len(store) == 0
        store.put(A, make_chunk())
        assert same(store, A, make_chunk())


def test_a_moved_store_is_the_same_store(folder: Path, tmp_path: Path) -> None:
    filled(folder, A)
    folder.rename(tmp_path / "moved")
    with ChunkKVStore(tmp_path / "moved") as store:
        assert same(store, A, make_chunk(0)) and A in store


def test_a_forked_child_may_go_on(folder: Path) -> None:
    with ChunkKVStore(folder) as store:
        store.put(A, make_chunk())

        def work() -> None:
            assert same(store, A, make_chunk())
            store.put(B, make_chunk(1))
            store.close()

        assert in_child(work) == 0
        assert same(store, B, make_chunk(1)) and store.stats().entries == 2


def test_hits_do_not_wait_for_a_writer(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from samkv_rag.store.usage import PendingUse

    monkeypatch.setattr(PendingUse, "BATCH", 2)
    filled(folder, A)
    store = ChunkKVStore(folder)
    blocker = sqlite3.connect(folder / "catalogue.sqlite", isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    for _ in range(5):
        store.summary(A)
    blocker.execute("ROLLBACK")
    blocker.close()
    store.summary(A)
    store.close()
    with ChunkKVStore(folder) as again:
        assert again.stats().hits == 6


def test_hits_do_not_wait_for_a_thread_that_waits_for_a_writer(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    from samkv_rag.store.usage import PendingUse

    monkeypatch.setattr(PendingUse, "BATCH", 1)
    filled(folder, A)
    store, asked = ChunkKVStore(folder), threading.Event()
    blocker = sqlite3.connect(folder / "catalogue.sqlite", isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    monkeypatch.setattr(
        "samkv_rag.store.catalogue._begin", lambda connection, wait: (asked.set(), _begin(connection, wait))
    )
    thread = threading.Thread(target=lambda: store.put(B, make_chunk(1)))
    thread.start()
    assert asked.wait(20)
    store.summary(A)
    assert thread.is_alive(), "it still waits"
    blocker.execute("ROLLBACK")
    blocker.close()
    thread.join()
    store.close()
    with ChunkKVStore(folder) as again:
        assert again.stats().hits == 1 and B in again


def test_names_that_name_nothing_are_refused(folder: Path) -> None:
    with pytest.raises(StoreError, match="write its path in full"):
        ChunkKVStore("~nobody-has-this-name/store")
    with ChunkKVStore(folder) as store, pytest.raises(ValueError, match="half of a character"):
        store.retain(A, "half of one: \ud800")


def test_damage_flags_do_not_come_from_bit_order(folder: Path) -> None:
    """A file with a bit flipped and flipped back is whole again: only its bytes count."""
    filled(folder, A)
    for _ in range(2):
        flip(file_of(folder, A, "kv"), 8 * 2000)
    with ChunkKVStore(folder) as store:
        assert store.verify() == []
