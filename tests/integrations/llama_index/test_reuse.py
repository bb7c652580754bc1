"""How a user sees what was reused: usage, events, totals, explanations."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest
from llama_index.core import Settings
from llama_index.core.callbacks import CallbackManager, TokenCountingHandler
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events.llm import LLMChatEndEvent, LLMCompletionEndEvent
from llama_index.core.llms import ChatMessage

from llama_index.llms.samkv import ReuseStats, SamKVLLM, SamKVReuseEvent
from samkv_rag import SamKVEngine
from tests.integrations.llama_index.kit import QUESTION, TEXTS, Recorder, make_engine, make_llm

PROMPT = f"{TEXTS[0]}\n\n{TEXTS[1]}\n\n{QUESTION}"


class Listener(BaseEventHandler):
    events: list[Any] = []

    @classmethod
    def class_name(cls) -> str:
        return "Listener"

    def handle(self, event: Any, **kwargs: Any) -> None:
        self.events.append(event)


@pytest.fixture
def events() -> Any:
    root = get_dispatcher()
    listener = Listener(events=[])
    root.add_event_handler(listener)
    yield listener.events
    root.event_handlers.remove(listener)


def test_an_event_for_every_answer(llm: SamKVLLM, events: list[Any]) -> None:
    llm.precompute(TEXTS)
    response = llm.complete(PROMPT)
    *_, last = llm.stream_chat([ChatMessage(role="user", content=PROMPT)])
    ours = [event for event in events if isinstance(event, SamKVReuseEvent)]
    assert [event.report for event in ours] == [response.raw["samkv"], last.raw["samkv"]]
    assert ours[0].usage == response.raw["usage"] and ours[0].span_id is not None
    assert any(isinstance(event, LLMCompletionEndEvent) for event in events)
    assert any(isinstance(event, LLMChatEndEvent) for event in events)
    json.dumps(response.raw)


def test_the_token_counter_takes_our_counts(llm: SamKVLLM) -> None:
    counter = TokenCountingHandler()
    llm.callback_manager = CallbackManager([counter])
    raw = llm.chat([ChatMessage(role="user", content=PROMPT)]).raw
    assert counter.prompt_llm_token_count == raw["usage"]["prompt_tokens"]
    assert counter.completion_llm_token_count == raw["usage"]["completion_tokens"] == 6


def test_totals_add_up_over_threads(llm: SamKVLLM) -> None:
    assert llm.stats() == ReuseStats() and llm.stats().cache_read_share == 0.0
    llm.precompute(TEXTS)
    recorder = Recorder(llm.engine)
    threads = [threading.Thread(target=llm.complete, args=(f"{TEXTS[i]}\n\n{i}?",)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    stats, reports = llm.stats(), [asked.answer.report for asked in recorder.asked]
    assert stats.answers == 4 and stats.prompt_tokens == sum(report.prompt_tokens for report in reports)
    assert stats.prompt_tokens == stats.glue_tokens + stats.chunk_tokens
    assert stats.chunk_tokens == stats.dropped_tokens + stats.kept_tokens
    assert stats.kept_tokens == sum(
        r.reused_tokens + r.recomputed_tokens - r.recomputed_dropped_tokens for r in reports
    )
    assert stats.as_dict()["cache_read_share"] == stats.cache_read / stats.prompt_tokens
    assert str(stats).startswith(f"4 answers, {stats.prompt_tokens} prompt tokens: {stats.chunk_tokens} of cached")


def test_misses_are_counted_and_healed(llm: SamKVLLM) -> None:
    (key,) = llm.precompute([TEXTS[0]])
    llm.engine.store.delete([key])
    seen = llm.explain(PROMPT)
    assert seen.keys == () and len(seen.misses) == 1 and "1 known chunks are gone" in str(seen)
    llm.complete(PROMPT)
    assert llm.stats().misses == 1 and key in llm.engine.store
    assert llm.explain(PROMPT).keys == (key,)


def test_explain_shows_what_an_answer_reuses(llm: SamKVLLM) -> None:
    keys = llm.precompute(TEXTS)
    for given in (PROMPT, [ChatMessage(role="system", content=PROMPT), ChatMessage(role="user", content="When?")]):
        seen = llm.explain(given)
        report = (llm.complete(given) if isinstance(given, str) else llm.chat(given)).raw["samkv"]
        assert seen.keys == tuple(keys[:2]) and seen.misses == ()
        assert (seen.prompt_tokens, seen.chunk_tokens) == (report["prompt_tokens"], report["chunk_tokens"])
    assert seen.question.strip().startswith("When?")
    assert str(seen).splitlines()[0].endswith("are cached chunks")
    assert len(str(seen).splitlines()) == 1 + len(seen.segments)


def test_nothing_is_reused_across_namespaces() -> None:
    engine = make_engine()
    other = SamKVEngine(engine.source, engine.store, namespace="other")
    make_llm(engine).precompute(TEXTS)
    assert make_llm(engine).explain(PROMPT).chunk_tokens > 0
    assert make_llm(other).explain(PROMPT).chunk_tokens == 0
    assert make_llm(other).namespace == "other"


def test_off_is_method_full(llm: SamKVLLM) -> None:
    llm.precompute(TEXTS)
    raw = llm.complete(PROMPT, method="full").raw
    assert raw["usage"]["cache_read"] == 0 and raw["samkv"]["reused_tokens"] == 0


def test_the_tokenizer_serves_the_settings(llm: SamKVLLM) -> None:
    assert Settings.tokenizer("ab") == llm.tokenizer.encode("ab", add_special_tokens=False)
