"""Operations and scored bytes against instruments: every matrix product the model ran, every pair it attended to."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from samkv_rag import SamKV, SamKVEngine
from samkv_rag.methods import CacheBlend, Method
from samkv_rag.methods.costs import Pass
from samkv_rag.model import attention
from samkv_rag.model.absorbed import AbsorbedPlan
from tests.cases import METHODS
from tests.models import tiny_engine

CHUNKS = [
    "Lumen Labs is a company in Oslo that was founded in 1987 by Ana Petrov. It makes solar lamps and kettles.",
    "Ana Petrov studied chemistry in Bergen.",
    "The company then moved to the coast, where it keeps a museum of old lamps that opens on every second Sunday.",
]
ASKED = "Where is Lumen Labs based?"
WIRED = ["llama", "mistral-sliding", "qwen2-sliding", "gemma2", "gemma4", "gemma4-sharing", "phi3", "cohere2"]
SOME = {name: METHODS[name] for name in ("full", "samkv", "samkv-pooled", "cacheblend", "prophetkv", "no_context")}
RUNS = [(wiring, name) for wiring in WIRED for name in SOME]
LATENT = ("minicpm3", "longcat")
RUNS += [(wiring, name) for wiring in LATENT for name in SOME if name != "samkv-pooled"]  # latents have no summaries


def engine_of(wiring: str) -> SamKVEngine:
    engine = tiny_engine(wiring)
    engine.precompute(CHUNKS)
    engine.answer(ASKED, CHUNKS, max_new_tokens=1)  # what its prompts begin with is known from now on
    return engine


@contextmanager
def counting_pairs() -> Iterator[list[int]]:
    """Records all attention computed: visible (row, key) pairs, from the mask, times query heads and the dimensions of
    a key and a value."""
    heard: list[int] = []
    attended, without = attention.AttentionPlan.attended, attention._without_plan

    def planned(plan: Any, layer: int, query: Any, key: Any, value: Any, *rest: Any) -> Any:
        _, window, *_ = rest
        spans = plan.sight(query.shape[2], key.shape[2], window).spans
        wide = key.shape[3] + value.shape[3]
        heard.append(int((spans.last - spans.first + 1).sum()) * query.shape[1] * wide)
        return attended(plan, layer, query, key, value, *rest)

    def plain(module: Any, query: Any, key: Any, value: Any, mask: Any, *rest: Any) -> Any:
        rows, keys, width = query.shape[2], key.shape[2], query.shape[1] * (key.shape[3] + value.shape[3])
        causal = mask is None and rows > 1
        heard.append(width * (rows * (rows + 1) // 2 if causal else rows * keys if mask is None else int(mask.sum())))
        return without(module, query, key, value, mask, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention.AttentionPlan, "attended", planned)
        patch.setattr(attention, "_without_plan", plain)
        yield heard


@contextmanager
def counting_absorbed() -> Iterator[list[int]]:
    """Records the multiplications that absorb what layers make of latents: of queries, and of what they find."""
    heard: list[int] = []
    attend = AbsorbedPlan.attend

    def absorbed(plan: AbsorbedPlan, layer: int, query: Any, *rest: Any) -> Any:
        heard.append(query.shape[2] * plan.layers[layer].keys.numel())
        out = attend(plan, layer, query, *rest)
        heard.append(query.shape[2] * plan.layers[layer].values.numel())
        return out

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AbsorbedPlan, "attend", absorbed)
        yield heard


@pytest.mark.parametrize(("wiring", "name"), RUNS)
def test_the_operations_are_those_of_the_products_and_pairs_that_were_run(
    wiring: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_of(wiring)
    absorbs = wiring in LATENT and name not in ("full", "no_context")
    if absorbs:  # the first token has a pass of its own, as where more rows are computed
        monkeypatch.setattr(engine.adapter, "speaks_at_once", lambda rows: False)
    counter = FlopCounterMode(display=False)
    with counting_pairs() as pairs, counting_absorbed() as absorbed, counter:
        report = engine.answer(ASKED, CHUNKS, method=SOME[name], max_new_tokens=1).report
    matrices = counter.get_flop_counts()["Global"]
    products = sum(count for op, count in matrices.items() if str(op) in ("aten.mm", "aten.addmm"))
    assert products and pairs
    assert report.flops == products + 2 * sum(pairs) + 2 * sum(absorbed)
    assert bool(absorbed) == absorbs


@pytest.mark.parametrize("window", [None, 1, 4, 30])
def test_pairs_are_those_of_the_whole_mask(window: int | None) -> None:
    positions = torch.tensor([0, 1, 2, 5, 6, 9, 20, 21, 22])
    slots = torch.tensor([1, 3, 6, 8])
    visible = positions[None] <= positions[slots][:, None]
    if window is not None:
        visible &= positions[None] > positions[slots][:, None] - window
    assert Pass(positions, slots, 1).pairs(window) == int(visible.sum())


def test_keeping_less_costs_less_and_full_costs_most() -> None:
    engine = engine_of("llama")
    methods: list[str | Method] = ["no_context", *(SamKV(keep=keep, look="keys") for keep in (0.15, 0.5)), "full"]
    costs = [engine.answer(ASKED, CHUNKS, method=method, max_new_tokens=1).report.flops for method in methods]
    assert costs == sorted(set(costs))


def test_being_seen_by_everything_costs_more_than_by_what_is_kept() -> None:
    engine = engine_of("llama")
    methods: list[str | Method] = [SamKV(settle="before"), SamKV(), "full"]
    costs = [engine.answer(ASKED, CHUNKS, method=method, max_new_tokens=1).report.flops for method in methods]
    assert costs == sorted(set(costs))


@pytest.mark.parametrize("look", ["keys", "pooled", "mean", "bound"])
def test_the_bytes_scored_are_the_summaries_and_the_entries_that_choosing_read(look: Any) -> None:
    engine = engine_of("llama")
    read: list[int] = []
    report = engine.answer(ASKED, CHUNKS, method=SamKV(settle="before", look=look), max_new_tokens=1).report
    for key in engine.keys(CHUNKS):
        known = engine.store.summary(key)
        read.append(known.mean.nbytes + known.low.nbytes + known.high.nbytes + known.local_query.nbytes)
    entries = report.kv_bytes_read
    assert report.scored_bytes == (entries if look == "keys" else sum(read))


def test_what_does_not_choose_scores_nothing() -> None:
    engine = engine_of("llama")
    for name in ("full", "reuse", "epic", "random", "anchors_only", "no_context"):
        assert engine.answer(ASKED, CHUNKS, method=name, max_new_tokens=1).report.scored_bytes == 0


def test_cacheblend_scores_the_keys_of_one_layer() -> None:
    engine = engine_of("llama")
    report = engine.answer(ASKED, CHUNKS, method=CacheBlend(), max_new_tokens=1).report
    assert report.scored_bytes == report.chunk_tokens * engine.bytes_per_token // engine.adapter.shape.layers // 2


def test_the_digest_is_that_of_the_ids_that_every_method_answers() -> None:
    engine = engine_of("llama")
    reports = [engine.answer(ASKED, CHUNKS, method=METHODS[name], max_new_tokens=1).report for name in METHODS]
    ids = engine.plan_question(ASKED, CHUNKS).token_ids
    expected = hashlib.sha256(b"".join(token.to_bytes(8, "little") for token in ids)).hexdigest()
    assert {report.prompt_digest for report in reports} == {expected}
    other = engine.answer(ASKED + "?", CHUNKS, max_new_tokens=1).report
    assert other.prompt_digest != expected
