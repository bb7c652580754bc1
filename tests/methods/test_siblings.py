"""The other methods of the field, each against an exact oracle: what it says it recomputed is what it recomputed."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from samkv_rag.methods import (
    AnchorsOnly,
    CacheBlend,
    Epic,
    Full,
    InfoFlow,
    Method,
    MultiInfLLM,
    NoContext,
    ProphetKV,
    Random,
    Reuse,
    Run,
)  # fmt: skip
from samkv_rag.model.calling import handing
from samkv_rag.store import ChunkKVStore
from samkv_rag.types import Selection
from tests import oracles
from tests.cases import WIRINGS
from tests.models import adapter
from tests.oracles import Kept, Prompted, stock, stock_logits

TOLERANCE = 1e-4
LENGTHS = (37, 16, 30, 5)
SOME = ("llama", "llama-yarn", "mistral-sliding", "gemma2", "gemma4", "gemma4-sharing", "glm4", "smollm3")
SELECTING: dict[str, Method] = {
    "epic": Epic(tokens=8),
    "prophetkv": ProphetKV(),
    "infoflow": InfoFlow(),
    "multi_infllm": MultiInfLLM(keep=0.4),
    "random": Random(keep=0.4),
    "anchors_only": AnchorsOnly(keep=0.4),
    "no_context": NoContext(),
}
EVERYTHING: dict[str, Method] = {
    "cacheblend": CacheBlend(share=1.0),
    "prophetkv": ProphetKV(share=1.0),
    "infoflow": InfoFlow(share=1.0),
    "random": Random(keep=1.0),
    "anchors_only": AnchorsOnly(keep=1.0),
}


@cache
def prompted(wiring: str) -> Prompted:
    store = ChunkKVStore(":memory:")
    return Prompted(oracles.stored_plan(adapter(wiring), store, LENGTHS), adapter(wiring), store)


def distance(got: Tensor, want: Tensor) -> float:
    return float((got - want).abs().max() / want.square().mean().sqrt().clamp(max=1))


def frozen_forward(wiring: str, case: Prompted, selection: Selection, rows: list[Tensor] | None = None) -> Tensor:
    """Next-token logits of one stock forward over all kept tokens; what is not recomputed keeps its stored entry."""
    kept = Kept.of(case.plan, selection)
    past = oracles.frozen_cache(wiring, case.plan, kept, rows)
    return stock_logits(stock(wiring), kept.ids, kept.positions, past)[-1]


@pytest.mark.parametrize("wiring", WIRINGS)
@pytest.mark.parametrize("name", EVERYTHING)
def test_recomputing_everything_is_full_prefill(name: str, wiring: str) -> None:
    case = prompted(wiring)
    full = case.logits(case.prepare(Full()))
    assert distance(case.logits(case.prepare(EVERYTHING[name])), full) < TOLERANCE


@pytest.mark.parametrize("wiring", SOME)
@pytest.mark.parametrize("name", SELECTING)
def test_what_is_not_recomputed_keeps_its_stored_entry(name: str, wiring: str) -> None:
    case = prompted(wiring)
    prepared = case.prepare(SELECTING[name])
    got = case.logits(prepared)
    assert distance(got, frozen_forward(wiring, case, prepared.selection)) < TOLERANCE
    if name in ("epic", "prophetkv", "infoflow"):  # control: these keep all and recompute a part, so they are not reuse
        assert distance(got, case.logits(case.prepare(Reuse()))) > 10 * TOLERANCE


@pytest.mark.parametrize("wiring", SOME)
@pytest.mark.parametrize("check", [0, 1, 2])
def test_cacheblend_computes_all_tokens_below_its_check_layer_and_the_chosen_above(wiring: str, check: int) -> None:
    case = prompted(wiring)
    prepared = case.prepare(CacheBlend(share=0.3, check=check))
    chosen = torch.cat([torch.isin(kept, again) for kept, again in zip(*_both(prepared.selection), strict=True)])
    rows = [chosen | (layer < check) for layer in range(adapter(wiring).shape.layers)]
    want = frozen_forward(wiring, case, Selection.all_of(case.plan), rows)
    assert int(chosen.sum()) == int(0.3 * sum(LENGTHS))
    assert distance(case.logits(prepared), want) < TOLERANCE


def _both(selection: Selection) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    return selection.kept, selection.recomputed


def test_cacheblend_chooses_the_keys_that_moved_most() -> None:
    case = prompted("llama")
    chosen = case.prepare(CacheBlend(share=0.3)).selection.recomputed
    stored = oracles.stored_entries("llama", case.plan)[1][0]
    model, past = stock("llama"), DynamicCache()
    with torch.no_grad():
        model(torch.tensor([case.plan.token_ids]), **handing(model, past))
    fresh = past.layers[1].keys
    moved = (fresh - stored).square().sum((0, 1, 3))
    spots = torch.cat([torch.arange(chunk.start, chunk.stop) for chunk in case.plan.chunks])
    best = spots[moved[spots].topk(int(0.3 * len(spots))).indices].sort().values
    got = torch.cat([again + chunk.start for again, chunk in zip(chosen, case.plan.chunks, strict=True)])
    assert torch.equal(got, best)


@pytest.mark.parametrize("wiring", ["llama", "qwen2"])
def test_prophetkv_chooses_what_the_question_attends_to(wiring: str) -> None:
    case = prompted(wiring)
    chosen = case.prepare(ProphetKV(share=0.2)).selection.recomputed
    kept = Kept.of(case.plan, case.prepare(Reuse()).selection)
    visible = kept.positions[None, :] <= kept.positions[:, None]
    model = stock(wiring)
    with torch.no_grad():
        maps = model(
            torch.tensor([kept.ids]), position_ids=kept.positions[None], output_attentions=True,
            **handing(model, oracles.frozen_cache(wiring, case.plan, kept)),
            attention_mask=oracles.hand_made_mask(model, visible, visible),
        ).attentions  # fmt: skip
    asking = kept.positions >= case.plan.question.start
    value = torch.stack(maps)[:, 0].mean(1)[:, asking].mean((0, 1))
    value[kept.owner < 0] = -1
    best = kept.positions[value.topk(int(0.2 * sum(LENGTHS))).indices].sort().values
    got = torch.cat([again + chunk.start for again, chunk in zip(chosen, case.plan.chunks, strict=True)])
    assert torch.equal(got, best)


def test_infoflow_looks_at_the_last_layer_where_its_band_begins_behind_it() -> None:
    case = prompted("llama")
    behind, last, first = (
        case.prepare(InfoFlow(share=0.2, band=band)).selection.recomputed for band in ((1, 1), (0.75, 1), (0, 0))
    )
    assert torch.equal(torch.cat(behind), torch.cat(last)) and not torch.equal(torch.cat(last), torch.cat(first))


def test_epic_recomputes_the_head_of_every_chunk_but_the_first() -> None:
    chosen = prompted("llama").prepare(Epic(tokens=8)).selection.recomputed
    assert [tokens.tolist() for tokens in chosen] == [[], list(range(8)), list(range(8)), list(range(5))]


def test_early_full_layers_are_charged() -> None:
    case = prompted("llama")
    run = Run(case.plan, case.adapter, case.store, 1)
    selection = CacheBlend(share=0.25, check=1).prepare(run).selection
    again, total = sum(map(len, selection.recomputed)), sum(LENGTHS)
    assert run.costs.chunk_token_layers == 2 * total + 4 * again
