"""What the keywords of bound tools and structured output mean for an answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from langchain_core.utils.function_calling import convert_to_json_schema

from samkv_rag.prompt.tools import ANY_OBJECT, Form, ToolSpec


def form_of(tools: Sequence[ToolSpec] | None, choice: Any, parallel: bool | None, response_format: Any) -> Form:
    """The form that `bind_tools` and `with_structured_output` ask for."""
    return Form.of(tools or (), choice, bool(parallel), schema_of(response_format))


def schema_of(response_format: Any) -> Mapping[str, Any] | None:
    """The JSON schema of a `response_format` (OpenAI's form, a schema, or a class)."""
    if response_format is None:
        return None
    if not isinstance(response_format, Mapping):
        return convert_to_json_schema(response_format)
    if response_format.get("type") == "json_object":
        return ANY_OBJECT
    inner = response_format.get("json_schema")
    if response_format.get("type") == "json_schema" and isinstance(inner, Mapping):
        return inner.get("schema", inner)  # type: ignore[no-any-return]
    return response_format
