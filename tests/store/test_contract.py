"""What every tier promises."""

from __future__ import annotations

import pickle
import threading

import pytest
import torch

from samkv_rag.store import ChunkKVStore, DamagedEntry, MissingEntry, StoreError, StoreFull, StoreReadOnly
from samkv_rag.types import ChunkKV, ChunkSummary, MatchRecord

from .conftest import Opener
from .samples import KEYS, make_chunk, same

A, B, C = KEYS[:3]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int8])
@pytest.mark.parametrize("n_tokens", [1, 15, 16, 17, 100])
def test_gives_back_what_was_put(store: ChunkKVStore, dtype: torch.dtype, n_tokens: int) -> None:
    chunk = make_chunk(n_tokens=n_tokens, dtype=dtype)
    store.put(A, chunk)
    assert same(store, A, chunk)
    assert store.read_blocks(A).dtype == dtype


def test_blocks_come_in_the_order_asked(store: ChunkKVStore) -> None:
    chunk = make_chunk(n_tokens=100)
    store.put(A, chunk)
    for blocks in ([], [0], [6], [2, 3, 4], [5, 1], [0, 2, 3, 6], [1, 1], range(7), torch.tensor([4, 0]).tolist()):
        assert torch.equal(store.read_blocks(A, blocks), chunk.kv[:, list(blocks)]), blocks


def test_counts_the_bytes_of_the_blocks_read(store: ChunkKVStore) -> None:
    chunk = make_chunk(n_tokens=100)
    store.put(A, chunk)
    store.summary(A)
    assert store.bytes_read == 0
    store.read_blocks(A, [1, 2, 5])
    assert store.bytes_read == store.stats().bytes_read == chunk.nbytes * 3 // 7
    store.read_blocks(A)
    assert store.bytes_read == chunk.nbytes * 3 // 7 + chunk.nbytes
    store.read_blocks(A, [1], [0, 2])
    assert store.bytes_read == chunk.nbytes * 3 // 7 + chunk.nbytes + chunk.nbytes * 2 // 21


@pytest.mark.parametrize("block", [-1, 3, 100])
def test_refuses_blocks_that_are_not_there(store: ChunkKVStore, block: int) -> None:
    store.put(A, make_chunk())
    with pytest.raises(IndexError, match=f"Block {block}"):
        store.read_blocks(A, [0, block])
    with pytest.raises(IndexError, match=f"Layer {block}"):
        store.read_blocks(A, [0], [0, block])


@pytest.mark.parametrize("key", [A, "../../etc/passwd", "", "a\0b"])
def test_an_unknown_key_is_a_missing_entry(store: ChunkKVStore, key: str) -> None:
    assert key not in store
    for ask in (store.summary, store.read_blocks):
        with pytest.raises(MissingEntry, match="not in the store") as caught:
            ask(key)
        assert caught.value.key == key
    assert store.delete([key]) == 0


def test_errors_are_store_errors_and_survive_pickling() -> None:
    for error in (MissingEntry("k", "why"), DamagedEntry("k", "why"), StoreReadOnly("k")):
        again = pickle.loads(pickle.dumps(error))
        assert isinstance(again, StoreError) and vars(again) == vars(error) and str(again) == str(error)


def test_put_is_idempotent_and_replaces(store: ChunkKVStore) -> None:
    store.put(A, make_chunk(1))
    store.put(A, make_chunk(1))
    assert len(store) == 1 and same(store, A, make_chunk(1))
    store.put(A, make_chunk(2, n_tokens=70))
    assert len(store) == 1 and same(store, A, make_chunk(2, n_tokens=70))
    size = store.stats().bytes
    store.delete([A])
    store.put(A, make_chunk(2, n_tokens=70))
    assert store.stats().bytes == size


def test_keeps_its_own_copy(store: ChunkKVStore) -> None:
    chunk = make_chunk()
    store.put(A, chunk)
    chunk.kv.zero_()
    chunk.summary.mean.zero_()
    store.read_blocks(A).zero_()
    store.read_blocks(A, [0]).zero_()
    assert same(store, A, make_chunk())


def test_takes_views_and_gradients(store: ChunkKVStore) -> None:
    whole = make_chunk(n_tokens=32)
    strided = whole.kv.transpose(0, 1).contiguous().transpose(0, 1).requires_grad_()
    parts = {name: getattr(whole.summary, name) for name in ("token_ids", "mean", "local_query")}
    summary = ChunkSummary("t", low=whole.summary.mean, high=whole.summary.mean, **parts)
    store.put(A, ChunkKV(summary, strided))
    assert torch.equal(store.read_blocks(A), whole.kv)
    assert not store.read_blocks(A).requires_grad


@pytest.mark.parametrize("text", ["", "a\0b", 'He said "checksum":"00" \\ \n', "\ud800 lone", "日本語 🙂" * 30])
def test_any_text_has_its_record(store: ChunkKVStore, text: str) -> None:
    store.put(A, make_chunk(text=text))
    assert store.summary(A).text == text
    assert list(store.records("default")) == [(A, MatchRecord.of(text))]
    assert store.verify() == []


def test_namespaces_and_models_are_apart(store: ChunkKVStore) -> None:
    store.put(B, make_chunk(1), namespace="one")
    store.put(A, make_chunk(2), namespace="one", fingerprint="model")
    store.put(C, make_chunk(3), namespace='two "quoted" ü')
    assert list(store.keys()) == [A, B, C]
    assert list(store.keys("one")) == [A, B] and list(store.keys('two "quoted" ü')) == [C]
    assert [key for key, _ in store.records("one")] == [A, B]
    assert [key for key, _ in store.records("one", "model")] == [A]
    assert list(store.records("none")) == []


