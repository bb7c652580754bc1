"""Function calling: schemas into the prompt, calls out of the text, and agents over a retriever."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any, Literal

import pytest
from llama_index.core import PromptTemplate
from llama_index.core.agent.workflow import FunctionAgent, ReActAgent
from llama_index.core.base.llms.types import ChatMessage, ChatResponse, MessageRole, ToolCallBlock
from llama_index.core.program import FunctionCallingProgram
from llama_index.core.tools import FunctionTool, QueryEngineTool
from pydantic import BaseModel

from llama_index.llms.samkv import SamKVLLM
from llama_index.llms.samkv.tools import parse_calls, supports_tools
from samkv_rag import SamKVError
from samkv_rag.prompt.grammar import call_text
from samkv_rag.prompt.plan import Planner
from samkv_rag.stream import AnswerStream
from tests.integrations.llama_index.kit import TEXTS, Recorder, make_engine, make_llm
from tests.models import byte_tokenizer

TOOL_TEMPLATE = (
    "{% if tools %}<|im_start|>system\n{% for t in tools %}{{ t | tojson }}\n{% endfor %}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def lookup(place: str) -> str:
    """Says what is known of a place."""
    return TEXTS[0]


def weather(city: str, days: int = 1) -> str:
    """The weather in a city."""
    return f"{city}: rain for {days} days"


TOOLS = [FunctionTool.from_defaults(lookup), FunctionTool.from_defaults(weather)]
CALL = {"name": "weather", "arguments": {"city": "Bergen", "days": 2}}


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(CALL),
        f"<tool_call>\n{json.dumps(CALL)}\n</tool_call>",
        '{"name": "weather", "parameters": {"city": "Bergen", "days": 2}}',
        f"[TOOL_CALLS] [{json.dumps(CALL)}]",
        f"```json\n{json.dumps(CALL, indent=2)}\n```",
        json.dumps({"type": "function", "function": {**CALL, "arguments": json.dumps(CALL["arguments"])}}),
    ],
)
def test_the_forms_that_models_write_are_understood(text: str) -> None:
    rest, calls = parse_calls(text, ["lookup", "weather"])
    assert (rest, [(call.tool_name, call.tool_kwargs) for call in calls]) == ("", [("weather", CALL["arguments"])])


def test_words_and_several_calls_are_told_apart() -> None:
    lines = [json.dumps({"name": name, "arguments": {}}) for name in ("lookup", "weather", "other")]
    rest, calls = parse_calls(f"I will look. {lines[0]}\n{lines[1]}\n", ["lookup", "weather"])
    assert rest == "I will look." and [call.tool_name for call in calls] == ["lookup", "weather"]
    assert len({call.tool_call_id for call in calls}) == 2
    for text in ("no call {at all}", lines[2], '{"name": "weather", "arguments": "not json"}', '{"name": "weath'):
        assert parse_calls(text, ["lookup", "weather"]) == (text, [])


def test_templates_that_know_tools_are_recognised() -> None:
    assert supports_tools(TOOL_TEMPLATE) and supports_tools({"default": "x", "tool_use": TOOL_TEMPLATE})
    assert not supports_tools(None) and not supports_tools("{% for m in messages %}mytools{% endfor %}")


@pytest.fixture
def native(monkeypatch: pytest.MonkeyPatch) -> SamKVLLM:
    """An LLM whose chat template renders tools."""
    engine = make_engine()
    tokenizer = byte_tokenizer(True)
    monkeypatch.setattr(tokenizer, "chat_template", TOOL_TEMPLATE)
    return make_llm(engine)


def prompt_of(llm: SamKVLLM, asked: Any) -> str:
    planner: Planner = llm.engine._planner
    return bytes_of(llm, planner.for_prompt(asked.prompt).token_ids)


def bytes_of(llm: SamKVLLM, ids: list[int]) -> str:
    return str(llm.tokenizer.decode(ids))


def test_tools_go_through_a_template_that_knows_them(native: SamKVLLM) -> None:
    assert native.metadata.is_function_calling_model
    recorder = Recorder(native.engine)
    history = [
        ChatMessage(role="user", content="How is Bergen?"),
        ChatMessage(
            role=MessageRole.ASSISTANT, blocks=[ToolCallBlock(tool_call_id="c1", tool_name="weather", tool_kwargs={})]
        ),
        ChatMessage(role=MessageRole.TOOL, content=TEXTS[0], additional_kwargs={"tool_call_id": "c1"}),
    ]
    native.precompute([TEXTS[0]])
    native.chat_with_tools(TOOLS, chat_history=history, user_msg="And now?")
    text = prompt_of(native, recorder.asked[0])
    assert text.count('"description"') == 2 and "<tool_call>" in text
    assert f"<|im_start|>tool\n{TEXTS[0]}<|im_end|>" in text
    assert recorder.asked[0].answer.report.chunk_tokens == len(TEXTS[0].encode())


def test_tools_are_described_where_the_template_knows_none(llm: SamKVLLM) -> None:
    recorder = Recorder(llm.engine)
    history = [
        ChatMessage(role="system", content="Be kind."),
        ChatMessage(role="assistant", blocks=[ToolCallBlock(tool_name="weather", tool_kwargs='{"city": "Bergen"}')]),
        ChatMessage(role="tool", content="rain", additional_kwargs={"name": "weather"}),
    ]
    llm.chat_with_tools(TOOLS, chat_history=history, tool_required=True)
    system, call, result = recorder.asked[0].prompt.messages
    assert recorder.asked[0].prompt.tools == ()
    assert system["role"] == "system" and system["content"].endswith(
        "You must call a function; do not answer in words.\n\nBe kind."
    )
    assert system["content"].count('"parameters"') == 2
    assert call == {"role": "assistant", "content": call_text("weather", {"city": "Bergen"})}
    assert result == {"role": "user", "content": "Result of weather:\nrain"}


def test_tool_choice(llm: SamKVLLM) -> None:
    recorder = Recorder(llm.engine)
    for choice in ("weather", {"type": "function", "function": {"name": "weather"}}, "required", "none", "auto"):
        llm.chat_with_tools(TOOLS, user_msg="Go.", tool_choice=choice)
    named, also, required, none, auto = (asked.prompt.messages[0]["content"] for asked in recorder.asked)
    assert named == also and "lookup" not in named and "must call the function weather" in named
    assert "must call a function" in required and "must" not in auto and none == "Go."
    with pytest.raises(SamKVError, match="'x' is not one of the tools; choose one of: lookup, weather"):
        llm.chat_with_tools(TOOLS, user_msg="Go.", tool_choice="x")


def force(llm: SamKVLLM, monkeypatch: pytest.MonkeyPatch, *texts: str) -> None:
    """The first answers are these texts; the prompts are planned and answered all the same."""
    forced = list(texts)
    generate, stream = llm.engine.generate, llm.engine.stream

    def ask(prompt: Any, **options: Any) -> Any:
        answer = generate(prompt, **options)
        return replace(answer, text=forced.pop(0)) if forced else answer

    def ask_in_pieces(prompt: Any, **options: Any) -> Any:
        if not forced:
            return stream(prompt, **options)
        answer = ask(prompt, **options)
        return AnswerStream(lambda emit, *_: (emit(answer.text), answer)[1])

    monkeypatch.setattr(llm.engine, "generate", ask)
    monkeypatch.setattr(llm.engine, "stream", ask_in_pieces)


@pytest.mark.parametrize("way", ["chat", "achat", "stream_chat", "astream_chat"])
def test_calls_come_out_of_every_verb(llm: SamKVLLM, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    force(llm, monkeypatch, f"Let me see. {json.dumps(CALL)} {json.dumps(CALL)}")

    async def ask() -> ChatResponse:
        if way == "achat":
            return await llm.achat_with_tools(TOOLS, "Go.")
        return [chunk async for chunk in await llm.astream_chat_with_tools(TOOLS, "Go.")][-1]

    if way.startswith("a"):
        response = asyncio.run(ask())
    elif way == "chat":
        response = llm.chat_with_tools(TOOLS, "Go.")
    else:
        response = list(llm.stream_chat_with_tools(TOOLS, "Go."))[-1]
    (selection,) = llm.get_tool_calls_from_response(response)
    assert (selection.tool_name, selection.tool_kwargs) == ("weather", CALL["arguments"])
    assert response.message.content == "Let me see."


def test_parallel_calls_and_no_call(llm: SamKVLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    force(llm, monkeypatch, json.dumps([CALL, CALL]))
    response = llm.chat_with_tools(TOOLS, "Go.", allow_parallel_tool_calls=True)
    assert len(llm.get_tool_calls_from_response(response)) == 2
    response = llm.chat_with_tools(TOOLS, "Go.")
    assert llm.get_tool_calls_from_response(response, error_on_no_tool_call=False) == []
    with pytest.raises(ValueError, match="called no function but answered: .*; raise max_new_tokens"):
        llm.get_tool_calls_from_response(response)


@pytest.mark.parametrize("verb", ["complete", "stream_complete"])
def test_a_turn_starts_with_a_word_and_a_continuation_as_it_likes(llm: SamKVLLM, monkeypatch: Any, verb: str) -> None:
    force(llm, monkeypatch, " \n Bergen. ", " is there")
    turn, continued = (getattr(llm, verb)("Where", formatted=formatted) for formatted in (False, True))
    texts = [list(made)[-1].text if verb == "stream_complete" else made.text for made in (turn, continued)]
    assert texts == ["Bergen. ", " is there"]


def test_predict_and_call_runs_the_tool(native: SamKVLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    force(native, monkeypatch, json.dumps(CALL))
    assert str(native.predict_and_call(TOOLS, user_msg="Go.")) == "Bergen: rain for 2 days"


class City(BaseModel):
    """A city."""

    name: str
    founded: int


def test_structured_output(native: SamKVLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    call = json.dumps({"name": "City", "arguments": {"name": "Bergen", "founded": 1070}})
    force(native, monkeypatch, call)
    program = FunctionCallingProgram.from_defaults(City, prompt_template_str="Name {what}.", llm=native)
    assert program(what="a city") == City(name="Bergen", founded=1070)


class Verdict(BaseModel):
    """A verdict."""

    good: bool
    colour: Literal["red", "green"]
    size: Literal[1, 2, 3]


def test_a_required_call_fits_its_schema_whatever_the_model(llm: SamKVLLM) -> None:
    """Nothing is forced: the random model's own tokens, under the grammar."""
    llm.max_new_tokens = 200
    for seed in range(3):
        llm.temperature, llm.seed = 2.0, seed
        assert isinstance(llm.structured_predict(Verdict, PromptTemplate("Judge {what}."), what="it"), Verdict)

    async def judge() -> Verdict:
        return await llm.astructured_predict(Verdict, PromptTemplate("Judge {what}."), what="it")

    assert isinstance(asyncio.run(judge()), Verdict)
    for most in (5, 15):
        llm.max_new_tokens = most
        with pytest.raises(SamKVError, match="raise max_new_tokens"):
            llm.structured_predict(Verdict, PromptTemplate("Judge {what}."), what="it")


