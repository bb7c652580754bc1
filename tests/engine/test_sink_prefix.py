"""What precedes chunks at ingestion: exact whatever it is, part of the fingerprint, and what a prompt begins with."""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache

from samkv_rag import SamKV, SamKVEngine, SamKVError
from samkv_rag.model.calling import handing
from samkv_rag.prompt.template import HEAD
from tests.engine.test_engine import ASKED, CHUNKS, EVERYTHING, stock_answer
from tests.models import BEGINS, adapter, byte_tokenizer, templated, tiny_engine
from tests.oracles import stock, unblocked

BOS = byte_tokenizer().bos_token_id


@pytest.mark.parametrize(
    ("sink_prefix", "ids"),
    [("none", ()), ("bos", (BOS,)), ("head", tuple(byte_tokenizer()(HEAD)["input_ids"]))],
)
def test_behind_any_sink_prefix_keeping_everything_is_exact(sink_prefix: str, ids: tuple[int, ...]) -> None:
    engine = tiny_engine(sink_prefix=sink_prefix)
    engine.precompute(CHUNKS)
    assert engine.adapter.sink_prefix == ids
    assert list(engine.answer(ASKED, CHUNKS, method=EVERYTHING, max_new_tokens=8).token_ids) == stock_answer(
        engine, stock("llama")
    )
    assert engine.self_check().passed


def test_an_entry_is_the_chunk_s_part_of_a_prefill_behind_the_sink_prefix() -> None:
    """After the head of `answer` the first chunk's entry is what the whole prompt's prefill has for it."""
    engine, plain = tiny_engine(sink_prefix="head"), tiny_engine(sink_prefix="none")
    (mine,), (other,) = engine.precompute(CHUNKS[:1]), plain.precompute(CHUNKS[:1])
    assert mine != other
    assert not torch.allclose(engine.store.read_blocks(mine), plain.store.read_blocks(other), atol=1e-3)
    plan = engine.plan_question(ASKED, CHUNKS[:1])
    chunk, cache = plan.chunks[0], DynamicCache()
    ids = torch.tensor([plan.token_ids[: chunk.stop]])
    stock("llama")(ids, **handing(stock("llama"), cache))
    _, values = unblocked(engine.store.read_blocks(mine))
    for layer, stored in zip(cache.layers, values, strict=True):
        fresh = layer.values[0, :, chunk.start :]
        torch.testing.assert_close(stored[:, : fresh.shape[1]], fresh, rtol=1e-5, atol=1e-5)


def test_an_unknown_sink_prefix_is_refused() -> None:
    with pytest.raises(SamKVError, match="none, bos, head"):
        tiny_engine(sink_prefix="sink")


def beginning(engine: SamKVEngine) -> tuple[int, ...]:
    """What a prompt of `answer` has before its first chunk."""
    engine.precompute(CHUNKS)
    plan = engine.plan_question(ASKED, CHUNKS)
    return tuple(plan.token_ids[: plan.chunks[0].start])


@pytest.mark.parametrize("template", [None, BEGINS])
def test_behind_the_head_of_answer_its_first_chunk_is_exact_and_not_computed_again(template: str | None) -> None:
    engine = written_by(template)
    assert engine.adapter.sink_prefix == beginning(engine)
    behind = written_by(template, sink_prefix="none")
    behind.precompute(CHUNKS)
    assert 0 < recomputed(engine) < recomputed(behind)


@pytest.mark.parametrize(
    ("template", "bos"),
    [
        (BEGINS, "<bos>"),
        ("{{ bos_token }}It is {{ strftime_now('%d %b %Y') }}. {{ messages[0].content }}", "<bos>"),
        ("A system of few words. {{ messages[0].content }}", ""),
        ("{{ raise_exception('A system message, please') }}", "<bos>"),
    ],
)
def test_of_what_a_chat_template_writes_in_front_chunks_stand_behind_a_bos_alone(template: str, bos: str) -> None:
    engine = written_by(template)
    assert engine.tokenizer.decode(list(engine.adapter.sink_prefix)) == bos + HEAD


def test_behind_more_than_that_the_first_chunk_is_like_any_other() -> None:
    engine, behind = (written_by("A system. {{ messages[0].content }}", sink) for sink in ("head", "none"))
    for each in (engine, behind):
        each.precompute(CHUNKS)
    assert recomputed(engine) == recomputed(behind)
    assert list(engine.answer(ASKED, CHUNKS, method=EVERYTHING, max_new_tokens=8).token_ids) == stock_answer(
        engine, stock("llama")
    )


def written_by(template: str | None, sink_prefix: str = "head") -> SamKVEngine:
    """An engine with this chat template."""
    model = adapter("llama").model
    return SamKVEngine.from_pretrained(model, templated(template), ":memory:", sink_prefix=sink_prefix)


def recomputed(engine: SamKVEngine) -> int:
    return engine.answer(ASKED, CHUNKS, method=SamKV(keep=0.5), max_new_tokens=1).report.recomputed_tokens