def test_counts_hits_and_misses(store: ChunkKVStore) -> None:
    assert store.stats().hit_rate == 0.0
    store.put(A, make_chunk())
    for _ in range(3):
        store.summary(A)
    with pytest.raises(MissingEntry):
        store.summary(B)
    stats = store.stats()
    assert (stats.hits, stats.misses, stats.hit_rate, stats.entries) == (3, 1, 0.75, 1)
    assert stats.as_dict()["hit_rate"] == 0.75


def test_evicts_the_least_recently_used(open_store: Opener) -> None:
    one = _size_of_one(open_store())
    store = open_store(3 * one + one // 2)
    for key in KEYS[:3]:
        store.put(key, make_chunk())
    store.summary(A)
    store.put(B, make_chunk())
    store.put(KEYS[3], make_chunk())
    assert [key in store for key in KEYS[:4]] == [True, True, False, True]
    stats = store.stats()
    assert stats.evictions == 1 and stats.bytes <= 3 * one + one // 2 and stats.entries == len(store) == 3
    with pytest.raises(MissingEntry):
        store.read_blocks(C)


def test_a_larger_entry_evicts_as_many_as_it_takes(open_store: Opener) -> None:
    one = _size_of_one(open_store())
    store = open_store(4 * one)
    for key in KEYS[:4]:
        store.put(key, make_chunk())
    store.put(KEYS[4], make_chunk(n_tokens=80))
    assert KEYS[4] in store and KEYS[0] not in store and KEYS[3] in store


def test_an_entry_beyond_max_bytes_is_refused(open_store: Opener) -> None:
    one = _size_of_one(open_store())
    store = open_store(one)
    store.put(A, make_chunk())
    with pytest.raises(StoreFull, match="raise max_bytes or split"):
        store.put(B, make_chunk(n_tokens=100))
    assert A in store and B not in store and same(store, A, make_chunk())


def test_prune_keeps_the_latest(store: ChunkKVStore) -> None:
    for key in KEYS[:4]:
        store.put(key, make_chunk())
    store.summary(A)
    one = store.stats().bytes // 4
    report = store.prune(max_bytes=2 * one)
    assert report.evicted == 2 and report.bytes_freed == 2 * one
    assert [key in store for key in KEYS[:4]] == [True, False, False, True]
    assert store.prune().as_dict() == {"damaged": 0, "evicted": 0, "adopted": 0, "orphans": 0, "bytes_freed": 0}
    assert store.prune(max_bytes=0).evicted == 2 and len(store) == 0


def test_delete_counts_what_was_there(store: ChunkKVStore) -> None:
    store.put(A, make_chunk())
    store.put(B, make_chunk())
    assert store.delete([A, A, C]) == 1
    assert store.delete(iter([B])) == 1 and len(store) == 0 and store.stats().bytes == 0
    assert store.delete([]) == 0


def test_verify_tells_how_far_it_is(store: ChunkKVStore) -> None:
    for key in KEYS[:3]:
        store.put(key, make_chunk())
    seen: list[tuple[int, int]] = []
    assert store.verify(lambda done, total: seen.append((done, total))) == []
    assert seen[-1] == (3, 3)


def test_refuses_chunks_that_do_not_fit_together(store: ChunkKVStore) -> None:
    good = make_chunk()
    summary = good.summary
    short = ChunkSummary("", summary.token_ids[:5], summary.mean, summary.low, summary.high, summary.local_query)
    bad = {
        "kv must be": ChunkKV(summary, good.kv[:, :2]),
        "with B = 1": ChunkKV(short, good.kv),
        "at least one token": ChunkKV(make_chunk(n_tokens=0).summary, good.kv[:, :0]),
        "does not hold": ChunkKV(summary, good.kv.to(torch.complex64)),
    }
    for sentence, chunk in bad.items():
        with pytest.raises(ValueError, match=sentence):
            store.put(A, chunk)
    for key in ("", "x", "../up", "UPPER", "a" * 200):
        with pytest.raises(ValueError, match="cannot name"):
            store.put(key, good)
    with pytest.raises(ValueError):
        store.put(A, good, namespace="\ud800")
    assert len(store) == 0


def test_negative_max_bytes_is_refused() -> None:
    for given in (lambda: ChunkKVStore(max_bytes=-1), lambda: ChunkKVStore().prune(max_bytes=-1)):
        with pytest.raises(ValueError, match="max_bytes"):
            given()


def test_a_closed_store_says_so(store: ChunkKVStore) -> None:
    with store:
        store.put(A, make_chunk())
        store.summary(A)
    store.close()
    for ask in (lambda: store.summary(A), lambda: store.read_blocks(A), lambda: A in store, store.stats):
        with pytest.raises(StoreError, match="closed"):
            ask()


def test_an_empty_store_is_true(store: ChunkKVStore) -> None:
    assert len(store) == 0 and store


def test_threads_share_a_store(open_store: Opener) -> None:
    one = _size_of_one(open_store())
    store = open_store(6 * one)
    errors: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            for turn in range(12):
                key = KEYS[(seed + turn) % 8]
                chunk = make_chunk(int(key[:2], 16))
                store.put(key, chunk)
                try:
                    assert same(store, key, chunk)
                except MissingEntry:
                    assert store.stats().evictions
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == [] and store.verify() == [] and store.stats().bytes <= 6 * one


def _size_of_one(store: ChunkKVStore) -> int:
    store.put(A, make_chunk(10))
    return store.stats().bytes
