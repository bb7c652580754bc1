"""The gates that no release may fail: what the engine computes is exactly what it says, on every wiring.

(a) keep 1, recompute 1 is plain `generate()`; (b) keep < 1 is one forward over the kept ids at their true positions;
(c) recompute < 1 is that forward with the other entries frozen to the stored ones; (d) the controls: a changed store
changes (c), and keys left at the wrong positions are visibly wrong. What is settled after the recompute: test_settled.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch

from samkv_kernels.piecewise import ROWS
from samkv_rag import ChunkKVStore, Full, Reuse, SamKV
from samkv_rag.methods import Method, Prepared, Run
from samkv_rag.types import Selection
from tests import oracles
from tests.cases import METHODS, WIRINGS
from tests.methods.gates import (
    BY_HAND,
    NEW_TOKENS,
    SOME,
    TOLERANCE,
    VISIBLE,
    before,
    distance,
    every_wiring,
    frozen_logits,
    mixture,
    plain_logits,
    plain_tokens,
    prompted,
    settled_logits,
    some_wirings,
    spoken,
)  # fmt: skip
from tests.oracles import Kept, stock, stock_logits

# -- (a) -----------------------------------------------------------------------------------------------------------


@every_wiring
@pytest.mark.parametrize("method", [Full(), SamKV(keep=1.0)], ids=["full", "samkv"])
def test_keeping_and_recomputing_everything_is_plain_generate(wiring: str, method: Method) -> None:
    case = prompted(wiring)
    assert distance(case.logits(case.prepare(method)), plain_logits(wiring, case.plan)) < TOLERANCE
    assert case.tokens(method, NEW_TOKENS) == plain_tokens(wiring, case.plan)


@some_wirings
def test_keeping_everything_is_plain_generate_with_a_repetition_penalty_too(wiring: str) -> None:
    case, penalty = prompted(wiring), {"repetition_penalty": 1.7}
    got = case.tokens(SamKV(keep=1.0), NEW_TOKENS, **penalty)
    assert got == plain_tokens(wiring, case.plan, **penalty)
    assert got != plain_tokens(wiring, case.plan), "the penalty must matter for this to prove anything"


@some_wirings
def test_keeping_everything_samples_the_tokens_of_plain_generate(wiring: str) -> None:
    case, sampling = prompted(wiring), {"do_sample": True, "temperature": 1.3, "top_k": 40}
    plain_tokens(wiring, case.plan)  # making the model draws random numbers too
    torch.manual_seed(11)
    got = case.tokens(SamKV(keep=1.0), NEW_TOKENS, **sampling)
    torch.manual_seed(11)
    assert got == plain_tokens(wiring, case.plan, **sampling)


@pytest.mark.parametrize("wiring", ["llama-longrope-crossed", "phi3-longrope"])
def test_decoding_across_the_longrope_threshold_is_plain_generate(wiring: str) -> None:
    """The prompt ends five tokens short of the threshold; the ninth token lies beyond it."""
    case = prompted(wiring, (30, 17))
    assert case.plan.n_tokens == 59
    assert case.tokens(SamKV(keep=1.0), 11) == plain_tokens(wiring, case.plan, max_new_tokens=11)


# -- (b) -----------------------------------------------------------------------------------------------------------


@every_wiring
@pytest.mark.parametrize("keep", [0.0, 0.15, 0.5])
def test_keeping_some_is_one_forward_over_the_kept_ids_at_their_true_positions(wiring: str, keep: float) -> None:
    case = prompted(wiring)
    prepared = case.prepare(before(keep=keep))
    kept = Kept.of(case.plan, prepared.selection)
    assert list(prepared.ids) == kept.ids
    assert len(kept.ids) < case.plan.n_tokens
    want = stock_logits(stock(wiring), kept.ids, kept.positions)[-1]
    assert distance(case.logits(prepared), want) < TOLERANCE


@pytest.mark.parametrize("wiring", [*SOME, "llama-yarn", "qwen2-sliding", "phi3-sliding", "glm4", "smollm3"])
def test_decoding_over_gaps_is_greedy_decoding_by_hand(wiring: str) -> None:
    case = prompted(wiring)
    method = before(keep=0.4)
    kept = Kept.of(case.plan, case.prepare(method).selection)
    past = oracles.frozen_cache(wiring, case.plan, kept)
    want = oracles.greedy(stock(wiring), kept.ids, kept.positions, past, BY_HAND)
    assert case.tokens(method, BY_HAND) == want


@some_wirings
def test_ignoring_the_gaps_would_be_visible(wiring: str) -> None:
    """The control of (b): the same ids at consecutive positions are another prompt."""
    case = prompted(wiring)
    prepared = case.prepare(before(keep=0.4))
    kept = Kept.of(case.plan, prepared.selection)
    closed = stock_logits(stock(wiring), kept.ids, torch.arange(len(kept.ids)))[-1]
    assert distance(case.logits(prepared), closed) > VISIBLE


@some_wirings
def test_more_queries_than_go_through_at_once_are_one_forward_too(wiring: str) -> None:
    case = prompted(wiring, (150, 90, 160))
    prepared = case.prepare(before(keep=0.8))
    kept = Kept.of(case.plan, prepared.selection)
    assert len(kept.ids) > 1.4 * ROWS
    for again in (1.0, 0.9):
        prepared = case.prepare(before(keep=0.8, recompute=again))
        assert distance(case.logits(prepared), frozen_logits(wiring, case, prepared)) < TOLERANCE


# -- (c) -----------------------------------------------------------------------------------------------------------


@every_wiring
@pytest.mark.parametrize(
    "method",
    [Reuse(), before(keep=0.5, recompute=0.0), before(keep=0.5, recompute=1 / 3), before(keep=1.0, recompute=1 / 3)],
    ids=["reuse", "samkv-0", "samkv-third", "samkv-all-kept-third"],
)
def test_what_is_not_recomputed_stays_exactly_as_it_was_stored(wiring: str, method: Method) -> None:
    case = prompted(wiring)
    prepared = case.prepare(method)
    assert distance(case.logits(prepared), frozen_logits(wiring, case, prepared)) < TOLERANCE


@pytest.mark.parametrize("wiring", [name for name in WIRINGS if "longrope" not in name])
def test_reuse_is_one_forward_in_which_chunks_see_only_themselves(wiring: str) -> None:
    case = prompted(wiring)
    everything = Kept.of(case.plan, Selection.all_of(case.plan))
    owner = everything.owner
    own_or_glue = (owner[None, :] == owner[:, None]) | (owner[:, None] < 0)
    want = stock_logits(stock(wiring), everything.ids, everything.positions, allowed=own_or_glue)[-1]
    got = case.logits(case.prepare(Reuse()))
    assert distance(got, want) < TOLERANCE
    assert distance(got, plain_logits(wiring, case.plan)) > VISIBLE, "chunks that see each other must differ"


@some_wirings
def test_decoding_over_partly_reused_entries_is_greedy_decoding_by_hand(wiring: str) -> None:
    case = prompted(wiring)
    method = before(keep=0.4, recompute=1 / 3)
    kept = Kept.of(case.plan, case.prepare(method).selection)
    past = oracles.frozen_cache(wiring, case.plan, kept)
    want = oracles.greedy(stock(wiring), kept.ids, kept.positions, past, BY_HAND)
    assert case.tokens(method, BY_HAND) == want


@some_wirings
@pytest.mark.parametrize("name", METHODS)
def test_every_method_in_the_case_list_is_the_forward_its_selection_says(
    wiring: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case, method = prompted(wiring), METHODS[name]
    asked: dict[str, Any] = {}
    once, twice = Run.recompute, Run.recompute_and_settle

    def spy(run: Run, selection: Selection, rows: Any = None, theta: Any = 1.0) -> Prepared:
        asked.update(rows=rows, theta=theta, logits=frozen_logits)
        return once(run, selection, rows, theta)

    def spy_on_two(
        run: Run, again: Any, layers: Any, settle: Any, theta: Any, wide: int, sees: float, *rest: Any
    ) -> Prepared:  # fmt: skip
        asked.update(rows=None, theta=theta, logits=partial(settled_logits, narrow=wide, sees=sees))
        return twice(run, again, layers, settle, theta, wide, sees, *rest)

    monkeypatch.setattr(Run, "recompute", spy)
    monkeypatch.setattr(Run, "recompute_and_settle", spy_on_two)
    prepared = case.prepare(method)
    if prepared.cache is None:
        assert distance(case.logits(prepared), plain_logits(wiring, case.plan)) < TOLERANCE
        return
    if not asked:
        pytest.skip("computes layers apart, so one forward over frozen entries is not its reference")
    want = asked["logits"](wiring, case, prepared, rows=asked["rows"], mix=mixture(asked["theta"]))
    got = case.logits(prepared) if want.ndim == 1 else spoken(case, prepared)
    assert distance(got, want) < TOLERANCE


@some_wirings
@pytest.mark.parametrize("name", METHODS)
def test_the_first_token_is_the_same_whether_the_recompute_or_its_last_token_alone_says_it(
    wiring: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case, said, kept = prompted(wiring), [], []
    for at_once in (True, False):
        monkeypatch.setattr(case.adapter, "speaks_at_once", lambda rows, answer=at_once: answer)
        prepared = case.prepare(METHODS[name])
        said.append(case.logits(prepared) if prepared.cache is None else spoken(case, prepared))
        kept.append(prepared.selection.kept)
    assert distance(*said) < TOLERANCE
    assert all(map(torch.equal, *kept))


@some_wirings
def test_layer_alignment_writes_a_layers_rows_and_no_others(wiring: str) -> None:
    case = prompted(wiring)
    kept = Selection(*[tuple(torch.arange(0, len(c.token_ids), 2) for c in case.plan.chunks)] * 2)
    total = sum(map(len, kept.kept))
    rows = [torch.rand(total, generator=torch.Generator().manual_seed(layer)) < 0.5 for layer in range(4)]
    prepared = Run(case.plan, case.adapter, case.store, oracles.ROOM).recompute(kept, rows)
    got = case.logits(prepared)
    assert distance(got, frozen_logits(wiring, case, prepared, rows=rows)) < TOLERANCE
    assert distance(got, frozen_logits(wiring, case, prepared)) > TOLERANCE, "the rows must matter"


# -- (d) -----------------------------------------------------------------------------------------------------------


@every_wiring
def test_a_perturbed_store_changes_what_is_reused_and_nothing_else(wiring: str) -> None:
    case = prompted(wiring)
    right = case.logits(case.prepare(Reuse()))
    for part in (0, 1):  # keys, values
        bent = replace(case, store=ChunkKVStore(":memory:"))
        for chunk in case.plan.chunks:
            cached = oracles.stored_chunk(case.store, str(chunk.key))
            for kv in (cached.kv, *cached.others):
                kv[:, :, part] += torch.randn(kv[:, :, 0].shape, generator=torch.Generator().manual_seed(3))
            bent.store.put(str(chunk.key), cached)
        assert distance(bent.logits(bent.prepare(Reuse())), right) > VISIBLE
    assert distance(bent.logits(bent.prepare(SamKV(keep=1.0))), plain_logits(wiring, case.plan)) < TOLERANCE


@every_wiring
def test_keys_left_at_their_own_positions_are_visibly_wrong(wiring: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = prompted(wiring)
    right = case.logits(case.prepare(Reuse()))
    own = torch.cat([torch.arange(len(segment.token_ids)) for segment in case.plan.segments])
    rotary = case.adapter.rotary
    monkeypatch.setattr(rotary, "turning", lambda positions, here: rotary.table(own[positions]).angles)
    assert distance(case.logits(case.prepare(Reuse())), right) > VISIBLE
