"""`with_structured_output`: answers that fit a schema, because the grammar lets no other token through."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from operator import itemgetter
from typing import Any

from langchain_core.exceptions import OutputParserException
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessageChunk, BaseMessage
from langchain_core.output_parsers import BaseOutputParser, JsonOutputParser, PydanticOutputParser
from langchain_core.outputs import Generation
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
    return with_raw(bound, parser_of(schema)) if include_raw else bound | parser_of(schema)


def whole_calls(structured: Any, include_raw: bool) -> Runnable[Any, Any]:
    """A model that calls a function, followed by a parser, which gets no call that was cut off: it would give None,
    or in a stream what is there."""
    parser = RunnableGenerator(_refusing_cut, _arefusing_cut) | structured.last
    return with_raw(structured.first, parser) if include_raw else structured.first | parser


def _refusing_cut(messages: Iterator[BaseMessage]) -> Iterator[BaseMessage]:
    args = list[str]()
    for message in messages:
        args += _args_of(message)
        yield message
    _require_call(args)


async def _arefusing_cut(messages: AsyncIterator[BaseMessage]) -> AsyncIterator[BaseMessage]:
    args = list[str]()
    async for message in messages:
        args += _args_of(message)
        yield message
    _require_call(args)


def _args_of(message: BaseMessage) -> list[str]:
    """What a message, or a piece of one, says of calls whose arguments may be cut off."""
    if isinstance(message, AIMessageChunk):
        return [str(chunk["args"] or "") for chunk in message.tool_call_chunks]
    return [str(call["args"] or "{") for call in getattr(message, "invalid_tool_calls", ())]


def _require_call(args: Sequence[str]) -> None:
    if args and not is_json("".join(args)):
        raise OutputParserException("The answer ended inside a call; allow more tokens with max_tokens.")


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
        return WholeObject(pydantic_object=schema)
    return WholeJson()


class WholeJson(JsonOutputParser):
    """Refuses an answer that ended inside its JSON, also at the end of a stream: what is there would pass for all."""

    def parse_result(self, result: list[Generation], *, partial: bool = False) -> Any:
        if not partial:
            _require_whole(result[0].text)
        return super().parse_result(result, partial=partial)

    def _transform(self, input: Iterator[str | BaseMessage]) -> Iterator[Any]:
        said = list[str]()
        yield from super()._transform(_noted(input, said))
        _require_whole("".join(said))

    async def _atransform(self, input: AsyncIterator[str | BaseMessage]) -> AsyncIterator[Any]:
        said = list[str]()

        async def noted() -> AsyncIterator[str | BaseMessage]:
            async for piece in input:
                said.append(_text_of(piece))
                yield piece

        async for made in super()._atransform(noted()):
            yield made
        _require_whole("".join(said))


class WholeObject(WholeJson, PydanticOutputParser[Any]):
    """The same, of a pydantic class."""


def _noted(pieces: Iterator[str | BaseMessage], said: list[str]) -> Iterator[str | BaseMessage]:
    for piece in pieces:
        said.append(_text_of(piece))
        yield piece


def _text_of(piece: str | BaseMessage) -> str:
    return piece if isinstance(piece, str) else str(piece.content)


def _require_whole(text: str) -> None:
    if not is_json(text):
        raise OutputParserException(
            "The answer ended inside its JSON; allow more tokens with max_tokens, and no stop text.", llm_output=text
        )


def with_raw(llm: Runnable[Any, Any], parser: BaseOutputParser[Any]) -> Runnable[Any, Any]:
    """A runnable that gives a dictionary of the raw message, the parsed object, and the error if parsing failed."""
    parsed = RunnablePassthrough.assign(parsed=itemgetter("raw") | parser, parsing_error=lambda _: None)
    failed = RunnablePassthrough.assign(parsed=lambda _: None)
    named: Runnable[Any, Any] = RunnableMap(raw=RunnablePassthrough())
    return llm | named | parsed.with_fallbacks([failed], exception_key="parsing_error")
