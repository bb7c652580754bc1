"""Whatever happens to the bytes, wrong ones are never returned; the entry is reported and can be put again."""

from __future__ import annotations

import errno
import random
import warnings
from pathlib import Path

import pytest

from samkv_rag.store import ChunkKVStore, DamagedEntry, EntryError, MissingEntry, StoreError, StoreFull
from samkv_rag.store import entry as entry_module
from samkv_rag.store.catalogue import Catalogue

from .samples import KEYS, file_of, files, flip, make_chunk, names, same

A, B, C = KEYS[:3]
PARTS = ["kv", "summary"]
small = {"n_tokens": 20, "layers": 2, "heads": 1}


@pytest.fixture
def store(folder: Path) -> ChunkKVStore:
    store = ChunkKVStore(folder)
    for key in (A, B):
        store.put(key, make_chunk(KEYS.index(key), **small), namespace="ns", fingerprint="model")
    return store


def outcome(store: ChunkKVStore, key: str) -> str:
    """What a reader gets; fails if it gets wrong bytes."""
    try:
        assert same(store, key, make_chunk(KEYS.index(key), **small)), "wrong bytes were given out"
    except EntryError as error:
        assert error.key == key
        return type(error).__name__
    return "whole"


def heals(store: ChunkKVStore, key: str) -> bool:
    """Whether another put makes it whole."""
    store.put(key, make_chunk(KEYS.index(key), **small), namespace="ns", fingerprint="model")
    return key in store and outcome(store, key) == "whole" and store.verify() == []


@pytest.mark.parametrize("part", PARTS)
def test_no_flipped_bit_goes_unseen(store: ChunkKVStore, folder: Path, part: str) -> None:
    path = file_of(folder, A, part)
    draw = random.Random(part)
    size = 8 * path.stat().st_size
    for bit in [*range(0, 640, 9), *(draw.randrange(size) for _ in range(60))]:
        flip(path, bit)
        assert outcome(store, A) == "DamagedEntry", f"bit {bit}"
        assert A not in store and outcome(store, B) == "whole"
        flip(path, bit)
    assert store.verify() == [] and A in store and store.stats().damaged == 0
    store.close()


@pytest.mark.parametrize("part", PARTS)
def test_heals_after_a_flip(store: ChunkKVStore, folder: Path, part: str) -> None:
    path = file_of(folder, A, part)
    flip(path, 8 * path.stat().st_size - 5)
    assert store.verify() == [A]
    assert store.stats().damaged == 1 and A not in store
    assert [key for key, _ in store.records("ns")] == [A, B]
    assert heals(store, A) and store.stats().damaged == 0
    flip(path, 8 * path.stat().st_size - 5)
    assert store.prune(drop_damaged=False).damaged == 0 and len(store) == 2
    assert store.prune().damaged == 1
    assert files(folder) == names(B) and list(store.keys()) == [B]
    store.close()


