"""What a model thinks before it answers is a block of its own, and the chat template gets its variables."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
from llama_index.core.base.llms.types import ChatMessage, ThinkingBlock

from llama_index.llms.samkv import SamKVLLM
from llama_index.llms.samkv.messages import convert
from samkv_rag import ChunkKVStore, SamKVEngine, SamKVError
from tests.integrations.llama_index.kit import QUESTION, model
from tests.models import thinking_tokenizer


@pytest.fixture
def thinker() -> SamKVLLM:
    """An LLM whose model thinks before it answers, whatever it is asked."""
    engine = SamKVEngine.from_pretrained(model(), thinking_tokenizer(), ChunkKVStore(":memory:"))
    grammar = '%llguidance {}\nstart: "<think>\\nhm, so\\n</think>\\n\\nIn Bergen."\n'
    for verb in ("generate", "stream"):
        setattr(engine, verb, partial(getattr(engine, verb), grammar=grammar))
    return SamKVLLM.from_engine(engine, max_new_tokens=64)


def test_thoughts_are_a_block_of_their_own(thinker: SamKVLLM) -> None:
    whole = thinker.chat([ChatMessage(role="user", content=QUESTION)])
    pieces = list(thinker.stream_chat([ChatMessage(role="user", content=QUESTION)]))
    for message in (whole.message, pieces[-1].message):
        assert message.content == "In Bergen."
        assert [block.content for block in message.blocks if isinstance(block, ThinkingBlock)] == ["hm, so"]
    assert "".join(piece.delta or "" for piece in pieces) == "In Bergen."
    assert "".join(piece.additional_kwargs.get("thinking_delta", "") for piece in pieces) == "hm, so"
    again = [ChatMessage(role="user", content=QUESTION), whole.message, ChatMessage(role="user", content="Sure?")]
    assert "hm, so" not in "".join(segment.text for segment in thinker.engine.plan(convert(again, False)).segments)


def test_thoughts_are_no_part_of_a_completion(thinker: SamKVLLM) -> None:
    whole, pieces = thinker.complete(QUESTION), list(thinker.stream_complete(QUESTION))
    for last in (whole, pieces[-1]):
        assert last.text == "In Bergen." and last.additional_kwargs == {"thinking": "hm, so"}
    assert "".join(piece.delta or "" for piece in pieces) == "In Bergen."
    assert "<think>" in thinker.complete(QUESTION, formatted=True).text, "a prompt that is no chat is not read for them"


@pytest.mark.parametrize("where", ["field", "call"])
def test_variables_of_the_chat_template(thinker: SamKVLLM, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, off = list[Any](), {"enable_thinking": False}
    plan = thinker.engine.plan
    monkeypatch.setattr(thinker.engine, "plan", lambda *how: asked.append(plan(*how)) or asked[-1])
    llm = SamKVLLM.from_engine(thinker.engine, chat_template_kwargs=off if where == "field" else {})
    given = {} if where == "field" else {"chat_template_kwargs": off}
    llm.chat([ChatMessage(role="user", content=QUESTION)], **given)
    llm.complete(QUESTION, **given)
    assert all(plan.segments[-1].text.endswith("<think>\n\n</think>\n\n") for plan in asked) and len(asked) == 2


def test_variables_that_are_none_are_an_error(thinker: SamKVLLM) -> None:
    for verb, asked in (("complete", QUESTION), ("chat", [ChatMessage(role="user", content=QUESTION)])):
        with pytest.raises(SamKVError, match="chat_template_kwargs is a dictionary, .*, not 'off'"):
            getattr(thinker, verb)(asked, chat_template_kwargs="off")
