"""What a tiny model is taught so that the standard suite's questions have right answers.

A random model cannot know that `magic_function(3)` wants the argument 3, and the suite asks for it. So a model of a few
hundred kilobytes learns the suite's handful of questions by heart (`taught.py`). This shows that everything between
message and model is right, but nothing about how clever a model is.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypedDict

from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.tools import tool
from langchain_core.utils.function_calling import convert_to_openai_tool
from langchain_tests.integration_tests.chat_models import magic_function, magic_function_no_args, unicode_customer
from pydantic import BaseModel, Field

from langchain_samkv.messages import Roles, converted
from langchain_samkv.structured import plain_schema
from langchain_samkv.tools import form_of
from samkv_rag.prompt.grammar import call_text


@tool
def get_weather(location: str) -> str:
    """Get the weather at a location."""
    return "It's sunny."


@tool
def my_adder_tool(a: int, b: int) -> int:
    """Tool that adds two integers.

    Takes two integers, a and b, and returns their sum.
    """
    return a + b


class Joke(BaseModel):
    """Joke to tell user."""

    setup: str = Field(description="question to set up a joke")
    punchline: str = Field(description="answer to resolve the joke")


class JokeDict(TypedDict):
    """Joke to tell user."""

    setup: Annotated[str, ..., "question to set up a joke"]
    punchline: Annotated[str, ..., "answer to resolve the joke"]


@dataclass(frozen=True)
class Lesson:
    """A conversation and the answer to learn."""

    turns: Sequence[dict[str, Any]]
    answer: str


def lesson(messages: str | Sequence[BaseMessage], answer: str, **form: Any) -> Lesson:
    asked = [HumanMessage(messages)] if isinstance(messages, str) else messages
    made = form_of(
        [convert_to_openai_tool(tool) for tool in form.get("tools", ())], "any", False, form.get("response_format")
    )
    return Lesson(converted(asked, Roles(), made.instructions), answer)


def lessons() -> list[Lesson]:
    """All lessons."""
    return [*_talk(), *_calls(), *_results(), *_jokes()]


def _talk() -> Iterator[Lesson]:
    for question in ("Hello", "hello", "Hey", "hi", "How are you?", "Hello!", "Tell me a joke", "q?"):
        yield lesson(question, "Hello there, how are you today?")
    yield lesson("Write me 2 haikus. Only include the haikus.", "Rain on the tin roof\nThe kettle hums")
    greeting: list[BaseMessage] = [HumanMessage("hello"), AIMessage("hello"), HumanMessage("how are you")]
    yield lesson(greeting, "Very well.")
    yield lesson([SystemMessage("hello"), *greeting], "Very well.")


def _calls() -> Iterator[Lesson]:
    style = ChatPromptTemplate.from_messages([("human", "Hello. Please respond in the style of {answer_style}.")])
    greeting = (style | GenericFakeChatModel(messages=iter(["hello matey"])) | StrOutputParser()).as_tool(
        name="greeting_generator", description="Generate a greeting in a particular style of speaking."
    )
    yield lesson(
        "What is the value of magic_function(3)? Use the tool.",
        call_text("magic_function", {"input": 3}), tools=[magic_function],
    )  # fmt: skip
    yield lesson(
        "What is the value of magic_function_no_args()? Use the tool.",
        call_text("magic_function_no_args", {}), tools=[magic_function_no_args],
    )  # fmt: skip
    pirate = call_text("greeting_generator", {"answer_style": "Pirate"})
    yield lesson("Using the tool, generate a Pirate greeting.", pirate, tools=[greeting])
    weather = call_text("get_weather", {"location": "San Francisco, CA"})
    yield lesson("What is the weather in San Francisco, CA?", weather, tools=[get_weather])
    yield lesson("Hello!", call_text("magic_function", {"input": 3}), tools=[magic_function, get_weather])
    for name, hint, kind in (
        ("你好啊集团", "Hello Group", "Chinese technology company"),
        ("こんにちは株式会社", "Hello Corporation", "Japanese company"),
    ):
        question = f"Create a customer named '{name}' ({hint}) - a {kind}"
        call = call_text("unicode_customer", {"customer_name": name, "description": kind})
        yield lesson(question, call, tools=[unicode_customer])


def _results() -> Iterator[Lesson]:
    """Conversations in which a tool has answered."""

    def called(name: str, args: dict[str, Any], result: str, text: str = "") -> list[BaseMessage]:
        call = {"name": name, "args": args, "id": "abc123", "type": "tool_call"}
        return [AIMessage(text, tool_calls=[call]), ToolMessage(result, name=name, tool_call_id="abc123")]

    sunny = called("get_weather", {"location": "San Francisco, CA"}, "It's sunny.")
    yield lesson(
        [HumanMessage("What is the weather in San Francisco, CA?"), *sunny], "It is sunny.", tools=[get_weather]
    )
    for text in ("", "some text"):
        sum_of = called("my_adder_tool", {"a": 1, "b": 2}, json.dumps({"result": 3}), text)
        yield lesson([HumanMessage("What is 1 + 2"), *sum_of], "It is 3.", tools=[my_adder_tool])
    failed = called("my_adder_tool", {"a": 1}, "Error: Missing required argument 'b'.")
    again = call_text("my_adder_tool", {"a": 1, "b": 2})
    yield lesson([HumanMessage("What is 1 + 2"), *failed], again, tools=[my_adder_tool])
    shown = called("my_adder_tool", {"a": 1, "b": 2}, json.dumps({"result": 3}))
    shown += [AIMessage(json.dumps({"result": 3})), HumanMessage("What is 3 + 4")]
    answer = call_text("my_adder_tool", {"a": 3, "b": 4})
    yield lesson([HumanMessage("What is 1 + 2"), *shown], answer, tools=[my_adder_tool])


def _jokes() -> Iterator[Lesson]:
    whole = json.dumps({"setup": "Why do cats purr?", "punchline": "They are happy."})
    half = json.dumps({"setup": "Why do cats purr?"})
    optional = json.loads(json.dumps(Joke.model_json_schema()))
    optional["properties"]["punchline"] |= {"anyOf": [{"type": "string"}, {"type": "null"}], "default": None}
    del optional["properties"]["punchline"]["type"]
    optional["required"] = ["setup"]
    questions = {
        "Tell me a joke about cats.": whole,
        "Give me the setup to a joke about cats, no punchline.": half,
        "Give me a joke about cats, include the punchline.": whole,
    }
    for question, answer in questions.items():
        for schema in (plain_schema(Joke), Joke.model_json_schema(), plain_schema(JokeDict), optional):
            form = {"type": "json_schema", "json_schema": {"schema": schema}}
            yield lesson(question, answer, response_format=form)
        yield lesson(question, call_text("Joke", json.loads(answer)), tools=[Joke])
    free = (
        "Tell me a joke about cats. Return the result as a JSON with 'setup' and 'punchline' keys. Return nothing "
        "other than JSON."
    )
    yield lesson(free, whole, response_format={"type": "json_object"})
