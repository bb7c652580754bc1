"""Several processes share one store."""

from __future__ import annotations

import random
import time
from pathlib import Path

from samkv_rag.store import ChunkKVStore, MissingEntry

from .samples import KEYS, file_of, files, fork, in_child, make_chunk, names, same, wait


def test_two_put_the_same_and_different_keys_while_a_third_evicts(folder: Path) -> None:
    def writer(seed: int) -> None:
        draw = random.Random(seed)
        with ChunkKVStore(folder) as store:
            for _ in range(25):
                key = draw.choice(KEYS[:6])
                if key not in store or draw.random() < 0.3:
                    store.put(key, _chunk(key, draw.randrange(2)))
                _read(store, draw.choice(KEYS[:6]))

    def evicter() -> None:
        with ChunkKVStore(folder) as store:
            over = False
            while not over:
                over = (folder / "done").exists()  # once after the writers, too, however late it begins
                store.prune(max_bytes=60_000, drop_damaged=False)
                assert store.verify() == []
                time.sleep(0.005)

    writers, third = [fork(lambda: writer(1)), fork(lambda: writer(2))], fork(evicter)
    ends = [wait(child) for child in writers]
    (folder / "done").touch()
    assert [*ends, wait(third)] == [0, 0, 0]
    with ChunkKVStore(folder) as store:
        stats = store.stats()
        assert store.verify() == [] and stats.damaged == 0
        assert files(folder) == names(*store.keys())
        assert stats.evictions > 0 and stats.hits + stats.misses == 50
        assert stats.bytes == sum(path.stat().st_size for path in (folder / "entries").rglob("*.safetensors"))


def test_two_bound_stores_keep_to_the_bound(folder: Path) -> None:
    with ChunkKVStore(folder) as store:
        store.put(KEYS[0], make_chunk(0))
        bound = 3 * store.stats().bytes

    def writer(offset: int) -> None:
        with ChunkKVStore(folder, max_bytes=bound) as store:
            for key in KEYS[offset:] + KEYS[:offset]:
                store.put(key, _chunk(key, 0))

    children = [fork(lambda: writer(0)), fork(lambda: writer(8))]
    assert [wait(child) for child in children] == [0, 0]
    with ChunkKVStore(folder) as store:
        assert 0 < store.stats().bytes <= bound and store.verify() == []


def test_many_open_a_new_store_at_once(folder: Path) -> None:
    def opener(key: str) -> None:
        with ChunkKVStore(folder) as store:
            store.put(key, make_chunk())
            (folder / f"id-{key}").write_text(store.store_id)

    children = [fork(lambda key=key: opener(key)) for key in KEYS[:6]]  # type: ignore[misc]
    assert [wait(child) for child in children] == [0] * 6
    assert len({path.read_text() for path in folder.glob("id-*")}) == 1
    with ChunkKVStore(folder) as store:
        assert list(store.keys()) == KEYS[:6]


def test_two_find_the_catalogue_damaged_at_once(folder: Path) -> None:
    with ChunkKVStore(folder) as store:
        for key in KEYS[:4]:
            store.put(key, make_chunk())
        store.retain(KEYS[0], "owner")
    (folder / "catalogue.sqlite").write_bytes(b"damaged" * 1000)

    def opener(key: str) -> None:
        with ChunkKVStore(folder) as store:
            assert all(known in store for known in KEYS[:4])
            store.put(key, make_chunk())

    children = [fork(lambda key=key: opener(key)) for key in KEYS[4:7]]  # type: ignore[misc]
    assert [wait(child) for child in children] == [0, 0, 0]
    with ChunkKVStore(folder) as store:
        assert list(store.keys()) == KEYS[:7] and store.verify() == []
    assert len({path.name[:27] for path in folder.glob("catalogue.damaged-*")}) == 1


def test_an_open_reader_follows_a_rebuilt_catalogue(folder: Path) -> None:
    with ChunkKVStore(folder) as store:
        store.put(KEYS[0], make_chunk())

        def damager() -> None:
            (folder / "catalogue.sqlite").unlink()
            with ChunkKVStore(folder) as other:
                other.put(KEYS[1], make_chunk(1))

        assert in_child(damager) == 0
        assert list(store.keys()) == KEYS[:2] and same(store, KEYS[1], make_chunk(1))
        store.put(KEYS[2], make_chunk(2))
    with ChunkKVStore(folder) as store:
        assert list(store.keys()) == KEYS[:3] and file_of(folder, KEYS[2], "kv").exists()


def _chunk(key: str, version: int) -> object:
    """Two prefills of one text may differ in the last digit, and are both right."""
    return make_chunk(KEYS.index(key) + 100 * version)


def _read(store: ChunkKVStore, key: str) -> None:
    """Read while others replace and evict: one of the versions as a whole, or a miss; damage is an error here."""
    try:
        store.summary(key)
        kv = store.read_blocks(key)
    except MissingEntry:
        return
    assert any(kv.equal(_chunk(key, version).kv) for version in (0, 1))  # type: ignore[attr-defined]
