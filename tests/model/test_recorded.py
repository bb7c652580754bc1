"""Passes of fixed sizes prepare what plain ones do, on every wiring and by every method, recorded or not.

Without a GPU a recording is the function itself, run into the memory of its first result, as a graph does it.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from samkv_rag import ChunkKVStore, Reuse, SamKV
from samkv_rag.methods import Method, Prepared
from samkv_rag.model import recorded
from samkv_rag.model import workspace as workspace_module
from samkv_rag.model.adapter import ModelAdapter
from samkv_rag.model.cache import Buffers, SlotCache
from samkv_rag.model.graphs import Graphs
from samkv_rag.model.recorded import FixedPass, Found, Passes, rounded
from samkv_rag.model.shape import KVShape
from samkv_rag.model.workspace import ROUND, Workspace, follow
from tests import oracles
from tests.cases import METHODS, WIRINGS
from tests.methods.gates import TOLERANCE, distance
from tests.models import adapter, build
from tests.oracles import Prompted

LENGTHS = ((37, 16, 30, 5), (36, 17, 29, 4), (64, 3), (38, 15, 31, 6))
"""Of chunks: three prompts of much the same size, and one of another."""
every_wiring = pytest.mark.parametrize("wiring", [name for name in WIRINGS if not adapter(name).loop._apart])


def replayed(run: Callable[[], Found]) -> Callable[[], Found]:
    """What `Graphs` does, without a GPU: what a recording reads from the host is read once."""
    run()
    out = run()
    weak = weakref.WeakMethod(run)  # type: ignore[type-var]  # a graph does not keep alive what was recorded

    def again() -> Found:
        run = weak()
        assert run is not None
        for old, new in zip(out, run(), strict=True):
            if old is not None and new is not None:
                old.copy_(new)
        return out

    return again


def refused(run: Callable[[], Found]) -> Callable[[], Found]:
    raise RuntimeError("waits for the GPU")


def passes_of(model: ModelAdapter, capture: Any = replayed) -> Passes:
    make = partial(model._buffers, layers=model.shape.cached())
    return Passes(Workspace(model.shape, make), model._carry_out, capture)


@contextmanager
def recording(model: ModelAdapter, capture: Any = replayed) -> Iterator[Passes]:
    """Within the block the passes of a model are of fixed sizes, in a workspace that is full of what is no number."""
    model.passes = passes_of(model, capture)
    given_back = model.passes.lend(model.shape.cached(), 180)
    assert given_back is not None
    for part in given_back:
        part.keys[:], part.values[:] = torch.nan, torch.nan
    del given_back, part
    try:
        yield model.passes
    finally:
        model.passes = None


def prompts(wiring: str) -> list[Prompted]:
    store = ChunkKVStore(":memory:")
    return [
        Prompted(oracles.stored_plan(adapter(wiring), store, lengths, seed=seed), adapter(wiring), store)
        for seed, lengths in enumerate(LENGTHS)
    ]


def entries(prepared: Prepared) -> list[Tensor]:
    assert prepared.cache is not None
    return [part for layer in prepared.cache.slot_layers for part in layer.snapshot()]


def assert_same(got: Prepared, want: Prepared) -> None:
    """The same tokens stay, with the same entries and the same logits."""
    assert got.ids == want.ids
    for mine, theirs in zip(got.selection.kept, want.selection.kept, strict=True):
        assert torch.equal(mine, theirs)
    if want.cache is not None and want.logits is not None and got.logits is not None:
        assert distance(got.logits, want.logits) < TOLERANCE
        for mine, theirs in zip(entries(got), entries(want), strict=True):
            assert distance(mine, theirs) < TOLERANCE


@every_wiring
@pytest.mark.parametrize("method", [SamKV(keep=0.3), SamKV(keep=0.3, wide=1.0, recompute=1 / 3)], ids=["half", "whole"])
def test_fixed_passes_prepare_what_plain_ones_do(wiring: str, method: Method) -> None:
    plain = [case.prepare(method) for case in prompts(wiring)]
    with recording(adapter(wiring)) as passes:
        for case, want in zip(prompts(wiring), plain, strict=True):
            assert_same(case.prepare(method), want)
        assert passes.recordings >= 2 and passes.reason is None


@pytest.mark.parametrize("name", METHODS)
def test_fixed_passes_serve_every_method(name: str) -> None:
    plain = [case.prepare(METHODS[name]) for case in prompts("llama")]
    with recording(adapter("llama")):
        for case, want in zip(prompts("llama"), plain, strict=True):
            assert_same(case.prepare(METHODS[name]), want)


def test_sizes_are_recorded_when_they_come_again() -> None:
    with recording(adapter("llama")) as passes:
        made = []
        for case in prompts("llama"):
            case.prepare(SamKV())
            made.append(passes.recordings)
    assert made == [0, 3, 3, 3], "a look, what is followed, the recompute; the third prompt has sizes of its own"


def test_what_is_read_once_would_be_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: a recording that plays the tokens it was made with."""
    cases = prompts("llama")
    want = cases[3].prepare(SamKV())
    fill = FixedPass._fill

    def once(self: FixedPass, *how: Any) -> None:
        if not self.recorded:
            fill(self, *how)

    monkeypatch.setattr(FixedPass, "_fill", once)
    with recording(adapter("llama")):
        got = [case.prepare(SamKV()) for case in cases][3]
    assert want.logits is not None and got.logits is not None
    assert distance(got.logits, want.logits) > 100 * TOLERANCE


