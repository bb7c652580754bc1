"""Gate (e): settling after the recompute is gate (c) over everything, thinned to what the question attended to.

One stock forward over the whole prompt, in which what is not recomputed has its stored entries, produces the first new
token; the others attend only to what is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, pstdev
from typing import Any

import pytest
import torch
from torch import Tensor

from samkv_rag import ChunkKVStore, SamKV, SamKVError
from samkv_rag.accounting import make_report
from samkv_rag.methods import Epic, Full, Method, ProphetKV, RandomRest, Reuse, Run
from samkv_rag.methods.layout import Layout
from samkv_rag.methods.picked import Settled
from samkv_rag.methods.scoring import vicinities
from samkv_rag.model.cache import SlotCache
from samkv_rag.types import Selection
from tests import oracles
from tests.methods.gates import (
    BY_HAND,
    TOLERANCE,
    VISIBLE,
    distance,
    dropping,
    every_wiring,
    prompted,
    settled_logits,
    settled_past,
    some_wirings,
    spoken,
)  # fmt: skip
from tests.models import adapter
from tests.oracles import Kept, stock


@every_wiring
@pytest.mark.parametrize(
    ("recompute", "wide", "sees"),
    [
        (0.0, 0.5, 0.4),
        (1 / 3, 0.5, 0.0),
        (1 / 3, 0.5, 0.3),
        (1.0, 0.0, 0.6),
        (1.0, 0.0, 0.0),
        (1.0, 0.0, 0.95),
        (1.0, 0.0, 1.0),
        (1.0, 0.5, 0.5),
        (1.0, 1.0, 0.5),
    ],
)
def test_what_stays_saw_everything_on_the_wide_layers_and_what_is_closest_above_while_it_was_recomputed(
    wiring: str, recompute: float, wide: float, sees: float
) -> None:
    case = prompted(wiring)
    prepared = case.prepare(dropping(keep=0.3, recompute=recompute, wide=wide, sees=sees))
    assert list(prepared.ids) == Kept.of(case.plan, prepared.selection).ids
    assert len(prepared.ids) < case.plan.n_tokens
    got, first = spoken(case, prepared), int(wide * case.adapter.shape.layers)
    assert distance(got, settled_logits(wiring, case, prepared, narrow=first, sees=sees)) < TOLERANCE


@some_wirings
def test_a_prompt_may_begin_with_a_chunk_of_which_nothing_is_recomputed(wiring: str) -> None:
    store = ChunkKVStore(":memory:")
    case = oracles.Prompted(oracles.stored_plan(adapter(wiring), store, glue=0, seed=1), adapter(wiring), store)
    prepared = case.prepare(dropping(keep=0.3, recompute=0.0))
    assert distance(spoken(case, prepared), settled_logits(wiring, case, prepared)) < TOLERANCE


@some_wirings
@pytest.mark.parametrize("seeing", [{"wide": 1.0}, {"wide": 0.0, "sees": 0.5, "recompute": 1 / 3}])
def test_what_is_hidden_on_the_upper_layers_would_have_been_seen(wiring: str, seeing: dict[str, Any]) -> None:
    case = prompted(wiring)
    prepared = case.prepare(dropping(keep=0.3, **seeing))
    assert distance(spoken(case, prepared), settled_logits(wiring, case, prepared, narrow=0, sees=0.0)) > TOLERANCE


@some_wirings
def test_decoding_over_what_stays_is_greedy_decoding_by_hand(wiring: str) -> None:
    case, method = prompted(wiring), dropping(keep=0.4, recompute=0.5)
    logits, positions, past = settled_past(wiring, case, case.prepare(method))
    first = int(logits.argmax())
    others = oracles.greedy(stock(wiring), [first], positions[-1:] + 1, past, BY_HAND - 1, before=positions)
    assert case.tokens(method, BY_HAND) == [first, *others]


@some_wirings
def test_what_was_dropped_had_been_seen(wiring: str) -> None:
    """The control of (e): recomputed among themselves alone, the same tokens get other entries."""
    case = prompted(wiring)
    prepared = case.prepare(dropping(keep=0.3))
    apart = Run(case.plan, case.adapter, case.store, oracles.ROOM).recompute(
        Selection(prepared.selection.kept, prepared.selection.kept)
    )
    assert distance(case.logits(prepared), case.logits(apart)) > VISIBLE


@some_wirings
@pytest.mark.parametrize("answer_weight", [1.0, 3.0])
def test_what_stays_is_settled_by_the_attention_of_that_forward(wiring: str, answer_weight: float) -> None:
    case, layers = prompted(wiring), (1, 3)
    again = tuple(torch.arange(0, len(chunk.token_ids), 3) for chunk in case.plan.chunks)
    run = Run(case.plan, case.adapter, case.store, oracles.ROOM)
    picked, seen = run.caches.ground.picked(again), list[Tensor]()

    def settle(looked_at: Tensor) -> Settled:
        seen.append(looked_at)
        return Settled(picked, picked, torch.zeros(case.plan.chunk_tokens))

    selection = run.recompute_and_settle(picked, layers, settle, answer_weight=answer_weight).selection
    assert all(map(torch.equal, (*selection.kept, *selection.recomputed), (*again, *again)))
    whole = Kept.of(case.plan, Selection(Selection.all_of(case.plan).kept, again))
    maps = oracles.stock_attention(wiring, case.plan, whole, range(case.adapter.shape.layers))[:, :, whole.owner >= 0]
    asked = maps[list(layers), case.plan.question.start :]
    asked[:, -1] *= answer_weight
    assert torch.allclose(seen[0].double(), asked.amax((0, 1)), atol=answer_weight * 2e-5)


@pytest.mark.parametrize("vicinity", [0.0, 1.5])
def test_what_stays_surrounds_what_any_asking_token_looks_at(vicinity: float) -> None:
    """Of 88 tokens a fifth is kept; every kept run extends before and after a token that was attended to, and the best
    place within 64 tokens counts as much as is asked for."""
    case, around = prompted("llama"), (2, 3)
    run = Run(case.plan, case.adapter, case.store, oracles.ROOM)
    seen = overheard(run)
    kept = dropping(keep=0.2, around=around, vicinity=vicinity).prepare(run).selection.kept
    (layers, looked_at), most = seen[0], seen[0][1].tolist()
    assert list(layers) == [2, 3] and len(looked_at) == case.plan.chunk_tokens, "the upper half"
    tokens = [(chunk, t) for chunk, length in enumerate(run.lengths) for t in range(length)]
    parts = [part.tolist() for part in torch.tensor(most).split(run.lengths)]
    near = [max(parts[chunk][max(0, t - 3) : t + 3]) for chunk, t in tokens]
    means = [[fmean(part[max(0, t - 4) : t + 5]) for t in range(len(part))] for part in parts]
    place = [max(means[chunk][max(0, t - 64) : t + 65]) for chunk, t in tokens]
    worth = [one + vicinity * other for one, other in zip(standing(near), standing(place), strict=True)]
    best = sorted(zip((-value for value in worth), tokens, strict=True))[: int(0.2 * sum(run.lengths))]
    assert {(chunk, t) for chunk, own in enumerate(kept) for t in own.tolist()} == {token for _, token in best}


def standing(values: list[float]) -> list[float]:
    """How many deviations above the mean."""
    return [round((value - fmean(values)) / pstdev(values), 4) for value in values]


def test_one_token_makes_no_place_a_good_one_and_a_place_ends_with_its_chunk() -> None:
    values = torch.zeros(300)
    values[10] = 0.9  # one token
    values[195:205] = 0.2  # ten, the last five of them in the second chunk
    found = vicinities(values, [200, 100])
    assert found[10 + 64].item() == pytest.approx(0.9 / 9) == found[0].item()
    assert found[195].item() == pytest.approx(0.2) == found[204].item() == found[200 + 64].item()
    assert found[199 - 64 - 9].item() == 0 == found[200 + 64 + 9].item()


def test_a_token_alone_is_its_own_place() -> None:
    assert vicinities(torch.tensor([3.0, 1.0, 2.0]), [1, 2]).tolist() == [3.0, 1.5, 1.5]


def overheard(run: Run) -> list[tuple[Sequence[int], Tensor]]:
    """The layers of this run's second look, and how much each token is attended to there; filled in when it runs."""
    seen, original = list[tuple[Sequence[int], Tensor]](), run.recompute_and_settle

    def spy(again: Any, layers: Any, settle: Any, *rest: Any) -> Any:
        def heard(looked_at: Tensor) -> Settled:
            seen.append((layers, looked_at))
            return settle(looked_at)  # type: ignore[no-any-return]

        return original(again, layers, heard, *rest)

    run.recompute_and_settle = spy  # type: ignore[method-assign]
    return seen


