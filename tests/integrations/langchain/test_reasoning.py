"""What a model thinks before it answers is told from what it answers, and the chat template gets its variables."""

from __future__ import annotations

from typing import Any

import pytest

from langchain_samkv import ChatSamKV
from samkv_rag import ChunkKVStore, SamKVEngine, SamKVError
from tests.integrations.langchain.conftest import roomy_model
from tests.models import thinking_tokenizer


@pytest.fixture
def thinker() -> ChatSamKV:
    """A chat model that thinks before it answers, whatever it is asked."""
    engine = SamKVEngine.from_pretrained(roomy_model(), thinking_tokenizer(), ChunkKVStore(":memory:"))
    grammar = '%llguidance {}\nstart: "<think>\\nhm, so\\n</think>\\n\\nIn Harrow."\n'
    stream = engine.stream
    engine.stream = lambda *asked, **how: stream(*asked, **{**how, "grammar": how["grammar"] or grammar})  # type: ignore[method-assign]
    return ChatSamKV(engine=engine, max_tokens=64)


def test_thoughts_are_told_apart_whole_and_streamed(thinker: ChatSamKV) -> None:
    whole, pieces = thinker.invoke("Where?"), list(thinker.stream("Where?"))
    streamed = pieces[0]
    for piece in pieces[1:]:
        streamed += piece
    for message in (whole, streamed):
        assert message.text == "In Harrow."
        assert message.additional_kwargs["reasoning_content"] == "hm, so"
        assert [block["type"] for block in message.content_blocks] == ["reasoning", "text"]
    plan = thinker.explain(["Where?", whole, "Sure?"])
    assert "hm, so" not in "".join(segment.text for segment in plan.segments)


def test_calls_and_structures_are_not_looked_for_in_thoughts() -> None:
    """The template of some models opens a thought, and a forced call has no room for one."""
    opened = SamKVEngine.from_pretrained(roomy_model(), thinking_tokenizer(opens=True), ChunkKVStore(":memory:"))
    llm = ChatSamKV(engine=opened, max_tokens=200)
    called = llm.bind_tools([{"name": "search", "description": "", "parameters": {}}], tool_choice="any").invoke("Go")
    assert "reasoning_content" not in called.additional_kwargs
    assert called.tool_calls or called.invalid_tool_calls
    assert ChatSamKV(engine=opened, max_tokens=5).invoke("Go").additional_kwargs["reasoning_content"]


@pytest.mark.parametrize("where", ["field", "call"])
def test_variables_of_the_chat_template(thinker: ChatSamKV, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, off = list[Any](), {"enable_thinking": False}
    plan = thinker.engine.plan
    monkeypatch.setattr(thinker.engine, "plan", lambda *how: asked.append(plan(*how)) or asked[-1])
    llm = ChatSamKV(engine=thinker.engine, max_tokens=4, chat_template_kwargs=off if where == "field" else {})
    llm.invoke("Where?", **({} if where == "field" else {"chat_template_kwargs": off}))
    assert asked[0].segments[-1].text.endswith("<think>\n\n</think>\n\n")


def test_answers_under_other_variables_of_the_engine_are_not_mixed_up() -> None:
    keys = []
    for off in ({}, {"enable_thinking": False}):
        options: dict[str, Any] = {"store": ChunkKVStore(":memory:"), "chat_template_kwargs": off}
        engine = SamKVEngine.from_pretrained(roomy_model(), thinking_tokenizer(), **options)
        keys.append(ChatSamKV(engine=engine)._get_llm_string())
    assert keys[0] != keys[1]


def test_variables_that_are_none_are_an_error(thinker: ChatSamKV) -> None:
    with pytest.raises(SamKVError, match="chat_template_kwargs is a dictionary, .*, not 'off'"):
        thinker.invoke("Where?", chat_template_kwargs="off")
