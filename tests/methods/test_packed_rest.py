"""With `rest="int4"` nothing is dropped: after the answer's first token all chunk tokens are attended to in four bits
per number. Tested with stock forwards over what these stand for, and without (in company: test_late_settling)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from transformers import Cache

from samkv_kernels.cpu import packed as products
from samkv_rag import ChunkKVStore, SamKV, SamKVError
from samkv_rag.methods import Prepared, ProphetKV, Run
from samkv_rag.methods.settling import LEAST_PACKED
from samkv_rag.model.adapter import ModelAdapter
from samkv_rag.profiling.answers import forced_logits
from tests import latents, oracles
from tests.cases import WIRINGS
from tests.counting import counted
from tests.methods.gates import TOLERANCE, VISIBLE, distance, dropping, prompted, whole_past
from tests.model import test_loop as loops
from tests.models import adapter, build, tiny_engine
from tests.oracles import Kept, Prompted, stock, stock_logits

COUNT = 8
ANSWER = (9, 250, 77, 31, 12, 140)
PACKED = SamKV(keep=0.3, rest="int4")
LATER = SamKV(keep=0.3, rest="int4", settle_at=3)
HALF = SamKV(keep=0.3, hold=0.5)
EVERYTHING = SamKV(keep=0.3, settle_at=99)
CHUNKS = ("Lumen Labs was founded by Ada Brook in 1999.", "Its office is in Harrow Lane, above a bakery.") * 2


def packed_entries(case: Prompted, prepared: Prepared, hold: float) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """The positions `(N,)` of what is packed: all that is held of the chunks but a quarter of what was chosen; and for
    each layer what it stands for, keys and values `(G, N, D)`."""
    assert prepared.cache is not None and prepared.cache.packed is not None
    packed, of_chunks = prepared.cache.packed, set[int]()
    for chunk in case.plan.chunks:
        of_chunks |= set(range(chunk.start, chunk.stop))
    assert of_chunks >= set(packed.positions.tolist())
    exact = int(0.3 * case.plan.chunk_tokens) // 4
    assert len(packed.positions) == int(hold * case.plan.chunk_tokens) - exact
    return packed.positions, [layer.entries() for layer in packed.layers]


def with_entries(wiring: str, past: Cache, slots: Tensor, entries: Sequence[tuple[Tensor, Tensor]]) -> None:
    for layer, own in zip(past.layers, entries, strict=True):
        layer.keys[:, :, slots], layer.values[:, :, slots] = latents.handed(stock(wiring), *own)


# -- against stock forwards ----------------------------------------------------------------------------------------


@loops.every_wiring
@pytest.mark.parametrize("method", [PACKED, LATER, HALF], ids=["second token", "fourth token", "half is held"])
def test_the_first_tokens_see_all_as_it_is_and_the_others_see_what_is_packed(wiring: str, method: SamKV) -> None:
    if adapter(wiring).rotary.depends_on_length:
        pytest.skip("nothing is packed where keys turn with the length of the text")
    case, at = prompted(wiring), max(method.settle_at, 1)
    prepared = case.prepare(method)
    got = forced_logits(case.adapter, prepared, ANSWER)

    slots, packed = packed_entries(case, prepared, method.hold)
    following, narrow = case.plan.n_tokens + torch.arange(len(ANSWER)), case.adapter.shape.layers // 4
    first, past = whole_past(wiring, case, prepared.selection.recomputed, narrow=narrow, sees=0.3)
    prompt = torch.arange(case.plan.n_tokens)
    seen = stock_logits(stock(wiring), ANSWER[:at], following[:at], past, before=prompt)
    for layer, entries in zip(past.layers, packed, strict=True):
        for exact, rounded in zip(latents.held(stock(wiring), layer.keys, layer.values), entries, strict=True):
            spread = exact[0][:, slots].amax() - exact[0][:, slots].amin()
            assert (exact[0][:, slots] - rounded).abs().max() < spread / 15, "every number is the nearest of sixteen"
    with_entries(wiring, past, slots, packed)
    before = torch.cat([prompt, following[:at]])
    held = torch.cat([Kept.of(case.plan, prepared.selection).positions, following])
    seen_then = torch.isin(torch.cat([before, following[at:-1]]), held).expand(len(ANSWER) - at - 1, -1)
    rest = stock_logits(stock(wiring), ANSWER[at:-1], following[at:-1], past, before=before, allowed=seen_then)
    assert distance(got, torch.cat([first[None], seen, rest])) < TOLERANCE


def test_it_differs_from_what_is_as_it_was_and_less_than_what_is_dropped() -> None:
    case = prompted("llama")
    everything, packed, dropped = (
        forced_logits(case.adapter, case.prepare(method), ANSWER) for method in (EVERYTHING, PACKED, dropping(keep=0.3))
    )
    assert distance(packed[:2], everything[:2]) < TOLERANCE
    assert VISIBLE / 10 < distance(packed[2:], everything[2:]) < distance(dropped[2:], everything[2:])


@pytest.mark.parametrize("backend", ["torch", "numba"])
def test_answers_are_decoded_by_the_models_backend_and_are_the_same_by_either(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = counted(monkeypatch, products, "scores")
    store, own = ChunkKVStore(":memory:"), ModelAdapter(build(WIRINGS["llama"]()), wanted=backend)
    plan = oracles.stored_plan(own, store, (40, 60))
    answers = [PACKED.prepare(Run(plan, model, store, 12)) for model in (own, adapter("llama"))]
    calls.clear()
    first = answers[0].generate(own.loop, max_new_tokens=9, do_sample=False)
    assert len(calls) == (7 * own.shape.layers if backend == "numba" else 0), "the first two are no steps"
    assert first == answers[1].generate(adapter("llama").loop, max_new_tokens=9, do_sample=False)


# -- where there is nothing to pack --------------------------------------------------------------------------------


def test_where_all_is_chosen_it_stays_as_it_is() -> None:
    prepared = prompted("llama").prepare(SamKV(keep=1.0, recompute=0.5, rest="int4"))
    assert prepared.settling is None and not prepared.selection.packed_tokens


def test_an_answer_that_ends_before_keeps_all_as_it_is() -> None:
    case = prompted("llama")
    prepared = case.prepare(LATER)
    prepared.generate(case.adapter.loop, max_new_tokens=2, do_sample=False)
    assert not prepared.selection.packed_tokens and "ended before" in prepared.selection.notes[0]


def test_a_prompt_without_chunks_has_nothing_to_pack() -> None:
    store = ChunkKVStore(":memory:")
    plan = oracles.stored_plan(adapter("llama"), store, ())
    prepared = PACKED.prepare(Run(plan, adapter("llama"), store, 12))
    tokens = prepared.generate(adapter("llama").loop, max_new_tokens=4, do_sample=False)
    assert len(tokens) == 4 and not prepared.selection.packed_tokens


@pytest.mark.parametrize("method", [PACKED, LATER, SamKV(keep=0.3)])
def test_where_keys_turn_with_the_texts_length_all_stays_as_it_is_and_that_is_said(method: SamKV) -> None:
    case = prompted("llama-longrope-crossed")
    prepared = case.prepare(method)
    selection = prepared.selection
    assert prepared.settling is None and "nothing was packed" in selection.notes[0]
    assert sum(map(len, selection.kept)) == case.plan.chunk_tokens and not selection.packed_tokens


def test_fewer_tokens_than_take_less_stay_as_they_are() -> None:
    """They are held in groups of 32, with scales for each group: a few would take more room than unpacked."""
    store, model = ChunkKVStore(":memory:"), adapter("llama")
    for count, packed in ((LEAST_PACKED, True), (LEAST_PACKED - 1, False)):
        plan = oracles.stored_plan(model, store, (count,))
        prepared = SamKV(keep=0, rest="int4").prepare(Run(plan, model, store, 12))
        prepared.generate(model.loop, max_new_tokens=4, do_sample=False)
        assert sum(map(len, prepared.selection.kept)) == count
        assert prepared.selection.packed_tokens == (count if packed else 0)


def test_what_says_nothing_beside_it_is_refused() -> None:
    with pytest.raises(SamKVError, match='rest="int4" .* needs settle="after"'):
        SamKV(settle="before", rest="int4")
    for others in ({"rest": "drop"}, {"settle": "before"}):
        with pytest.raises(SamKVError, match='hold .* needs rest="int4"'):
            SamKV(hold=0.5, **others)


def test_what_is_held_is_what_was_looked_at_most_and_never_less_than_keep() -> None:
    case, found = prompted("llama"), []
    for hold in (0.0, 0.5, 0.8, 1.0):
        prepared = case.prepare(SamKV(keep=0.3, hold=hold))
        prepared.generate(case.adapter.loop, max_new_tokens=4, do_sample=False)
        selection = prepared.selection
        found.append({(c, int(t)) for c, tokens in enumerate(selection.kept) for t in tokens})
        assert len(found[-1]) == int(max(0.3, hold) * case.plan.chunk_tokens)
        assert selection.packed_tokens == len(found[-1]) - int(0.3 * case.plan.chunk_tokens) // 4
    assert found[0] < found[1] < found[2] < found[3]


def test_where_too_few_are_held_to_be_packed_no_more_are_held() -> None:
    case = prompted("llama")
    for hold, count in ((0.0, 13), (0.18, 15), (0.2, 17), (1.0, 88)):
        prepared = case.prepare(SamKV(hold=hold))
        prepared.generate(case.adapter.loop, max_new_tokens=3, do_sample=False)
        assert sum(map(len, prepared.selection.kept)) == count
        assert prepared.selection.packed_tokens == (count - 3 if count > 88 / 2 else 0)


def test_a_share_is_the_same_number_of_tokens_wherever_it_is_given() -> None:
    case = prompted("llama", (60, 40))
    chosen, computed, shared = (
        case.prepare(method)
        for method in (
            SamKV(keep=0.29, rest="drop"),
            SamKV(keep=1.0, recompute=0.29, settle="before"),
            ProphetKV(share=0.29),
        )
    )
    held = case.prepare(SamKV(hold=0.29))
    held.generate(case.adapter.loop, max_new_tokens=3, do_sample=False)
    counted = chosen.selection.kept, computed.selection.recomputed, shared.selection.recomputed, held.selection.kept
    assert [sum(map(len, some)) for some in counted] == [29] * 4


def test_what_reaches_beyond_a_prompt_reaches_its_ends_and_costs_no_more() -> None:
    case = prompted("llama")
    near, far = (case.prepare(SamKV(rest="drop", around=(reach, reach))).selection for reach in (100, 10**9))
    assert all(map(torch.equal, near.kept, far.kept))
    assert sum(map(len, case.prepare(SamKV(keep=0.0, candidates=math.inf)).selection.recomputed)) == 0


# -- what it costs -------------------------------------------------------------------------------------------------


def test_the_report_counts_the_bytes_that_are_held() -> None:
    engine = tiny_engine(method=PACKED)
    engine.precompute(list(CHUNKS))
    answer = engine.answer("Where is Lumen Labs based?", chunks=list(CHUNKS), max_new_tokens=6)
    report, per_token = answer.report, engine.adapter.shape.bytes_per_token
    assert report.kept_ratio == 1 and 0 < report.recomputed_tokens <= int(0.3 * report.chunk_tokens)
    chunks = report.kv_bytes_resident - report.glue_tokens * per_token
    assert int(0.3 * report.chunk_tokens) // 4 * per_token < chunks < 0.4 * report.chunk_tokens * per_token
    assert report.kv_bytes_full == report.prompt_tokens * per_token