def test_alignment_is_refused() -> None:
    with pytest.raises(SamKVError, match='settle="before"'):
        SamKV(aligned=True)


@pytest.mark.parametrize(
    ("method", "layers"),
    [
        (dropping(layers=(2,)), [range(3), range(3, 4)]),
        (SamKV(layers=(2,), settle="before"), [range(3), range(3, 4)]),
        (SamKV(layers=(2,), settle="before", look="two_stage", candidates=1.5), [range(3), range(3), range(3, 4)]),
        (ProphetKV(), [range(4)]),
        (SamKV.paper(), [range(3), range(4)]),  # its pass attended to the anchors alone
    ],
)
def test_no_layer_is_assembled_again_for_tokens_that_a_pass_has_seen(method: Method, layers: list[range]) -> None:
    case, assembled = prompted("llama"), list[range]()
    run = Run(case.plan, case.adapter, case.store, oracles.ROOM)
    original = run.caches.assemble

    def spy(kept: Any, layout: Layout, layers: range | None = None, replaced: Any = None) -> SlotCache:
        assembled.append(range(4) if layers is None else layers)
        return original(kept, layout, layers, replaced)

    run.caches.assemble = spy  # type: ignore[method-assign]
    prepared = method.prepare(run)
    assert assembled == layers
    assert prepared.cache is not None and len(prepared.cache.slot_layers) == 4


