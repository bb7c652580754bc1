"""Structured output: what is said to fit a schema does, and what was cut off is an error."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.exceptions import OutputParserException
from langchain_core.load import dumps
from pydantic import BaseModel

from langchain_samkv import ChatSamKV
from langchain_samkv.structured import plain_schema
from samkv_rag import SamKVEngine, SamKVError


@pytest.fixture
def llm(engine: SamKVEngine) -> ChatSamKV:
    return ChatSamKV(engine=engine, max_tokens=200)


class Names(BaseModel):
    """Names."""

    names: list[str] = []


PAIR = {
    "title": "pair", "type": "object", "properties": {"a": {"type": "boolean"}, "b": {"type": "boolean"}},
    "required": ["a", "b"],
}  # fmt: skip


@pytest.mark.parametrize("schema", [PAIR, Names])
def test_an_answer_that_ends_inside_its_json_is_an_error(llm: ChatSamKV, schema: Any) -> None:
    """What is there parses, once it is repaired: it would pass for an answer."""
    made = llm.with_structured_output(schema, include_raw=True).invoke("Who?", max_tokens=9)
    assert made["parsed"] is None and "ended inside its JSON" in str(made["parsing_error"])
    plain = llm.model_copy(update={"max_tokens": 9}).with_structured_output(schema)
    for ask in (plain.invoke, lambda asked: list(plain.stream(asked))):
        with pytest.raises(OutputParserException, match="allow more tokens with max_tokens"):
            ask("Who?")


@pytest.mark.parametrize("schema", [PAIR, Names])
def test_a_call_that_was_cut_off_is_an_error(llm: ChatSamKV, schema: Any) -> None:
    """The framework's parsers make None of it, or in a stream an object of what is there."""
    for most in (14, 40):
        short = llm.model_copy(update={"max_tokens": most})
        plain = short.with_structured_output(schema, method="function_calling")
        for ask in (plain.invoke, lambda asked, plain=plain: list(plain.stream(asked))):
            with pytest.raises(OutputParserException, match="ended inside a call"):
                ask("Who?")
        raw = short.with_structured_output(schema, method="function_calling", include_raw=True).invoke("Who?")
        assert raw["parsed"] is None and "ended inside a call" in str(raw["parsing_error"]) and raw["raw"]


async def test_a_call_that_was_cut_off_is_an_error_where_it_is_awaited(llm: ChatSamKV) -> None:
    llm.max_tokens = 60
    plain = llm.with_structured_output(PAIR, method="function_calling")
    with pytest.raises(OutputParserException, match="ended inside a call"):
        await plain.ainvoke("Who?")
    with pytest.raises(OutputParserException, match="ended inside a call"):
        async for _ in plain.astream("Who?"):
            pass


def test_a_whole_call_is_its_object_streamed_or_not(llm: ChatSamKV) -> None:
    plain = llm.with_structured_output(PAIR, method="function_calling")
    assert [*plain.stream("Who?")][-1] == plain.invoke("Who?") and {*plain.invoke("Who?")} == {"a", "b"}


async def test_so_it_is_for_a_caller_that_awaits_it(llm: ChatSamKV) -> None:
    llm.max_tokens = 9
    with pytest.raises(OutputParserException, match="ended inside its JSON"):
        async for _ in llm.with_structured_output(PAIR).astream("Who?"):
            pass


def test_a_whole_answer_streams_to_its_object(llm: ChatSamKV) -> None:
    made = [*llm.with_structured_output(PAIR).stream("Who?")]
    assert made[-1] == llm.with_structured_output(PAIR).invoke("Who?") and {*made[-1]} == {"a", "b"}


ROOTS: list[dict[str, Any]] = [
    {"title": "x", "enum": ["a", "b"]},
    {"title": "x", "const": 3},
    {"title": "x", "oneOf": [{"type": "boolean"}, PAIR]},
    {"name": "f", "strict": True, "schema": PAIR},
    {"type": "json_schema", "json_schema": {"name": "f", "schema": PAIR}},
]


