"""Tool calls and structured output: valid from any model, whole or in pieces."""

from __future__ import annotations

import json

import pytest
from langchain_core.messages import AIMessageChunk
from langchain_core.tools import tool
from pydantic import BaseModel

from langchain_samkv import ChatSamKV
from langchain_samkv.calls import CallReader
from samkv_rag import SamKVEngine, SamKVError
from samkv_rag.prompt.grammar import OPEN, call_text, json_grammar

CHUNK = "Lumen Labs was founded in 1998 and has its office in Harrow, next to the old mill."
ASKED = [("system", f"Answer from:\n\n{CHUNK}"), ("human", "Where is the office?")]


@pytest.fixture
def llm(engine: SamKVEngine) -> ChatSamKV:
    engine.precompute([CHUNK])
    return ChatSamKV(engine=engine, max_tokens=12)


class Point(BaseModel):
    """A point."""

    x: bool
    y: bool


@tool
def place(x: bool, y: bool) -> str:
    """Place a point."""
    return f"{x} {y}"


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_structured_output_of_a_random_model_fits(llm: ChatSamKV, method: str) -> None:
    llm.max_tokens = 120
    made = llm.with_structured_output(Point, method=method, include_raw=True).invoke(ASKED)
    assert isinstance(made["parsed"], Point) and made["parsing_error"] is None
    assert made["raw"].response_metadata["samkv"]["chunk_tokens"] > 0


def test_a_call_that_was_cut_off_is_invalid(llm: ChatSamKV) -> None:
    forced = llm.bind_tools([place], tool_choice="any")
    answer = forced.invoke("Hello", max_tokens=60)
    assert not answer.tool_calls and answer.response_metadata["finish_reason"] == "length"
    assert [call["name"] for call in answer.invalid_tool_calls] == ["place"]


def test_several_calls_where_they_are_allowed(llm: ChatSamKV) -> None:
    forced = llm.bind_tools([place], tool_choice="place", parallel_tool_calls=True)
    calls = forced.invoke("Hello", max_tokens=400).tool_calls
    assert len(calls) > 1 and {call["name"] for call in calls} == {"place"}
    assert len({call["id"] for call in calls}) == len(calls)


def test_streamed_calls_are_those_of_whole_answers(llm: ChatSamKV) -> None:
    forced = llm.bind_tools([place], tool_choice=True)
    chunks = list(forced.stream("Hello", max_tokens=150))
    full = chunks[0]
    for chunk in chunks[1:]:
        full = full + chunk
    whole = forced.invoke("Hello", max_tokens=150)
    assert [call["args"] for call in full.tool_calls] == [call["args"] for call in whole.tool_calls]
    assert len([chunk for chunk in chunks if chunk.tool_call_chunks]) > 2 and not full.text
    assert full.response_metadata["finish_reason"] == whole.response_metadata["finish_reason"] == "tool_calls"


def test_a_tool_that_is_not_there_is_an_error(llm: ChatSamKV) -> None:
    with pytest.raises(SamKVError, match="'search' is not one of the tools; choose one of: place, or"):
        llm.bind_tools([place], tool_choice="search")
    with pytest.raises(SamKVError, match="no method 'magic'"):
        llm.with_structured_output(Point, method="magic")


def read(pieces: list[str]) -> tuple[str, list[tuple[str | None, str]]]:
    reader, words, calls = CallReader(), "", []
    for event in [event for piece in pieces for event in reader.feed(piece)] + list(reader.end()):
        if isinstance(event, str):
            words += event
        elif event["id"]:
            calls.append((event["name"], event["args"] or ""))
        else:
            calls[-1] = (calls[-1][0], calls[-1][1] + (event["args"] or ""))
    return words, calls


CALLS = [("search", {"query": 'a "quoted" }\n</tool_call> <tool_call>', "deep": {"n": [1, {}]}}), ("none", {})]


@pytest.mark.parametrize("words", ["", "Let me see < <tool.\n"])
@pytest.mark.parametrize("size", [1, 2, 3, 7, 11, 13, 1000])
def test_calls_are_read_from_pieces_of_any_size(words: str, size: int) -> None:
    text = words + "\n".join(call_text(name, arguments) for name, arguments in CALLS)
    read_words, calls = read([text[at : at + size] for at in range(0, len(text), size)])
    assert read_words == words.removesuffix("\n")
    assert [(name, json.loads(args)) for name, args in calls] == CALLS


def test_a_call_that_is_cut_anywhere_is_whole_or_incomplete() -> None:
    text = call_text("search", {"deep": {"n": 1}})
    arguments = json.dumps({"deep": {"n": 1}})
    head = text.index(arguments)
    for end in range(len(text)):
        words, calls = read([text[:end]])
        if end < len(OPEN):
            assert words == text[:end] and not calls
        else:
            assert not words and [args for _, args in calls] == [text[:end] if end < head else arguments[: end - head]]


def test_what_only_begins_like_a_call_stays_text() -> None:
    for text in (f"{OPEN} is how a call begins", f'{OPEN}\n{{"name": 3', f'{OPEN}{{"name": "search", "at'):
        assert read([text]) == (text, [])


def test_a_call_that_was_cut_off_in_its_head_is_no_answer(llm: ChatSamKV) -> None:
    forced = llm.bind_tools([place], tool_choice="any")
    for most in (14, 25, 35):
        answer = forced.invoke("Hello", max_tokens=most)
        whole = sum(forced.stream("Hello", max_tokens=most), AIMessageChunk(""))
        for message in (answer, whole):
            assert not message.content and not message.tool_calls and len(message.invalid_tool_calls) == 1


def test_an_engine_answers_under_a_grammar(engine: SamKVEngine) -> None:
    schema = {"type": "object", "properties": {"a": {"enum": [1, 2]}, "b": {"type": "boolean"}}, "required": ["a", "b"]}
    answer = engine.generate("Hello", grammar=json_grammar(schema), max_new_tokens=60)
    assert set(json.loads(answer.text)) == {"a", "b"} and answer.finish_reason == "stop"
    with pytest.raises(SamKVError, match="The grammar cannot be used"):
        engine.generate("Hello", grammar="start: nowhere")