def test_the_control_says_the_same_first_token_and_keeps_other_tokens() -> None:
    case = prompted("llama")
    ours, control = (case.prepare(method) for method in (dropping(keep=0.3), RandomRest(keep=0.3)))
    assert torch.equal(case.logits(ours), case.logits(control))
    assert len(ours.ids) == len(control.ids) and ours.ids != control.ids
    assert all(map(torch.equal, ours.selection.recomputed, control.selection.recomputed))
    again, other = (case.prepare(RandomRest(keep=0.3, seed=seed)) for seed in (0, 1))
    assert again.ids == control.ids != other.ids
    with pytest.raises(SamKVError, match='"random"'):
        RandomRest(settle="before")


@pytest.mark.parametrize(("wiring", "own"), [("gemma4-sharing", 3), ("gemma4", 4)])
def test_behind_the_layers_with_caches_the_answers_rows_go_on_alone(wiring: str, own: int) -> None:
    case = prompted(wiring)
    run = Run(case.plan, case.adapter, case.store, oracles.ROOM)
    prepared = dropping(keep=0.5).prepare(run)
    rows = sum(map(len, prepared.selection.recomputed)) + case.plan.n_tokens - case.plan.chunk_tokens
    *_, before, last = run.costs.passes
    if own == case.adapter.shape.layers:  # the control: where every layer has one, all go on together
        assert len(last.slots) == rows and last.layers == own
        return
    assert (len(before.slots), before.layers, before.ended) == (rows, own, True)
    assert (len(last.slots), last.layers, last.ended) == (6, case.adapter.shape.layers, False)


@pytest.mark.parametrize(
    ("method", "share"), [(Full(), 1.0), (Reuse(), 0.0), (Epic(), None)], ids=["full", "reuse", "epic"]
)
def test_layers_without_caches_are_not_counted_as_recomputed(method: Any, share: float | None) -> None:
    case = prompted("gemma4-sharing")
    run = Run(case.plan, case.adapter, case.store, oracles.ROOM)
    report = make_report(run, method.prepare(run), method.name, 0.0)
    tokens = report.recomputed_tokens / report.chunk_tokens
    assert report.recomputed_layers_ratio == pytest.approx(tokens) and share in (None, tokens)
