"""Counted, not claimed: what the report says is what entered the model, left the store and stayed in memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from samkv_rag import SamKV, SamKVEngine
from samkv_rag.accounting import make_report
from samkv_rag.methods import Method, Run
from samkv_rag.types import BLOCK, Report
from tests.cases import METHODS
from tests.models import tiny_engine

CHUNKS = [
    "Lumen Labs is a company in Oslo that was founded in 1987 by Ana Petrov. It makes solar lamps and kettles.",
    "Ana Petrov studied chemistry in Bergen.",
    "The company then moved to the coast, where it keeps a museum of old lamps that opens on every second Sunday.",
    "x",
]
ASKED = "Where is Lumen Labs based?"


@pytest.fixture(scope="module")
def engine() -> SamKVEngine:
    engine = tiny_engine()
    engine.precompute(CHUNKS)
    engine.answer(ASKED, CHUNKS, max_new_tokens=1)  # what prompts begin with is known from now on
    return engine


@contextmanager
def entering(engine: SamKVEngine) -> Iterator[list[int]]:
    """The number of tokens of every pass that enters layer 0, counted at the model's own input embedding."""
    passes: list[int] = []

    def hear(module: Any, inputs: tuple[torch.Tensor, ...], output: Any) -> None:
        passes.append(inputs[0].numel())

    handle = engine.adapter.model.get_input_embeddings().register_forward_hook(hear)
    try:
        yield passes
    finally:
        handle.remove()


def adds_up(report: Report) -> bool:
    return (
        report.prompt_tokens == report.glue_tokens + report.chunk_tokens
        and report.chunk_tokens == report.dropped_tokens + report.kept_tokens
        and report.kept_tokens == report.reused_tokens + report.recomputed_tokens - report.recomputed_dropped_tokens
        and report.fresh_tokens == report.glue_tokens - report.head_tokens + report.recomputed_tokens
    )


def packs(method: Method) -> bool:
    """Whether the rest is held in four bits in an answer of three tokens."""
    return type(method) is SamKV and method.settle == "after" and method.rest is None and method.settle_at < 3


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("known", [True, False], ids=["known", "missed"])
def test_every_report_adds_up(engine: SamKVEngine, name: str, known: bool) -> None:
    chunks = CHUNKS if known else [f"{name}: {chunk} Twice." for chunk in CHUNKS]
    answer = engine.answer(ASKED, chunks, method=METHODS[name], max_new_tokens=3)
    report, usage = answer.report, answer.usage
    assert adds_up(report)
    assert report.chunk_tokens == (sum(map(len, CHUNKS)) if known else 0)
    assert len(report.misses) == (0 if known else len(CHUNKS))
    assert report.kv_bytes_full == report.prompt_tokens * engine.bytes_per_token
    as_it_is = (report.prompt_tokens - report.dropped_tokens - report.packed_tokens) * engine.bytes_per_token
    assert bool(report.packed_tokens) == (known and packs(METHODS[name]))
    packed = (report.kv_bytes_resident - as_it_is) / (report.packed_tokens * engine.bytes_per_token or 1)
    assert 4 / 32 < packed < 8 / 32 if report.packed_tokens else packed == 0
    assert usage.prompt_tokens == report.prompt_tokens
    assert usage.cache_read == report.chunk_tokens - report.recomputed_tokens + report.head_tokens
    assert usage.completion_tokens == len(answer.token_ids) == 3
    assert report.ttft_seconds > 0
    assert set(report.stage_seconds) == {"plan", "load", "select", "recompute", "first_token"}