@pytest.mark.parametrize("schema", ROOTS, ids=str)
def test_a_schema_keeps_what_it_says_at_its_root(llm: ChatSamKV, schema: dict[str, Any]) -> None:
    said = plain_schema(schema)
    assert said in (schema, PAIR)
    made = llm.with_structured_output(schema).invoke("Who?", temperature=1.0, seed=1)
    assert made in ("a", "b", 3, True, False) or {*made} == {"a", "b"}


def test_a_schema_that_says_nothing_is_refused(llm: ChatSamKV) -> None:
    with pytest.raises(SamKVError, match="The schema says nothing of the answer"):
        llm.with_structured_output({"title": "x", "description": "Anything."})


class Tree(BaseModel):
    """A tree."""

    leaf: bool
    kids: list[Tree] = []


def test_a_class_that_refers_to_itself_keeps_what_it_says_of_itself(llm: ChatSamKV) -> None:
    for seed in range(4):
        made = llm.with_structured_output(Tree, include_raw=True).invoke("Who?", temperature=1.0, seed=seed)
        cut = made["raw"].response_metadata["finish_reason"] == "length"
        assert cut or isinstance(made["parsed"], Tree)


COMBINED: list[dict[str, Any]] = [
    {**PAIR, "required": ["a"], "anyOf": [{"required": ["b"]}, {"properties": {"c": {"const": 1}}, "required": ["c"]}]},
    {"title": "x", "allOf": [PAIR, {"type": "object", "properties": {"c": {"const": 1}}, "required": ["c"]}]},
    {
        "title": "x", "type": "object", "required": ["who"], "$defs": {"P": PAIR},
        "properties": {
            "who": {"allOf": [{"$ref": "#/$defs/P"}, {"properties": {"c": {"const": 1}}, "required": ["c"]}]}
        },
    },
]  # fmt: skip


@pytest.mark.parametrize("schema", COMBINED, ids=["any of", "all of", "all of, inside"])
def test_schemas_that_are_combined_do_not_exclude_each_other(llm: ChatSamKV, schema: dict[str, Any]) -> None:
    made = llm.with_structured_output(schema).invoke("Who?", max_tokens=900)
    own = made.get("who", made)
    assert {"a", "b"} <= {*own} or {"a", "c"} <= {*own}


def test_keywords_reach_the_call_or_are_refused(llm: ChatSamKV) -> None:
    bound = llm.with_structured_output(PAIR, include_raw=True, strict=True, max_tokens=4)
    assert bound.invoke("Who?")["raw"].usage_metadata["output_tokens"] == 4
    for wrong in (lambda: bound.invoke("Who?", bogus=1), lambda: llm.with_structured_output(PAIR, bogus=1).invoke("?")):
        with pytest.raises(SamKVError, match="does not know bogus"):
            wrong()


def test_a_tool_that_is_no_function_is_refused(llm: ChatSamKV) -> None:
    for tool in ({"type": "web_search_preview"}, {"name": "f", "parameters": {}}, object()):
        with pytest.raises(SamKVError, match="A tool is"):
            llm.invoke("Who?", tools=[tool])


def test_what_may_be_a_secret_is_told_nowhere() -> None:
    one, other = (ChatSamKV(model="meta/x", model_kwargs={"token": token}) for token in ("hf_SECRET", "hf_OTHER"))
    for told in (dumps(one), one._get_llm_string(), str(one._get_invocation_params()), repr(one)):
        assert "hf_SECRET" not in told
    assert one._get_llm_string() != other._get_llm_string()
    assert '"not_implemented"' in dumps(ChatSamKV(tokenizer="some/tokenizer"))


def test_a_copy_over_an_engine_cannot_be_another_tenants(llm: ChatSamKV) -> None:
    for other in ({"namespace": "grace"}, {"kv_store": "elsewhere"}, {"kv_dtype": "int4"}):
        with pytest.raises(SamKVError, match="The engine that was given has"):
            llm.model_copy(update=other).invoke("Who?")
    assert llm.model_copy(update={"max_tokens": 2}).invoke("Who?").usage_metadata
