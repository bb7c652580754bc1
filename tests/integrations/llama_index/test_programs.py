"""Structured answers that stream: the model is made to write a call, and the framework finds it."""

from __future__ import annotations

import asyncio
from typing import Any, Literal

import pytest
from llama_index.core import PromptTemplate
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.program.function_program import get_function_tool
from llama_index.core.types import PydanticProgramMode
from pydantic import BaseModel

from llama_index.llms.samkv import SamKVLLM
from llama_index.llms.samkv.tools import specs_of
from samkv_rag import SamKVError
from tests.integrations.llama_index.kit import make_llm

JUDGE = PromptTemplate("Judge {what}.")


class Verdict(BaseModel):
    """A verdict."""

    good: bool
    colour: Literal["red", "green"]


def judge(good: bool, colour: str) -> str:
    """Judges it."""
    return f"{good} {colour}"


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


@pytest.mark.parametrize("streaming", [False, True])
def test_a_call_that_was_cut_off_is_an_error_whoever_asked(llm: SamKVLLM, streaming: bool) -> None:
    """A program would make an object of it with nothing but defaults, an agent an answer in words."""
    llm.max_new_tokens = 40
    ask = llm.stream_structured_predict if streaming else llm.structured_predict
    with pytest.raises(SamKVError, match="ended inside a call: raise max_new_tokens"):
        list(ask(Verdict, JUDGE, what="it"))
    agent = FunctionAgent(tools=[judge], llm=llm, initial_tool_choice="judge", streaming=streaming)

    async def run() -> Any:
        return await agent.run("Judge it.")

    with pytest.raises(SamKVError, match="ended inside a call"):
        asyncio.run(run())


class Tree(BaseModel):
    """A tree."""

    leaf: bool
    kids: list[Tree] = []


def test_a_class_that_refers_to_itself_keeps_its_schema() -> None:
    (spec,) = specs_of([get_function_tool(Tree)])
    schema = spec["function"]["parameters"]
    assert schema["$ref"] == "#/$defs/Tree" and schema["$defs"]["Tree"]["required"] == ["leaf"]