def test_without_the_checksums_a_flip_would_pass(
    store: ChunkKVStore, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = file_of(folder, A, "kv")
    flip(path, 8 * path.stat().st_size - 5)
    monkeypatch.setattr(entry_module, "_check_blocks", lambda *_: None)
    with pytest.raises(AssertionError, match="wrong bytes"):
        outcome(store, A)
    monkeypatch.undo()
    assert outcome(store, A) == "DamagedEntry"
    store.close()


def test_a_flip_in_a_block_not_asked_for_does_no_harm(store: ChunkKVStore, folder: Path) -> None:
    path = file_of(folder, A, "kv")
    flip(path, 8 * path.stat().st_size - 5)
    store.read_blocks(A, [0])
    with pytest.raises(DamagedEntry, match="block 1 of layer 1"):
        store.read_blocks(A, [1])
    store.close()


@pytest.mark.parametrize("part", PARTS)
def test_truncated_or_longer_files(store: ChunkKVStore, folder: Path, part: str) -> None:
    path = file_of(folder, A, part)
    raw = path.read_bytes()
    for content in (b"", raw[:1], raw[:7], raw[:100], raw[: len(raw) // 2], raw[:-1], raw + b"\0", b"\0" * len(raw)):
        path.write_bytes(content)
        assert outcome(store, A) == "DamagedEntry", len(content)
        assert A not in store
        assert store.verify() == [A]
        assert heals(store, A)
    store.close()


@pytest.mark.parametrize("parts", [["kv"], ["summary"], PARTS])
def test_files_of_another_entry(store: ChunkKVStore, folder: Path, parts: list[str]) -> None:
    for part in parts:
        one, two = file_of(folder, A, part), file_of(folder, B, part)
        first, second = one.read_bytes(), two.read_bytes()
        one.write_bytes(second)
        two.write_bytes(first)
    assert outcome(store, A) == outcome(store, B) == "DamagedEntry"
    assert store.verify() == [A, B]
    assert heals(store, B) is False and outcome(store, B) == "whole"
    assert heals(store, A)
    store.close()


def test_an_entry_of_another_model_under_this_name(store: ChunkKVStore, folder: Path) -> None:
    """A folder put together from two stores: whole files, sound checksums, the wrong name."""
    for part in PARTS:
        target = file_of(folder, C, part)
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(file_of(folder, A, part).read_bytes())
    with pytest.raises(DamagedEntry, match=f"written for {A}"):
        store.summary(C)
    assert C not in store and len(store) == 2
    store.close()


def test_an_older_or_newer_file_format(store: ChunkKVStore, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entry_module, "VERSION", "9")
    store.put(C, make_chunk())
    monkeypatch.undo()
    store.close()
    with ChunkKVStore(folder) as again, pytest.raises(DamagedEntry, match="format samkv-chunk 9, not samkv-chunk 2"):
        again.summary(C)


def test_a_folder_in_the_place_of_a_file(store: ChunkKVStore, folder: Path) -> None:
    path = file_of(folder, A, "kv")
    path.unlink()
    path.mkdir()
    assert outcome(store, A) == "DamagedEntry" and outcome(store, B) == "whole"
    store.close()


@pytest.mark.parametrize("seed", range(4))
def test_a_flipped_catalogue(store: ChunkKVStore, folder: Path, seed: int) -> None:
    store.retain(A, "owner")
    store.close()
    path = folder / "catalogue.sqlite"
    sound, draw = path.read_bytes(), random.Random(seed)
    for _ in range(12):
        bit = draw.randrange(8 * 200) if draw.random() < 0.3 else draw.randrange(8 * len(sound))
        flip(path, bit)
        assert survives(folder), f"bit {bit}"
        path.write_bytes(sound)


@pytest.mark.parametrize("mark", [b"SQLite format", b"CREATE TABLE", b"INTEGER NOT", b"entries_by_use", b"last_used"])
@pytest.mark.parametrize("bit", [0, 7])
def test_a_flipped_schema(store: ChunkKVStore, folder: Path, mark: bytes, bit: int) -> None:
    store.close()
    flip(folder / "catalogue.sqlite", 8 * (folder / "catalogue.sqlite").read_bytes().index(mark) + bit)
    assert survives(folder)


@pytest.mark.parametrize("byte", [16, 18, 19, 20, 21, 44, 47, 56, 59, 60, 63])
def test_a_flipped_header(store: ChunkKVStore, folder: Path, byte: int) -> None:
    """Page size, format versions, encoding, user version: what SQLite reads before anything else."""
    store.close()
    flip(folder / "catalogue.sqlite", 8 * byte + 6)
    assert survives(folder)


@pytest.mark.parametrize("content", [b"", b"not a database", b"\0" * 8192])
def test_a_catalogue_that_is_none(store: ChunkKVStore, folder: Path, content: bytes) -> None:
    store.close()
    (folder / "catalogue.sqlite").write_bytes(content)
    assert survives(folder)


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.95])
def test_a_truncated_catalogue(store: ChunkKVStore, folder: Path, keep: float) -> None:
    store.close()
    raw = (folder / "catalogue.sqlite").read_bytes()
    (folder / "catalogue.sqlite").write_bytes(raw[: int(len(raw) * keep)])
    assert survives(folder)


def test_a_catalogue_damaged_while_open(store: ChunkKVStore, folder: Path) -> None:
    store.retain(A, "owner")
    raw = (folder / "catalogue.sqlite").read_bytes()
    (folder / "catalogue.sqlite").write_bytes(b"\x55" * len(raw))
    (folder / "catalogue.sqlite-wal").write_bytes(b"")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        store.put(C, make_chunk(2, **small), namespace="ns")
        assert [key in store for key in (A, B, C)] == [True, True, True]
        assert outcome(store, A) == outcome(store, C) == "whole"
        store.close()
    assert survives(folder)


def test_owners_and_counters_are_saved_from_a_damaged_catalogue(store: ChunkKVStore, folder: Path) -> None:
    store.retain(A, "owner")
    store.summary(A)
    store.close()
    path = folder / "catalogue.sqlite"
    raw = path.read_bytes()
    path.write_bytes(raw.replace(b"This is the text of chunk 0", b"That is the text of chunk 0"))
    with pytest.warns(RuntimeWarning, match="made again from the stored entries"), ChunkKVStore(folder) as again:
        assert [record.head[:4] for _, record in again.records("ns")] == ["This", "This"]
        assert again.stats().hits == 1 and again.release("owner") == [A]
        assert list(folder.glob("catalogue.damaged-*"))
        again.prune()
        assert not list(folder.glob("catalogue.damaged-*"))


def survives(folder: Path) -> bool:
    """Whether the store opens, returns nothing wrong, and is whole after the next ingestion."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        with ChunkKVStore(folder) as store:
            list(store.records("ns"))
            assert outcome(store, A) == outcome(store, B) == "whole"
            for key in (A, B):
                if key not in store:
                    store.put(key, make_chunk(KEYS.index(key), **small), namespace="ns", fingerprint="model")
                assert key in store
            store.stats()
            assert store.release("nobody") == []
            store.prune()
            assert store.verify() == []
            expected = [(key, make_chunk(KEYS.index(key), **small).summary.text[:4]) for key in (A, B)]
            assert [(key, record.head[:4]) for key, record in store.records("ns") if key in (A, B)] == expected
    return True


def test_damage_is_told_as_such_when_it_cannot_be_written_down(
    store: ChunkKVStore, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flip(file_of(folder, A, "kv"), 8 * file_of(folder, A, "kv").stat().st_size - 5)

    def full(*_: object) -> None:
        raise StoreFull("The disk is full.")

    monkeypatch.setattr(Catalogue, "write", full)
    with pytest.raises(DamagedEntry, match="checksum of block"):
        store.read_blocks(A)
    monkeypatch.undo()
    store.close()


def test_a_file_that_the_disk_cannot_read(store: ChunkKVStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(entry_module, "_fill", broken)
    with pytest.raises(DamagedEntry, match="the disk could not read it"):
        store.read_blocks(A)
    assert A not in store
    monkeypatch.undo()
    assert heals(store, A)
    store.close()


def test_missing_is_not_damaged(store: ChunkKVStore) -> None:
    with pytest.raises(MissingEntry):
        store.read_blocks(C)
    assert store.stats().damaged == 0
    store.close()


def test_a_file_in_the_place_of_the_folder_is_told_in_a_sentence(folder: Path) -> None:
    with ChunkKVStore(folder) as store:
        store.put(A, make_chunk())
        folder.rename(folder.with_name("moved"))
        folder.write_text("something else")
        for ask in (
            lambda: A in store,
            lambda: store.put(B, make_chunk()),
            lambda: store.retain(A, "owner"),
            store.stats,
        ):
            with pytest.raises(StoreError, match="check that it is a folder"):
                ask()
        folder.unlink()
        folder.with_name("moved").rename(folder)
        assert same(store, A, make_chunk())