@pytest.mark.parametrize("at_once", [True, False], ids=["at once", "alone"])
@pytest.mark.parametrize("name", [name for name in METHODS if name != "cacheblend"])
def test_the_tokens_entering_layer_0_are_the_reports(
    engine: SamKVEngine, name: str, at_once: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until the first token: the question pass, what is fresh, and, unless the recompute produces that token itself,
    the last prompt token again."""
    monkeypatch.setattr(engine.adapter, "speaks_at_once", lambda rows: at_once)
    with entering(engine) as passes:
        report = engine.answer(ASKED, CHUNKS, method=METHODS[name], max_new_tokens=1).report
    prefilled = name == "full" or passes == [report.prompt_tokens]
    again = [] if prefilled or at_once else [1]
    assert sum(passes) == report.question_pass_tokens + report.fresh_tokens + sum(again)
    if not prefilled:
        assert passes[-1 - len(again) :] == [report.fresh_tokens, *again], "recompute is ONE forward"


def test_every_further_token_is_one_token_more(engine: SamKVEngine) -> None:
    with entering(engine) as passes:
        report = engine.answer(ASKED, CHUNKS, max_new_tokens=6).report
    before = report.question_pass_tokens + report.fresh_tokens
    assert passes[-5:] == [1] * 5 and sum(passes[:-5]) - before in (0, 1)


def test_missed_chunks_enter_as_glue_and_are_stored_afterwards(engine: SamKVEngine) -> None:
    new = "This text was never seen before by anybody at all, and certainly by no store."
    with entering(engine) as passes:
        report = engine.answer(ASKED, [new], max_new_tokens=1).report
    assert passes[0] == report.fresh_tokens == report.prompt_tokens
    healing = len(engine.adapter.sink_prefix) + len(new)
    assert passes[1:] == [healing], "the healing prefill, once the answer is out"


@pytest.mark.parametrize("name", METHODS)
def test_the_bytes_read_are_the_reports(engine: SamKVEngine, name: str) -> None:
    before = engine.store.bytes_read
    report = engine.answer(ASKED, CHUNKS, method=METHODS[name], max_new_tokens=1).report
    assert engine.store.bytes_read - before == report.kv_bytes_read


@pytest.mark.parametrize("look", ["pooled", "mean", "bound"])
@pytest.mark.parametrize("keep", [0.0, 0.05, 0.15, 0.5, 1.0])
@pytest.mark.parametrize("recompute", [0.0, 1 / 3, 1.0])
def test_selecting_by_summaries_reads_the_blocks_of_reused_tokens_and_no_others(
    engine: SamKVEngine, keep: float, look: Any, recompute: float
) -> None:
    (run, prepared), shape = prepared_run(engine, SamKV(settle="before", keep=keep, look=look, recompute=recompute))
    assert run.entries.bytes_read == blocks_of(reused(prepared)) * BLOCK * shape
    assert run.entries.bytes_read == 0 or recompute < 1, "what is computed again is not read"


@pytest.mark.parametrize(
    "method",
    [SamKV(settle="before", theta=0.9), SamKV(settle="before", look="pooled", aligned=True)],
    ids=["fused", "aligned"],
)
def test_what_is_only_partly_replaced_is_read(engine: SamKVEngine, method: Method) -> None:
    (run, prepared), shape = prepared_run(engine, method)
    assert run.entries.bytes_read >= blocks_of(prepared.selection.kept) * BLOCK * shape > 0


@pytest.mark.parametrize("recompute", [0.0, 1.0])
@pytest.mark.parametrize("layers", [(0,), (1, 2), (3,)])
def test_selecting_by_a_pass_over_all_entries_reads_the_layers_up_to_the_last_it_looks_at(
    engine: SamKVEngine, layers: tuple[int, ...], recompute: float
) -> None:
    (run, prepared), shape = prepared_run(engine, SamKV(settle="before", layers=layers, recompute=recompute))
    everything = sum(-(-len(chunk) // BLOCK) for chunk in CHUNKS)
    deep = layers[-1] + 1
    layers_read = everything * deep + blocks_of(reused(prepared)) * (4 - deep)
    assert run.entries.bytes_read == layers_read * BLOCK * shape // 4


def test_what_is_written_over_need_not_even_be_sound(engine: SamKVEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of a wholly recomputed entry reaches the model: tokens that were not read are poisoned here."""
    want = engine.answer(ASKED, CHUNKS, method=SamKV(keep=1.0), max_new_tokens=4).token_ids
    monkeypatch.setattr(torch, "zeros", lambda *shape, **how: torch.full(shape, float("nan"), **how))
    (run, prepared), _ = prepared_run(engine, SamKV(keep=1.0))
    monkeypatch.undo()
    got = prepared.generate(engine.adapter.loop, max_new_tokens=4, do_sample=False)
    assert tuple(got) == want and run.entries.bytes_read == 0


def reused(prepared: Any) -> list[torch.Tensor]:
    selection = prepared.selection
    return [kept[~torch.isin(kept, again)] for kept, again in zip(selection.kept, selection.recomputed, strict=True)]


def blocks_of(tokens: Sequence[torch.Tensor]) -> int:
    """Storage blocks that hold these tokens of each chunk."""
    return sum(len(torch.unique(inside // BLOCK)) for inside in tokens)


def prepared_run(engine: SamKVEngine, method: Method) -> tuple[Any, int]:
    engine.load()
    plan = engine._planner.for_question(ASKED, CHUNKS)
    run = Run(plan, engine.adapter, engine.store, room=4)
    return (run, method.prepare(run)), engine.bytes_per_token


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if name != "full"])
def test_the_bytes_resident_are_the_live_caches_and_nothing_dropped_is_in_it(engine: SamKVEngine, name: str) -> None:
    (run, prepared), per_token = prepared_run(engine, METHODS[name])
    if prepared.cache is None:
        pytest.skip("prefills in generate()")
    report = make_report(run, prepared, name, 0.0)
    assert prepared.cache.get_max_length() == len(prepared.ids) + 4 + 1
    prepared.generate(engine.adapter.loop, max_new_tokens=1, do_sample=False)
    assert prepared.cache.nbytes == report.kv_bytes_resident
    storages = [x.untyped_storage() for layer in prepared.cache.layers for x in (layer.keys, layer.values)]
    stored = {storage.data_ptr(): storage.nbytes() for storage in storages}  # layers may be slices of one tensor
    assert sum(stored.values()) == prepared.cache.get_max_length() * per_token


def test_the_same_chunk_twice_counts_twice(engine: SamKVEngine) -> None:
    report = engine.answer(ASKED, [CHUNKS[0], CHUNKS[0]], method="reuse", max_new_tokens=1).report
    assert report.chunk_tokens == report.reused_tokens == 2 * len(CHUNKS[0])
    assert adds_up(report)


@pytest.mark.parametrize("method", ["samkv", "multi_infllm", "random", "anchors_only"])
def test_a_method_with_keep_keeps_min_kept_tokens_at_least_and_says_so(method: str) -> None:
    engine = tiny_engine(min_kept_tokens=100)
    engine.precompute(CHUNKS)
    dropping = SamKV(rest="drop") if method == "samkv" else method
    few, whole, enough = (
        engine.answer(ASKED, chunks, method=dropping, keep=keep, max_new_tokens=1).report
        for chunks, keep in ((CHUNKS, 0.1), (CHUNKS[1:2], 0.1), (CHUNKS, 0.5))
    )
    assert few.kept_tokens == 100 and "keep alone would be 25" in few.notes[0]
    assert whole.dropped_tokens == 0 and whole.notes
    assert enough.kept_tokens == enough.chunk_tokens // 2 and not enough.notes
