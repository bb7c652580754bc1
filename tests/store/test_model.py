"""Any sequence of calls leaves both tiers in the state that a few lines of plain Python predict."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from samkv_rag.store import ChunkKVStore, MissingEntry

from .samples import KEYS, make_chunk

keys = st.sampled_from(KEYS[:5])
owners = st.sampled_from(["one", "two"])
calls = st.lists(
    st.one_of(
        st.tuples(st.just("put"), keys),
        st.tuples(st.just("summary"), keys),
        st.tuples(st.just("delete"), st.lists(keys, max_size=2)),
        st.tuples(st.just("retain"), keys, owners),
        st.tuples(st.just("release"), owners),
        st.tuples(st.just("prune"), st.integers(0, 3)),
        st.tuples(st.just("reopen")),
    ),
    max_size=25,
)
ROOM = 3
A, B = KEYS[:2]
# What was only read is in no catalogue yet when the next call needs the order.
PRUNED_AFTER_A_LOOK = [("put", A), ("put", B), ("summary", A), ("prune", 1)]
PUT_AGAIN_AFTER_A_LOOK = [("put", A), ("put", B), ("summary", A), ("put", B), ("reopen",), ("prune", 1)]


class Plain:
    """What a store is meant to be: a list of keys in order of use, and which owners need which."""

    def __init__(self) -> None:
        self.order: list[str] = []
        self.owned: set[tuple[str, str]] = set()
        self.hits = self.misses = 0

    def put(self, key: str) -> None:
        self.order = [*(held for held in self.order if held != key), key][-ROOM:]

    def summary(self, key: str) -> bool:
        hit = key in self.order
        self.hits, self.misses = self.hits + hit, self.misses + (not hit)
        if hit:
            self.put(key)
        return hit

    def delete(self, gone: list[str]) -> int:
        before = len(self.order)
        self.order = [key for key in self.order if key not in gone]
        self.owned = {(key, owner) for key, owner in self.owned if key not in gone}
        return before - len(self.order)

    def retain(self, key: str, owner: str) -> None:
        self.owned.add((key, owner))

    def release(self, leaving: str) -> list[str]:
        had = {key for key, owner in self.owned if owner == leaving}
        self.owned = {(key, owner) for key, owner in self.owned if owner != leaving}
        gone = sorted(had - {key for key, _ in self.owned})
        self.delete(gone)
        return gone

    def prune(self, entries: int) -> int:
        before = len(self.order)
        self.order = self.order[before - entries :] if before > entries else self.order
        return before - len(self.order)


class Real:
    """A store behind the same methods; every entry has the same size."""

    def __init__(self, path: str | Path, size: int) -> None:
        self.path, self.size = path, size
        self.store = ChunkKVStore(path, ROOM * size)

    def put(self, key: str) -> None:
        self.store.put(key, make_chunk())

    def summary(self, key: str) -> bool:
        try:
            self.store.summary(key)
        except MissingEntry:
            return False
        return True

    def delete(self, gone: list[str]) -> int:
        return self.store.delete(gone)

    def retain(self, key: str, owner: str) -> None:
        self.store.retain(key, owner)

    def release(self, owner: str) -> list[str]:
        return self.store.release(owner)

    def prune(self, entries: int) -> int:
        return self.store.prune(entries * self.size, drop_damaged=False).evicted

    def reopen(self) -> None:
        if self.path != ":memory:":
            self.store.close()
            self.store = ChunkKVStore(self.path, ROOM * self.size)


@pytest.mark.parametrize("tier", ["memory", "disk"])
@settings(max_examples=25, deadline=None)
@given(calls=calls)
@example(calls=PRUNED_AFTER_A_LOOK)
@example(calls=PUT_AGAIN_AFTER_A_LOOK)
def test_does_what_plain_python_does(
    tmp_path_factory: pytest.TempPathFactory, tier: str, calls: list[tuple[object, ...]]
) -> None:
    path = ":memory:" if tier == "memory" else tmp_path_factory.mktemp("kv") / "store"
    with ChunkKVStore(":memory:" if tier == "memory" else tmp_path_factory.mktemp("kv")) as one:
        one.put(KEYS[0], make_chunk())
        real, plain = Real(path, one.stats().bytes), Plain()
    for name, *arguments in calls:
        got = getattr(real, str(name))(*arguments)
        assert got == (getattr(plain, str(name))(*arguments) if name != "reopen" else None)
        assert list(real.store.keys()) == sorted(plain.order)
    stats = real.store.stats()
    assert (stats.entries, stats.hits, stats.misses) == (len(plain.order), plain.hits, plain.misses)
    assert stats.bytes == len(plain.order) * real.size
    real.store.close()
