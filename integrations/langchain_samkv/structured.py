"""`with_structured_output`: answers that fit a schema, because the grammar lets no other token through."""

from __future__ import annotations

from collections.abc import Mapping
from operator import itemgetter
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.output_parsers import BaseOutputParser, JsonOutputParser, PydanticOutputParser
from langchain_core.runnables import Runnable, RunnableMap, RunnablePassthrough
from langchain_core.utils.function_calling import convert_to_json_schema
from langchain_core.utils.pydantic import is_basemodel_subclass

from samkv_rag import SamKVError

METHODS = ("json_schema", "function_calling", "json_mode")


def structured(llm: BaseChatModel, schema: Any, method: str, include_raw: bool) -> Runnable[Any, Any]:
    """`llm` bound to write JSON for `schema`, followed by a parser; the base class handles "function_calling"."""
    if method not in METHODS:
        raise SamKVError(f"There is no method {method!r} of structured output; choose one of: {', '.join(METHODS)}.")
    response_format: Mapping[str, Any] = {"type": "json_object"}
    if method == "json_schema":
        response_format = {"type": "json_schema", "json_schema": {"schema": plain_schema(schema)}}
    bound = llm.bind(
        response_format=response_format,
        ls_structured_output_format={"kwargs": {"method": method}, "schema": schema},
    )
    return with_raw(bound, parser_of(schema)) if include_raw else bound | parser_of(schema)


def plain_schema(schema: Any) -> Mapping[str, Any]:
    """The JSON schema of a class, a typed dictionary, a function spec, or a JSON schema that may lack a title."""
    if (
        isinstance(schema, Mapping)
        and {"type", "properties", "$ref", "anyOf"} & set(schema)
        and "function" not in schema
    ):
        return schema
    return convert_to_json_schema(schema)


def parser_of(schema: Any) -> BaseOutputParser[Any]:
    """A parser that returns objects of a pydantic class, or plain dictionaries."""
    if isinstance(schema, type) and is_basemodel_subclass(schema):
        return PydanticOutputParser(pydantic_object=schema)
    return JsonOutputParser()


def with_raw(llm: Runnable[Any, Any], parser: BaseOutputParser[Any]) -> Runnable[Any, Any]:
    """A runnable that gives a dictionary of the raw message, the parsed object, and the error if parsing failed."""
    parsed = RunnablePassthrough.assign(parsed=itemgetter("raw") | parser, parsing_error=lambda _: None)
    failed = RunnablePassthrough.assign(parsed=lambda _: None)
    return RunnableMap(raw=llm) | parsed.with_fallbacks([failed], exception_key="parsing_error")
