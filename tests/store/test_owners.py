"""Who needs which entry, in every tier: an entry lives until its last owner leaves."""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from samkv_rag.store import ChunkKVStore

from .samples import KEYS, make_chunk

A, B, C = KEYS[:3]


def test_an_entry_lives_until_its_last_owner_leaves(store: ChunkKVStore) -> None:
    for owner in ("first", "second"):
        store.retain(A, owner)
        store.put(A, make_chunk())
    store.retain(B, "first")
    store.put(B, make_chunk(1))
    store.put(C, make_chunk(2))
    assert store.release("first") == [B]
    assert A in store and B not in store and C in store
    assert store.release("first") == []
    assert store.release("second", [B, C]) == []
    assert store.release("second", [A, C]) == [A]
    assert A not in store and C in store


def test_owners_outlive_an_eviction(store: ChunkKVStore) -> None:
    store.retain(A, "owner")
    store.put(A, make_chunk())
    store.prune(max_bytes=0)
    store.put(A, make_chunk())
    assert store.release("owner") == [A] and A not in store


def test_owners_are_listed_by_the_beginning_of_their_name(store: ChunkKVStore) -> None:
    for key, owner in ((B, "index/doc2/n2"), (A, "index/doc1/n1"), (A, "index/doc2/n3"), (A, "other"), (A, "index_")):
        store.retain(key, owner)
    assert store.owned("index/doc2/") == [("index/doc2/n2", B), ("index/doc2/n3", A)]
    assert [owner for owner, _ in store.owned("index/")] == ["index/doc1/n1", "index/doc2/n2", "index/doc2/n3"]
    assert len(store.owned()) == 5 and store.owned("none") == []
    store.release("index/doc2/n3")
    assert store.owned("index/doc2/") == [("index/doc2/n2", B)]


def test_what_is_there_without_an_owner_can_be_left_so(store: ChunkKVStore) -> None:
    """Whoever retains what he makes for a while need not delete what was there when that comes to nothing."""
    store.put(A, make_chunk())
    for owner in ("one", "two"):
        for key in (A, B):
            store.retain(key, owner, leave_free=True)
    store.put(B, make_chunk(1))
    assert store.owned() == [("one", B), ("two", B)]
    assert store.release("one") == [] and store.release("two") == [B] and A in store
    store.retain(A, "owner")
    store.retain(A, "one", leave_free=True)
    assert store.release("owner") == [] and store.release("one") == [A]


def test_what_an_owner_needs_is_listed(store: ChunkKVStore) -> None:
    for key, owner in ((B, "one"), (A, "one"), (A, "one/more"), (C, "other")):
        store.retain(key, owner)
    assert store.owned_by("one") == [A, B] and store.owned_by("on") == []
    store.put(A, make_chunk())
    store.delete([A])
    assert store.owned_by("one") == [B] and store.owned_by("one/more") == []
    store.release("one")
    assert store.owned_by("one") == [] and store.owned() == [("other", C)]


NAMES = st.text(st.sampled_from("ab/%_\x00\ud7ff\ue000\U0010fffe\U0010ffff"), max_size=4)


@given(st.sets(NAMES, max_size=8), NAMES)
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_beginning_of_a_name_finds_its_owners(store: ChunkKVStore, names: set[str], prefix: str) -> None:
    for name, _ in store.owned():
        store.release(name)
    for name in names:
        store.retain(A, name)
    assert store.owned(prefix) == sorted((name, A) for name in names if name.startswith(prefix))
