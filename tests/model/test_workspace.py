"""The memory that prompts are prepared in: what holds it, how it grows, and what happens where there is none."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from samkv_rag import ChunkKVStore, SamKV
from samkv_rag.model import workspace as workspace_module
from samkv_rag.model.buffers import Buffers
from samkv_rag.model.cache import SlotCache
from samkv_rag.model.recorded import Found, Passes
from samkv_rag.model.shape import KVShape
from samkv_rag.model.workspace import ROUND, Workspace, follow
from tests import oracles
from tests.model.recording import assert_same, prompts, prompts_of, recording, replayed
from tests.models import adapter
from tests.oracles import Prompted

KEEP, LOOKS = [0.1, 0.3, 0.6, 0.9, 0.99], ["keys", "two_stage", "mean", "bound"]


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    wiring=st.sampled_from(["llama", "gemma2", "mistral-sliding", "gpt-oss", "gemma4-unlike-heads", "gemma4-sharing"]),
    lengths=st.lists(st.lists(st.integers(1, 60), min_size=1, max_size=4), min_size=2, max_size=3),
    method=st.builds(
        SamKV, keep=st.sampled_from(KEEP), recompute=st.sampled_from([0.1, 0.5, 1.0]), look=st.sampled_from(LOOKS),
        settle=st.sampled_from(["before", "after"]), wide=st.sampled_from([None, 0.0, 1.0]),
        followed=st.sampled_from([0, 16]), sees=st.sampled_from([0.0, 0.6]),
    ),
)  # fmt: skip
def test_prompts_of_any_sizes_are_prepared_alike_in_memory_without_room_to_spare(
    wiring: str, lengths: list[list[int]], method: SamKV, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Of two blocks, one is a deviation above their mean and one below, on every layer: layers that disagree make a tie.
    assume(all(sum(-(-count // method._block) for count in one) != 2 for one in lengths))
    monkeypatch.setattr(workspace_module, "ROUND", 16)
    monkeypatch.setattr(workspace_module, "HEADROOM", 1.0)
    cases = prompts_of(adapter(wiring), lengths)
    want = [case.prepare(method) for case in cases]
    with recording(adapter(wiring)) as passes:
        for case, one in [*zip(cases, want, strict=True)] * 2:
            assert_same(case.prepare(method), one)
        assert passes.reason is None


def test_a_workspace_that_grew_is_recorded_again() -> None:
    short, *_, other = prompts("llama")
    with recording(adapter("llama")) as passes:
        for _ in range(2):
            short.prepare(SamKV())
        assert passes.recordings == 3
        store = ChunkKVStore(":memory:")
        plan = oracles.stored_plan(adapter("llama"), store, (200, 180))
        long = Prompted(plan, adapter("llama"), store)
        want = other.prepare(SamKV())
        for _ in range(2):
            long.prepare(SamKV())
        assert passes.recordings == 6 and passes.reason is None
        assert_same(other.prepare(SamKV()), want)


def test_what_was_recorded_goes_before_the_workspace_grows() -> None:
    case, store = prompts("llama")[0], ChunkKVStore(":memory:")
    with recording(adapter("llama")) as passes:
        gc.disable()  # the collector does not look at a GPU's memory
        try:
            case.prepare(SamKV())
            space = passes._workspace
            assert space is not None
            old = weakref.ref(space._stacks[0].keys)
            make, there = space._make, list[bool]()
            space._make = lambda slots: there.append(old() is not None) or make(slots)
            Prompted(oracles.stored_plan(case.adapter, store, (200, 180)), case.adapter, store).prepare(SamKV())
            assert old() is None and there == [True, False], "first nothing is made in its place, then more"
        finally:
            gc.enable()


@pytest.mark.parametrize("limit", [600, 300], ids=["no headroom", "no room"])
def test_a_prompt_for_which_the_memory_is_short_is_prepared_all_the_same(
    limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    case, store = prompts("llama")[0], ChunkKVStore(":memory:")
    long = Prompted(oracles.stored_plan(case.adapter, store, (300, 200)), case.adapter, store)
    want = long.prepare(SamKV())
    with recording(adapter("llama")) as passes:
        space = passes._workspace
        assert space is not None
        make = space._make

        def scarce(slots: int) -> list[Buffers]:
            if slots > limit:
                raise torch.OutOfMemoryError("the GPU is full")
            return make(slots)

        space._make = scarce
        for _ in range(2):
            assert_same(long.prepare(SamKV()), want)
        assert passes.reason is None and passes.recordings == (3 if limit == 600 else 0)


def test_memory_that_is_short_once_is_asked_for_again() -> None:
    short = list[bool]()

    def sometimes(run: Callable[[], Found]) -> Callable[[], Found]:
        short.append(len(short) < 3)
        if short[-1]:
            raise torch.OutOfMemoryError("the GPU is full")
        return replayed(run)

    case = prompts("llama")[0]
    want = case.prepare(SamKV())
    with recording(adapter("llama"), sometimes) as passes:
        for _ in range(12):
            assert_same(case.prepare(SamKV()), want)
        assert passes.reason is None and passes.recordings >= 3


def workspace(sizes: Sequence[tuple[int, ...]] = ((4, 2, 8, 16),) * 4) -> Workspace:
    """A workspace of layers with these numbers of heads, key/value heads, head dimensions, and numbers attended to."""
    shape = KVShape.of(sizes, range(len(sizes)), 4)

    def make(slots: int) -> list[Buffers]:
        return [
            Buffers(*(torch.zeros(len(one.layers), one.kv_heads, slots, one.head_dim) for _ in "kv"), one.layers)
            for one in shape.stacks
        ]

    space = Workspace(shape, make)
    space.grow(40)
    return space


def cache_of(lent: list[Buffers] | None, positions: Tensor) -> SlotCache:
    assert lent is not None
    return SlotCache(lent, positions, range(4))


@pytest.mark.parametrize("sizes", [((4, 2, 8, 16),) * 4, ((4, 2, 8, 16), (4, 1, 16, 32)) * 2], ids=["alike", "unlike"])
def test_layers_are_lent_once_and_come_back_by_themselves(sizes: tuple[tuple[int, ...], ...]) -> None:
    space, some = workspace(sizes), torch.arange(16)
    cache = cache_of(space.lend(range(2), 20), some)
    assert [layer.buffers[0].shape for layer in cache.slot_layers] == [(1, size[1], 20, size[2]) for size in sizes[:2]]
    assert space.lend(range(1, 3), 20) is None, "layer 1 is taken"
    cache.deepen(cache_of(space.lend(range(2, 4), 20), some))
    assert space.holds(cache)
    assert space.lend(range(4), 20) is None, "a cache lies there"
    cache.keep(torch.arange(0, 16, 2))
    assert not space.holds(cache)
    assert space.lend(range(4), 20) is not None


def test_a_cache_can_move_out() -> None:
    space = workspace()
    cache = cache_of(space.lend(range(4), 20), torch.arange(16))
    cache.slot_layers[1].keys[:] = 3
    cache.move()
    assert not space.holds(cache) and space.lend(range(4), 20) is not None
    assert cache.get_seq_length() == 16 and bool((cache.slot_layers[1].keys == 3).all())


def test_what_is_lent_stays_where_it_is() -> None:
    passes = Passes(workspace(), lambda *_: None, replayed)
    small = passes.lend(range(4), ROUND // 2)
    assert small is not None and passes._workspace is not None and passes._workspace.slots == ROUND
    assert passes.lend(range(4), 10 * ROUND) is None, "it would have to move"
    del small
    assert passes.lend(range(4), 10 * ROUND) is not None
    assert passes._workspace.slots == 13 * ROUND, "a quarter more, in whole steps"


def test_positions_run_on_behind_the_cache_that_lies_there() -> None:
    space = workspace()
    cache = cache_of(space.lend(range(4), 10), torch.tensor([0, 3, 4, 9]))
    for slots in (8, 12):
        view = space.view(slots)
        follow(view, cache)
        assert view is space.view(slots)
        assert view.positions.tolist() == [0, 3, 4, 9, *range(10, 10 + slots - 4)]
