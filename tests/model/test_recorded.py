"""Passes of fixed sizes prepare what plain ones do, on every wiring and with every method, recorded or not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from samkv_rag import ChunkKVStore, Reuse, SamKV
from samkv_rag.methods import Method
from samkv_rag.model import recorded
from samkv_rag.model import workspace as workspace_module
from samkv_rag.model.graphs import Graphs
from samkv_rag.model.recorded import FixedPass, Found, rounded
from tests import oracles
from tests.cases import METHODS, WIRINGS
from tests.methods.gates import TOLERANCE, distance
from tests.model.recording import assert_same, entries, on_gpu, prompts, prompts_of, recording, refused
from tests.models import adapter
from tests.oracles import Prompted

every_wiring = pytest.mark.parametrize("wiring", [name for name in WIRINGS if not adapter(name).loop._apart])


@every_wiring
@pytest.mark.parametrize(
    "method",
    [
        SamKV(keep=0.3, rest="drop"),
        SamKV(keep=0.3, sees=0.6, recompute=1 / 3),
        SamKV(keep=0.3, wide=1.0, recompute=1 / 3),
    ],
    ids=["half", "neighbours", "whole"],
)
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
    """Negative control: a recording that replays the tokens it was made with."""
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
    """Negative control: they come after everything for a reason."""
    case, fill = prompts("llama")[0], FixedPass._fill
    want = case.prepare(Reuse())
    monkeypatch.setattr(FixedPass, "_fill", lambda self, asked, length: fill(self, asked, length - 3))
    with recording(adapter("llama")):
        got = case.prepare(Reuse())
    assert want.logits is not None and got.logits is not None
    assert distance(got.logits, want.logits) > 100 * TOLERANCE


@pytest.mark.parametrize("method", [Reuse(), SamKV(), METHODS["samkv-drop"], METHODS["samkv-before-third"]], ids=str)
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
@pytest.mark.parametrize("method", [SamKV(rest="drop"), SamKV(keep=0.99)], ids=["samkv", "nearly all"])
def test_as_many_rows_as_slots_are_no_ordinary_prefill(
    wiring: str, method: Method, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sizes are rounded up, and may coincide: rows that fill up are at a slot that no token has."""
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


# -- on a GPU ------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("wiring", ["llama", "gemma2", "qwen3", "mistral-sliding"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_graph_plays_the_passes_that_were_recorded(wiring: str, dtype: torch.dtype) -> None:
    """Bit for bit what they are unrecorded; in float32, within rounding, what plain ones are."""
    model, made = on_gpu(wiring, dtype), {}
    cases = prompts_of(model)
    made["plain"] = [case.prepare(SamKV(keep=0.3)) for case in cases]
    for name, capture in {"fixed": lambda run: run, "played": Graphs(model.device)}.items():
        with recording(model, capture) as passes:
            made[name] = [case.prepare(SamKV(keep=0.3)) for case in cases]
            assert (passes.recordings, passes.reason) == (3, None)
    for fixed, played, plain in zip(made["fixed"], made["played"], made["plain"], strict=True):
        assert fixed.ids == played.ids and torch.equal(*(one.logits for one in (fixed, played)))
        if dtype == torch.float32:
            assert_same(played, plain)


@pytest.mark.gpu
def test_graphs_are_made_anew_where_the_workspace_grew() -> None:
    model = on_gpu("llama")
    short, long = prompts_of(model, ((40, 20), (200, 180)))
    want = short.prepare(SamKV())
    with recording(model, Graphs(model.device)) as passes:
        for case in (short, short, long, long, short, short):
            case.prepare(SamKV())
        assert (passes.recordings, passes.reason) == (9, None)
        assert_same(short.prepare(SamKV()), want)


@pytest.mark.gpu
def test_a_failed_recording_harms_neither_passes_nor_samples() -> None:
    model = on_gpu("llama")
    graphs, case = Graphs(model.device), prompts_of(model)[0]
    want = case.prepare(SamKV())

    def waits(run: Callable[[], Found]) -> Callable[[], Found]:
        return graphs(lambda: (run(), torch.cuda.synchronize())[0])

    with recording(model, waits) as passes, pytest.warns(RuntimeWarning, match="without CUDA graphs"):
        for _ in range(3):
            assert_same(case.prepare(SamKV()), want)
        assert passes.reason is not None
    assert len(case.tokens(SamKV(), 4, do_sample=True, temperature=1.0)) == 4
