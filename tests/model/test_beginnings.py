"""What is kept of what prompts begin with, and for how long."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from samkv_rag.model.adapter import ModelAdapter
from samkv_rag.model.beginnings import LEAST, ROOM, UNKNOWN, Beginnings
from samkv_rag.model.cache import SlotCache
from tests.models import adapter

SHAPE = adapter("llama").shape
A, B = tuple(range(100)), tuple(range(500, 600))


def cache_of(tokens: tuple[int, ...]) -> SlotCache:
    """A cache whose entries are the numbers of its tokens."""
    cache = adapter("llama").empty_cache(max(len(tokens), 1))
    cache.crop_to(len(tokens))
    for layer in cache.slot_layers:
        for buffer in layer.buffers:
            buffer[:, :, : len(tokens)] = torch.tensor(tokens, dtype=buffer.dtype)[:, None]
    return cache


def after(*met: tuple[int, ...]) -> Beginnings:
    beginnings = Beginnings(SHAPE)
    for tokens in met:
        beginnings.learn(tokens, cache_of(tokens))
    return beginnings


def known(beginnings: Beginnings, tokens: tuple[int, ...]) -> int:
    """How much is known of a prompt; asserts that these are its entries on every layer."""
    head = beginnings.head_of(tokens)
    for one in head.entries:
        assert one.keys.shape[:2] == one.values.shape[:2] == (len(one.places), SHAPE.stacks[0].kv_heads)
        for buffer in one.both:
            assert (buffer[:, :, : head.count] == torch.tensor(tokens[: head.count])[:, None]).all()
    assert sum(len(one.places) for one in head.entries) == (SHAPE.layers if head.count else 0)
    return head.count


@pytest.mark.parametrize(
    ("met", "asked", "count"),
    [
        ((), A, 0),
        ((A,), A, 100),
        ((A,), (*A, 7, 7), 100),
        ((A,), A[:40], 40),
        ((A,), (*A[:40], 7, *A[41:]), 40),
        ((A,), B, 0),
        ((A, B), B, 100),
        ((A[:30], (*A[:60], 7)), A, 60),
        ((A,), A[: LEAST - 1], 0),
        ((A[:LEAST],), A, LEAST),
        ((A[: LEAST - 1],), A, 0),
        (((),), (), 0),
    ],
)
def test_as_much_is_known_as_another_has_had_in_common(
    met: tuple[tuple[int, ...], ...], asked: tuple[int, ...], count: int
) -> None:
    assert known(after(*met), asked) == count


def test_a_longer_one_takes_the_place_of_what_it_begins_with() -> None:
    """A conversation that grows is therefore kept once, and nothing that is already known is kept again."""
    beginnings = after(A[:50], A)
    assert list(beginnings._kept) == [A]
    beginnings.learn(A[:70], cache_of(A[:70]))
    beginnings.learn((*A, 1, 2, 3), cache_of((*A, 1, 2, 3)))
    assert list(beginnings._kept) == [A]
    beginnings = after((*A[:40], 7), A[:60], (*A[:60], 8, *range(20)))
    assert list(beginnings._kept) == [(*A[:40], 7), (*A[:60], 8, *range(20))]


def test_the_copy_is_its_own() -> None:
    cache = cache_of(A)
    beginnings = Beginnings(SHAPE)
    beginnings.learn(A, cache)
    for layer in cache.slot_layers:
        layer.buffers[0].zero_()
    assert known(beginnings, A) == 100


def test_what_was_not_used_for_the_longest_time_goes_first() -> None:
    many = [tuple(range(1000 * each, 1000 * each + ROOM // 4)) for each in range(1, 6)]
    beginnings = after(*many[:4])
    assert known(beginnings, many[0])
    beginnings.learn(many[4], cache_of(many[4]))
    assert [bool(known(beginnings, one)) for one in many] == [True, False, True, True, True]


def test_where_there_is_no_memory_for_one_nothing_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    def short(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    beginnings = after(A[:50])
    with monkeypatch.context() as patched:
        patched.setattr(torch, "stack", short)
        beginnings.learn(A, cache_of(A))
    assert known(beginnings, A) == 50


def test_of_a_long_one_as_much_is_kept_as_there_is_room_for() -> None:
    long = tuple(range(ROOM + 50))
    beginnings = after(A, long)
    assert known(beginnings, long) == ROOM
    beginnings.learn(long, cache_of(long))
    assert list(beginnings._kept) == [long[:ROOM]]


def test_without_room_nothing_is_known() -> None:
    beginnings = Beginnings(SHAPE, room=0)
    beginnings.learn(A, cache_of(A))
    assert beginnings.head_of(A) is UNKNOWN


def test_a_model_can_be_unacquainted_for_a_while() -> None:
    attached = ModelAdapter(adapter("llama").model)
    known_before = attached.beginnings
    with pytest.raises(ValueError, match="over"), attached.unacquainted():
        attached.beginnings.learn(A, cache_of(A))
        raise ValueError("over")
    assert attached.beginnings is known_before and attached.beginnings.head_of(A) is UNKNOWN


@given(st.lists(st.lists(st.integers(0, 1), max_size=60), max_size=8), st.lists(st.integers(0, 1), max_size=60))
def test_what_is_known_is_right_whatever_came_before(met: list[list[int]], asked: list[int]) -> None:
    beginnings = after(*map(tuple, met))
    count = known(beginnings, tuple(asked))
    assert count == 0 or count >= LEAST
    assert sum(map(len, beginnings._kept)) <= ROOM
    assert count or beginnings.head_of(asked) is UNKNOWN
