"""`with_structured_output`: answers that fit a schema, because the grammar lets no other token through."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from operator import itemgetter
from typing import Any

from langchain_core.exceptions import OutputParserException
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessageChunk, BaseMessage
from langchain_core.output_parsers import BaseOutputParser, JsonOutputParser, PydanticOutputParser
from langchain_core.runnables import Runnable, RunnableGenerator, RunnableMap, RunnablePassthrough
from langchain_core.utils.function_calling import convert_to_json_schema
from langchain_core.utils.pydantic import is_basemodel_subclass
from pydantic import BaseModel

from langchain_samkv.calls import is_json
from samkv_rag import SamKVError

METHODS = ("json_schema", "function_calling", "json_mode")
_SAYING = {"type", "properties", "$ref", "anyOf", "oneOf", "allOf", "enum", "const"}
_NAMES = "properties, $ref, anyOf, oneOf, allOf, enum, const"
"""What a JSON schema says of a value; a title is not enough."""


def structured(
    llm: BaseChatModel, schema: Any, method: str, include_raw: bool, keywords: Mapping[str, Any]
) -> Runnable[Any, Any]:
    """`llm` bound to write JSON for `schema`, and to further `keywords` of its calls, followed by a parser; the base
    class handles "function_calling"."""
    if method not in METHODS:
        raise SamKVError(f"There is no method {method!r} of structured output; choose one of: {', '.join(METHODS)}.")
    response_format: Mapping[str, Any] = {"type": "json_object"}
    if method == "json_schema":
        response_format = {"type": "json_schema", "json_schema": {"schema": plain_schema(schema)}}
    bound = llm.bind(
        response_format=response_format,
        ls_structured_output_format={"kwargs": {"method": method}, "schema": schema},
        **keywords,
    )
    return parsed_whole(bound, _words_of, "its JSON", parser_of(schema), include_raw)


def whole_calls(structured: Any, include_raw: bool) -> Runnable[Any, Any]:
    """A model that calls a function, followed by a parser, which gets no call that was cut off: it would give None,
    or in a stream what is there."""
    return parsed_whole(structured.first, _args_of, "a call", structured.last, include_raw)


def parsed_whole(
    llm: Runnable[Any, Any], said: Callable[[BaseMessage], list[str]], where: str, parser: Runnable[Any, Any],
    include_raw: bool,
) -> Runnable[Any, Any]:  # fmt: skip
    """A model and a parser. What a message, or a piece of one, has `said` is refused at the end of an answer, whole or
    streamed, if it ended inside its JSON: what is there would pass for all."""

    def refusing_cut(messages: Iterator[BaseMessage]) -> Iterator[BaseMessage]:
        texts = list[str]()
        for message in messages:
            texts += said(message)
            yield message
        _require_whole(texts, where)

    async def arefusing_cut(messages: AsyncIterator[BaseMessage]) -> AsyncIterator[BaseMessage]:
        texts = list[str]()
        async for message in messages:
            texts += said(message)
            yield message
        _require_whole(texts, where)

    whole = RunnableGenerator(refusing_cut, arefusing_cut) | parser
    return with_raw(llm, whole) if include_raw else llm | whole


def _args_of(message: BaseMessage) -> list[str]:
    """What it says of calls whose arguments may be cut off."""
    if isinstance(message, AIMessageChunk):
        return [str(chunk["args"] or "") for chunk in message.tool_call_chunks]
    return [str(call["args"] or "{") for call in getattr(message, "invalid_tool_calls", ())]


def _words_of(message: BaseMessage) -> list[str]:
    return [str(message.content)]


def _require_whole(texts: Sequence[str], where: str) -> None:
    text = "".join(texts)
    if texts and not is_json(text):
        raise OutputParserException(
            f"The answer ended inside {where}; allow more tokens with max_tokens, and no stop text.", llm_output=text
        )


def plain_schema(schema: Any) -> Mapping[str, Any]:
    """The JSON schema of a class, a typed dictionary, a function spec, or a JSON schema that may lack a title. Raises
    `SamKVError` for one that allows anything."""
    if isinstance(schema, type) and issubclass(schema, BaseModel) and _is_recursive(own := schema.model_json_schema()):
        return own  # the framework would leave out what a class says of itself
    if isinstance(schema, Mapping) and "function" not in schema:
        inner: Mapping[str, Any] = schema.get("json_schema", schema)
        plain: Mapping[str, Any] = inner["schema"] if isinstance(inner.get("schema"), Mapping) else inner
        if _SAYING & {*plain}:
            return plain
    made = convert_to_json_schema(schema)
    if not _SAYING & {*made}:
        raise SamKVError(f"The schema says nothing of the answer: {made}. Give a type, or one of: {_NAMES}.")
    return made


def _is_recursive(schema: Mapping[str, Any]) -> bool:
    """Whether a definition refers to itself, by way of others or not."""
    uses = {name: _names_in(inner) for name, inner in schema.get("$defs", {}).items()}
    for _ in uses:
        uses = {name: used.union(*(uses.get(other, set()) for other in used)) for name, used in uses.items()}
    return any(name in used for name, used in uses.items())


def _names_in(schema: Any) -> set[str]:
    if isinstance(schema, list):
        return set[str]().union(*map(_names_in, schema))
    if not isinstance(schema, Mapping):
        return set()
    here = {str(schema["$ref"]).rpartition("/")[2]} if "$ref" in schema else set[str]()
    return here.union(*map(_names_in, schema.values()))


def parser_of(schema: Any) -> BaseOutputParser[Any]:
    """A parser that returns objects of a pydantic class, or plain dictionaries."""
    if isinstance(schema, type) and is_basemodel_subclass(schema):
        return PydanticOutputParser(pydantic_object=schema)
    return JsonOutputParser()


def with_raw(llm: Runnable[Any, Any], parser: Runnable[Any, Any]) -> Runnable[Any, Any]:
    """A runnable that gives a dictionary of the raw message, the parsed object, and the error if parsing failed."""
    parsed = RunnablePassthrough.assign(parsed=itemgetter("raw") | parser, parsing_error=lambda _: None)
    failed = RunnablePassthrough.assign(parsed=lambda _: None)
    named: Runnable[Any, Any] = RunnableMap(raw=RunnablePassthrough())
    return llm | named | parsed.with_fallbacks([failed], exception_key="parsing_error")