def test_rows_that_fill_up_would_be_visible_at_another_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: they stand behind everything for a reason."""
    case, fill = prompts("llama")[0], FixedPass._fill
    want = case.prepare(Reuse())
    monkeypatch.setattr(FixedPass, "_fill", lambda self, asked, length: fill(self, asked, length - 3))
    with recording(adapter("llama")):
        got = case.prepare(Reuse())
    assert want.logits is not None and got.logits is not None
    assert distance(got.logits, want.logits) > 100 * TOLERANCE


@pytest.mark.parametrize("method", [Reuse(), SamKV(), METHODS["samkv-before-third"]], ids=["reuse", "samkv", "before"])
def test_an_answer_leaves_the_workspace_to_the_next_prompt(method: Method) -> None:
    first, second = prompts("llama")[:2]
    with recording(adapter("llama")) as passes:
        held = first.prepare(method)
        assert held.cache is not None and not passes.holds(held.cache)
        before = entries(held)
        second.prepare(method)
        assert passes.recordings > 0
        for mine, theirs in zip(before, entries(held), strict=True):
            assert torch.equal(mine, theirs)


@pytest.mark.parametrize("wiring", ["llama", "gemma2", "gemma4-sharing"])
@pytest.mark.parametrize("method", [SamKV(), SamKV(keep=0.99)], ids=["samkv", "nearly all"])
def test_as_many_rows_as_slots_are_no_ordinary_prefill(
    wiring: str, method: Method, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sizes are rounded up, and may meet: rows that fill up stand where nobody has been."""
    store, model, met = ChunkKVStore(":memory:"), adapter(wiring), list[tuple[int, int]]()
    monkeypatch.setattr(workspace_module, "ROUND", 16)
    monkeypatch.setattr(workspace_module, "HEADROOM", 1.0)
    carry_out = FixedPass._carry_out

    def watched(self: FixedPass) -> Found:
        met.append((len(self._slots), self._cache.get_seq_length()))
        return carry_out(self)

    monkeypatch.setattr(FixedPass, "_carry_out", watched)
    cases = [Prompted(oracles.stored_plan(model, store, (n, 3), seed=n), model, store) for n in range(10, 42, 2)]
    for case in cases:
        want = case.prepare(method)
        with recording(model):
            assert_same(case.prepare(method), want)
    assert any(rows == slots for rows, slots in met), "else this proves nothing"


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
        gc.disable()  # a GPU's memory is not what the collector looks at
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


def test_what_cannot_be_recorded_is_said_once_and_done_plainly() -> None:
    plain = [case.prepare(SamKV()) for case in prompts("llama")]
    with recording(adapter("llama"), refused) as passes:
        with pytest.warns(RuntimeWarning, match="without CUDA graphs: .*waits for the GPU") as said:
            for case, want in zip(prompts("llama"), plain, strict=True):
                assert_same(case.prepare(SamKV()), want)
        assert len(said) == 1 and passes.recordings == 0 and "waits for the GPU" in str(passes.reason)
        assert passes._workspace is None and not passes._fixed, "nobody needs them any more"


def test_only_the_last_recordings_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorded, "MOST", 2)
    case, made = prompts("llama")[0], []
    with recording(adapter("llama")) as passes:
        for keep in (0.2, 0.2, 0.8, 0.8, 0.2):
            case.prepare(SamKV(settle="before", look="mean", keep=keep, recompute=1 / 3))
            made.append(passes.recordings)
            assert len(passes._fixed) <= 2
    assert made == [0, 1, 1, 2, 2]


@given(st.integers(1, 100_000), st.sampled_from([4, 8]))
def test_sizes_are_rounded_up_by_little(count: int, parts: int) -> None:
    size = rounded(count, parts)
    assert count <= size <= count + max(15, count // parts) and rounded(size, parts) == size


# -- the workspace -------------------------------------------------------------------------------------------------


def workspace(sizes: Sequence[tuple[int, ...]] = ((4, 2, 8),) * 4) -> Workspace:
    """Of layers with so many heads, key/value heads and head dimensions."""
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


@pytest.mark.parametrize("sizes", [((4, 2, 8),) * 4, ((4, 2, 8), (4, 1, 16)) * 2], ids=["alike", "unlike"])
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


# -- on a GPU ------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("wiring", ["llama", "gemma2", "qwen3", "mistral-sliding"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_graph_plays_the_passes_that_were_recorded(wiring: str, dtype: torch.dtype) -> None:
    """To the bit what they are unrecorded; in float32 within rounding what plain ones are."""
    model, made = ModelAdapter(build(WIRINGS[wiring](), dtype).to("cuda"), wanted="triton"), {}
    store = ChunkKVStore(":memory:")
    cases = [
        Prompted(oracles.stored_plan(model, store, lengths, seed=n), model, store) for n, lengths in enumerate(LENGTHS)
    ]
    made["plain"] = [case.prepare(SamKV(keep=0.3)) for case in cases]
    for name, capture in {"fixed": lambda run: run, "played": Graphs(model.device)}.items():
        with recording(model, capture) as passes:
            made[name] = [case.prepare(SamKV(keep=0.3)) for case in cases]
            assert (passes.recordings, passes.reason) == (3, None)
    for fixed, played, plain in zip(made["fixed"], made["played"], made["plain"], strict=True):
        assert fixed.ids == played.ids and torch.equal(*(one.logits for one in (fixed, played)))
        if dtype == torch.float32:
            assert_same(played, plain)
