"""What bound tools and a response format mean for a call: instructions for the model, a grammar for its answer."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from langchain_core.utils.function_calling import convert_to_json_schema

from samkv_rag import SamKVError
from samkv_rag.prompt.grammar import call_grammar, json_grammar

Spec = Mapping[str, Any]

# The wording that Hermes and Qwen models were trained with.
_TOOLS = """# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{specs}
</tools>

For each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:
<tool_call>
{{"name": <function-name>, "arguments": <args-json-object>}}
</tool_call>"""
_SCHEMA = "Answer with one JSON value that fits this JSON schema, and nothing else:\n{schema}"
_OBJECT = "Answer with one JSON object, and nothing else."


@dataclass(frozen=True, slots=True)
class Form:
    """The form an answer must have: tools (as OpenAI function specs) that may or must be called, a JSON schema, both
    or neither."""

    tools: tuple[Spec, ...] = ()
    choice: str = "auto"
    parallel: bool = False
    schema: Mapping[str, Any] | None = None

    @classmethod
    def of(cls, tools: Sequence[Spec] | None, choice: Any, parallel: bool | None, response_format: Any) -> Form:
        """From the keywords that `bind_tools` and `with_structured_output` bind."""
        specs = tuple(tools or ())
        named = choice_of(choice, [spec["function"]["name"] for spec in specs])
        return cls(() if named == "none" else specs, named, bool(parallel), schema_of(response_format))

    @property
    def instructions(self) -> str:
        """What the model is told about it, or nothing."""
        parts = []
        if self.tools:
            parts.append(_TOOLS.format(specs="\n".join(json.dumps(tool, ensure_ascii=False) for tool in self.tools)))
        if self.schema is not None:
            shown = json.dumps(self.schema, ensure_ascii=False)
            parts.append(_SCHEMA.format(schema=shown) if self.schema != _ANY_OBJECT else _OBJECT)
        return "\n\n".join(parts)

    @property
    def grammar(self) -> str | None:
        """The grammar of the answer; None where anything may be said."""
        if not self.tools:
            return None if self.schema is None else json_grammar(self.schema)
        functions = [tool["function"] for tool in self.tools]
        chosen = [f for f in functions if self.choice in ("auto", "any") or f["name"] == self.choice]
        schemas = [(f["name"], f.get("parameters") or {"type": "object", "properties": {}}) for f in chosen]
        return call_grammar(schemas, self.choice != "auto", self.parallel, self.schema)


_ANY_OBJECT = {"type": "object"}


def choice_of(choice: Any, names: Sequence[str]) -> str:
    """ "auto", "any", "none" or the name of a tool, from any of the forms in use for `tool_choice`."""
    if isinstance(choice, Mapping):
        function = choice.get("function")
        choice = function.get("name") if isinstance(function, Mapping) else choice.get("name", choice.get("type"))
    if choice in (None, False, "auto"):
        return "auto"
    if choice in (True, "any", "required"):
        return "any"
    if choice == "none" or choice in names:
        return str(choice)
    raise SamKVError(
        f"tool_choice {choice!r} is not one of the tools; choose one of: {', '.join(names)}, or 'auto', 'any', 'none'."
    )


def schema_of(response_format: Any) -> Mapping[str, Any] | None:
    """The JSON schema of a `response_format` (OpenAI's form, a schema, or a class)."""
    if response_format is None:
        return None
    if not isinstance(response_format, Mapping):
        return convert_to_json_schema(response_format)
    if response_format.get("type") == "json_object":
        return _ANY_OBJECT
    inner = response_format.get("json_schema")
    if response_format.get("type") == "json_schema" and isinstance(inner, Mapping):
        return inner.get("schema", inner)  # type: ignore[no-any-return]
    return response_format
