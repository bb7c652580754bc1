"""Tools that an answer may or must call, and the schema that it must fit: what the model is told, and the grammar."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from samkv_rag.errors import SamKVError
from samkv_rag.prompt.grammar import Schema, call_grammar, json_grammar
from samkv_rag.prompt.reasoning import CHANNELS, ReasoningReader, reader_of

ToolSpec = Mapping[str, Any]
"""A tool as chat templates take it: OpenAI's form, the name and the arguments' JSON schema under "function"."""

ANY_OBJECT: Schema = {"type": "object"}

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
_REQUIRED = "You must call a function; do not answer in words."
_NAMED = "You must call the function {name}; do not answer in words."
_SCHEMA = "Answer with one JSON value that fits this JSON schema, and nothing else:\n{schema}"
_OBJECT = "Answer with one JSON object, and nothing else."


@dataclass(frozen=True, slots=True)
class Form:
    """The form an answer must have: tools that may or must be called, a JSON schema, both or neither.

    `choice` is "auto" (words or a call), "any" (a call), or the name of the only tool, which must be called.
    """

    tools: tuple[ToolSpec, ...] = ()
    choice: str = "auto"
    parallel: bool = False
    schema: Schema | None = None

    @classmethod
    def of(
        cls, tools: Sequence[ToolSpec], choice: Any = None, parallel: bool = False, schema: Schema | None = None
    ) -> Form:  # fmt: skip
        """The form for a `tool_choice` as frameworks write it; raises `SamKVError` if it is none of the tools."""
        named = choice_of(choice, names_of(tools))
        if named in ("auto", "any"):
            return cls(tuple(tools), named, parallel, schema)
        chosen = tuple(tool for tool in tools if tool["function"]["name"] == named)
        return cls(chosen, named if chosen else "auto", parallel, schema)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the tools."""
        return names_of(self.tools)

    @property
    def demand(self) -> str:
        """The sentence that asks for a call; empty if none is required."""
        if not self.tools or self.choice == "auto":
            return ""
        return _REQUIRED if self.choice == "any" else _NAMED.format(name=self.choice)

    @property
    def instructions(self) -> str:
        """What a model is told about the form; may be empty."""
        shown = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in self.tools)
        return "\n\n".join(filter(None, (_TOOLS.format(specs=shown) if shown else "", self.demand, self._wanted)))

    @property
    def _wanted(self) -> str:
        if self.schema is None:
            return ""
        return (
            _OBJECT if self.schema == ANY_OBJECT else _SCHEMA.format(schema=json.dumps(self.schema, ensure_ascii=False))
        )

    @property
    def forced(self) -> bool:
        """Whether the answer begins with JSON or a call: there is no room for thoughts."""
        return self.schema is not None or (bool(self.tools) and self.choice != "auto")

    def reader(self, tokenizer: Any, options: Mapping[str, Any]) -> ReasoningReader | None:
        """The reader that tells thoughts from words in answers of this form, to prompts that the tokenizer's chat
        template makes with `options`; None if there are no thoughts. A grammar has no room for channels."""
        reader = None if self.forced else reader_of(tokenizer, options)
        return None if reader is not None and self.tools and reader.marks is CHANNELS else reader

    def grammar(self, thoughts: ReasoningReader | None = None) -> str | None:
        """The grammar of the answer, which `thoughts` may precede; None if any answer is allowed."""
        if not self.tools:
            return None if self.schema is None else json_grammar(self.schema)
        functions = [tool["function"] for tool in self.tools]
        schemas = [(f["name"], f.get("parameters") or {**ANY_OBJECT, "properties": {}}) for f in functions]
        inside = None if thoughts is None else thoughts.inside
        return call_grammar(schemas, self.choice != "auto", self.parallel, self.schema, inside)


def names_of(tools: Sequence[ToolSpec]) -> tuple[str, ...]:
    """The names of tools; raises `SamKVError` for what is no function."""
    for tool in tools:
        if not isinstance(tool, Mapping) or "name" not in (tool.get("function") or ()):
            raise SamKVError(
                f'A tool is {{"type": "function", "function": {{"name": ..., "parameters": ...}}}}, not {tool!r}.'
            )
    return tuple(str(tool["function"]["name"]) for tool in tools)


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