@pytest.mark.parametrize("streaming", [False, True])
def test_a_function_agent_reads_chunks_from_its_tool(monkeypatch: pytest.MonkeyPatch, streaming: bool) -> None:
    """The first call is forced; what the tool returns is found in the next prompt, by content."""
    llm = make_llm()
    llm.precompute([TEXTS[0]])
    recorder = Recorder(llm.engine)
    force(llm, monkeypatch, json.dumps({"name": "lookup", "arguments": {"place": "Lumen"}}))
    agent = FunctionAgent(tools=TOOLS, llm=llm, streaming=streaming)

    async def run() -> Any:
        return await agent.run("Where was Lumen Labs founded?")

    result = asyncio.run(run())
    assert [call.tool_name for call in result.tool_calls] == ["lookup"]
    assert len(recorder.asked) == 2
    assert recorder.asked[1].answer.report.chunk_tokens == len(TEXTS[0].encode())
    assert result.response.content == recorder.asked[1].answer.text.lstrip()


@pytest.mark.parametrize("streaming", [False, True])
def test_a_react_agent_reads_chunks_from_a_query_engine(
    llm: SamKVLLM, monkeypatch: pytest.MonkeyPatch, streaming: bool
) -> None:
    from tests.integrations.llama_index.test_modes import wrapped_index

    engine = wrapped_index(llm).as_query_engine(similarity_top_k=2)
    tool = QueryEngineTool.from_defaults(engine, name="passages", description="Knows the passages.")
    recorder = Recorder(llm.engine)
    thought = 'Thought: I must look.\nAction: passages\nAction Input: {"input": "Lumen Labs"}\n'
    final = "Thought: I can answer without using any more tools.\nAnswer: In Bergen."
    answers = iter([thought, None, final])
    force_some(llm, monkeypatch, answers)

    async def run() -> Any:
        return await ReActAgent(tools=[tool], llm=llm, streaming=streaming).run("Where was Lumen Labs founded?")

    assert str(asyncio.run(run())) == "In Bergen."
    assert recorder.asked[1].answer.report.chunk_tokens > 0


def force_some(llm: SamKVLLM, monkeypatch: pytest.MonkeyPatch, texts: Any) -> None:
    """Like `force`, for awaited calls, but None leaves an answer unchanged."""
    stream = llm.engine.stream

    def ask(prompt: Any, **options: Any) -> AnswerStream:
        text, made = next(texts, None), stream(prompt, **options)
        if text is None:
            return made

        def answer(emit: Any, *_: Any) -> Any:
            emit(text)
            return replace(made.answer, text=text)

        return AnswerStream(answer)

    monkeypatch.setattr(llm.engine, "stream", ask)
