"""What a model is told about tools and a schema, whichever framework asks, and what the grammar then lets through."""

from __future__ import annotations

import copy
from typing import Any

import llguidance
import llguidance.hf
import pytest

from samkv_rag import SamKVError
from samkv_rag.prompt.grammar import call_grammar, json_grammar
from samkv_rag.prompt.reasoning import ReasoningReader
from samkv_rag.prompt.tools import ANY_OBJECT, Form, choice_of
from tests.models import byte_tokenizer, thinking_tokenizer

CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS: list[dict[str, Any]] = [
    {"type": "function", "function": {"name": "weather", "description": "The weather.", "parameters": CITY}},
    {"type": "function", "function": {"name": "now"}},
]
NOTHING = {"type": "object", "properties": {}}


@pytest.mark.parametrize(
    "choice, meant",
    [
        (None, "auto"), (False, "auto"), ("auto", "auto"), (True, "any"), ("any", "any"), ("required", "any"),
        ("none", "none"), ("now", "now"), ({"type": "function", "function": {"name": "now"}}, "now"),
        ({"type": "tool", "name": "now"}, "now"), ({"type": "any"}, "any"),
    ],
)  # fmt: skip
def test_a_choice_may_be_written_in_many_ways(choice: Any, meant: str) -> None:
    assert choice_of(choice, ["weather", "now"]) == meant


def test_a_tool_that_is_not_there_is_an_error() -> None:
    with pytest.raises(SamKVError, match="'x' is not one of the tools; choose one of: weather, now, or 'auto'"):
        Form.of(TOOLS, "x")


@pytest.mark.parametrize("parallel", [False, True])
def test_tools_that_may_be_called_are_all_shown(parallel: bool) -> None:
    form = Form.of(TOOLS, "auto", parallel)
    assert form.names == ("weather", "now") and form.demand == ""
    assert '{"type": "function", "function": {"name": "now"}}\n</tools>' in form.instructions
    assert form.grammar() == call_grammar([("weather", CITY), ("now", NOTHING)], required=False, parallel=parallel)


def test_a_call_that_is_required_is_asked_for() -> None:
    form = Form.of(TOOLS, "any")
    assert form.demand == "You must call a function; do not answer in words."
    assert form.instructions == f"{Form.of(TOOLS).instructions}\n\n{form.demand}"
    assert form.grammar() == call_grammar([("weather", CITY), ("now", NOTHING)], required=True, parallel=False)


def test_of_a_chosen_tool_nothing_else_is_shown() -> None:
    form = Form.of(TOOLS, "now")
    assert form.demand == "You must call the function now; do not answer in words."
    assert "weather" not in form.instructions
    assert form.grammar() == call_grammar([("now", NOTHING)], required=True, parallel=False)


def test_tools_that_must_not_be_called_are_not_there() -> None:
    for form in (Form.of(TOOLS, "none"), Form.of([], "any"), Form()):
        assert (form.names, form.demand, form.instructions, form.grammar()) == ((), "", "", None)


def test_a_schema_is_shown_and_held_to() -> None:
    form = Form.of([], schema=CITY)
    assert form.instructions.startswith("Answer with one JSON value that fits this JSON schema")
    assert form.instructions.endswith('"required": ["city"]}') and form.grammar() == json_grammar(CITY)
    assert Form.of([], schema=ANY_OBJECT).instructions == "Answer with one JSON object, and nothing else."


# -- thoughts before words and calls -------------------------------------------------------------------------------

CALLED = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'


def taken(text: str, thoughts: ReasoningReader | None) -> tuple[str, bool]:
    """How much of a text the grammar of words or a call lets through, and whether the answer may end there."""
    grammar = Form.of([TOOLS[1]]).grammar(thoughts)
    tokenizer = byte_tokenizer(chat=True)
    matcher = llguidance.LLMatcher(llguidance.hf.from_tokenizer(tokenizer), grammar)
    assert not matcher.is_error(), matcher.get_error()
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    count = matcher.validate_tokens(ids)
    matcher.consume_tokens(ids[:count])
    return text[:count], matcher.is_accepting()


@pytest.mark.parametrize("inside", [False, True], ids=["may think", "thinks at once"])
def test_a_thought_may_speak_of_calls(inside: bool) -> None:
    begun = "" if inside else "<think>"
    thoughts = ReasoningReader(inside)
    for text in (
        f"{begun}I write <tool_call> then.</think>Paris.",
        f"{begun}hm</think>\n\n{CALLED}",
        f"{begun}</think>a",
    ):
        assert taken(text, thoughts) == (text, True)
    for text in (f"{begun}hm", f"{begun}It is <tool_call>, or"):
        assert taken(text, thoughts) == (text, False), "a thought ends before the answer does"
    said = f"{begun}hm</think>then <tool_call>"
    assert taken(f"{said}whatever", thoughts) == (said, False), "what is said is held to the form"


def test_who_does_not_think_is_held_to_the_form_from_the_beginning() -> None:
    for thoughts in (None, ReasoningReader()):
        assert taken("Paris.", thoughts) == ("Paris.", True)
        assert taken(CALLED, thoughts) == (CALLED, True)
        assert taken("So <tool_call>whatever", thoughts) == ("So <tool_call>", False)
    assert taken("<think><tool_call>whatever", None) == ("<think><tool_call>", False)


def test_a_form_knows_who_may_think() -> None:
    thinks, opens = thinking_tokenizer(), thinking_tokenizer(opens=True)
    channels = copy.deepcopy(byte_tokenizer(chat=True))
    channels.chat_template += "{# <|channel|>final<|message|> #}"
    anything, some, one = Form(), Form.of(TOOLS), Form.of(TOOLS, "any")
    for form in (anything, some):
        readers = [form.reader(tokenizer, {}) for tokenizer in (thinks, opens)]
        assert [reader and reader.inside for reader in readers] == [False, True]
    assert one.reader(opens, {}) is None and Form.of((), schema=CITY).reader(opens, {}) is None
    assert anything.reader(channels, {}) is not None and some.reader(channels, {}) is None
