"""What chunks are ingested behind: exact whatever it is, part of the fingerprint, and what a prompt begins with."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import DynamicCache

from samkv_rag import SamKV, SamKVEngine, SamKVError
from samkv_rag.model.calling import handing
from samkv_rag.prompt.template import HEAD
from tests.engine.test_engine import ASKED, CHUNKS, EVERYTHING, stock_answer
from tests.models import adapter, byte_tokenizer, tiny_engine
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
    """Behind the head of `answer` the first chunk's entry is what the whole prompt's prefill has for it."""
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


@pytest.mark.parametrize("chat", [False, True])
def test_behind_the_head_of_answer_its_first_chunk_is_exact_and_not_computed_again(chat: bool) -> None:
    engine = tiny_engine(chat=chat)
    assert engine.adapter.sink_prefix == beginning(engine)
    recomputed = engine.answer(ASKED, CHUNKS, method=SamKV(keep=0.5), max_new_tokens=1).report.recomputed_tokens
    behind = tiny_engine(chat=chat, sink_prefix="none")
    behind.precompute(CHUNKS)
    more = behind.answer(ASKED, CHUNKS, method=SamKV(keep=0.5), max_new_tokens=1).report.recomputed_tokens
    assert 0 < recomputed < more


USER = "{{ messages[0].content }}"


@pytest.mark.parametrize(
    ("template", "written"),
    [
        ("{{ bos_token }}" + USER, "<bos>"),
        ("A system of few words. " + USER, "A system of few words. "),
        ("{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
         "It is {{ date_string }}. " + USER, "It is 26 Jul 2024. "),
        ("It is {{ strftime_now('%d %b %Y') }}. " + USER, ""),
        ("A system of many words. " * 4 + USER, ""),
    ],
)  # fmt: skip
def test_caches_begin_as_the_chat_template_does_but_for_the_date_and_long_ones(template: str, written: str) -> None:
    tokenizer = copy.deepcopy(byte_tokenizer(chat=True))
    tokenizer.chat_template = template
    engine = SamKVEngine.from_pretrained(adapter("llama").model, tokenizer=tokenizer, store=":memory:")
    assert tokenizer.decode(list(engine.adapter.sink_prefix)) == written + HEAD
    assert (engine.adapter.sink_prefix == beginning(engine)) == (written != "" and "26" not in written)
    assert list(engine.answer(ASKED, CHUNKS, method=EVERYTHING, max_new_tokens=8).token_ids) == stock_answer(
        engine, stock("llama")
    )


def test_a_template_that_refuses_the_prompt_of_answer_leaves_its_first_lines() -> None:
    tokenizer = copy.deepcopy(byte_tokenizer(chat=True))
    tokenizer.chat_template = "{{ raise_exception('A system message, please') }}"
    engine = SamKVEngine.from_pretrained(adapter("llama").model, tokenizer=tokenizer, store=":memory:")
    assert engine.adapter.sink_prefix == tuple(tokenizer(HEAD)["input_ids"])
