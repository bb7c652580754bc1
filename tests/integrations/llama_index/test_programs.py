"""Structured answers that stream: the model is made to write a call, and the framework finds it."""

from __future__ import annotations

import asyncio
from typing import Any, Literal

import pytest
from llama_index.core import PromptTemplate
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.types import PydanticProgramMode
from pydantic import BaseModel

from llama_index.llms.samkv import SamKVLLM
from tests.integrations.llama_index.kit import make_llm

JUDGE = PromptTemplate("Judge {what}.")


class Verdict(BaseModel):
    """A verdict."""

    good: bool
    colour: Literal["red", "green"]


@pytest.fixture
def llm() -> SamKVLLM:
    """Nothing is forced: the random model's own tokens, under the grammar."""
    return make_llm(max_new_tokens=200)


def test_a_structured_answer_streams_to_its_object(llm: SamKVLLM) -> None:
    made = list(llm.stream_structured_predict(Verdict, JUDGE, what="it"))
    assert isinstance(made[-1], Verdict) and made[-1] == llm.structured_predict(Verdict, JUDGE, what="it")


def test_so_it_does_for_a_caller_that_awaits_it(llm: SamKVLLM) -> None:
    async def last() -> Any:
        async for made in await llm.astream_structured_predict(Verdict, JUDGE, what="it"):
            found = made
        return found

    assert isinstance(asyncio.run(last()), Verdict)


def test_and_for_a_structured_llm(llm: SamKVLLM) -> None:
    asked = [ChatMessage(role="user", content="Judge it.")]
    structured = llm.as_structured_llm(Verdict)
    assert isinstance([*structured.stream_chat(asked)][-1].raw, Verdict)


def test_a_program_that_reads_text_is_demanded_no_call(llm: SamKVLLM) -> None:
    llm.pydantic_program_mode = PydanticProgramMode.LLM
    assert "tool_choice" not in vars(llm._program(Verdict, JUDGE))
