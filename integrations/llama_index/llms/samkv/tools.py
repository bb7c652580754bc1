"""Function calling: tools as JSON schemas for the prompt, and tool calls extracted from the model's text."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from llama_index.core.base.llms.types import ToolCallBlock
from llama_index.core.tools.types import BaseTool

from samkv_rag.prompt.tools import Form

_DECODER = json.JSONDecoder()
_OPENING = re.compile(r"[{\[]")
_WRAPPING = re.compile(r"</?tool_call>|<\|?tool_calls?\|?>|\[/?TOOL_CALLS\]|<\|python_tag\|>|```(?:json)?")


def specs_of(tools: Sequence[BaseTool]) -> list[dict[str, Any]]:
    """The tools as JSON schemas of functions, the form that chat templates take."""
    return [_spec_of(tool) for tool in tools]


def _spec_of(tool: BaseTool) -> dict[str, Any]:
    spec: dict[str, Any] = tool.metadata.to_openai_tool(skip_length_check=True)
    schema = tool.metadata.fn_schema
    if schema is not None and "properties" not in spec["function"]["parameters"]:  # of a class that refers to itself
        spec["function"]["parameters"] = schema.model_json_schema()
    return spec


def supports_tools(chat_template: Any) -> bool:
    """Whether a chat template, or any of them if the model has several, renders tools by itself."""
    templates = chat_template.values() if isinstance(chat_template, Mapping) else [chat_template]
    return any(isinstance(template, str) and re.search(r"\btools\b", template) for template in templates)


def form_of(options: Mapping[str, Any]) -> Form:
    """The form of an answer to a call with these `TOOL_OPTIONS`."""
    tools, choice = options.get("tools") or (), options.get("tool_choice")
    if not tools:
        return Form()
    if choice in (None, "auto") and options.get("tool_required"):
        choice = "any"
    return Form.of(tools, choice, bool(options.get("allow_parallel_tool_calls")))


def arguments_of(value: Any) -> dict[str, Any] | None:
    """Arguments as an object: models write them as one, or as its JSON text. None if they are neither."""
    if isinstance(value, str):
        try:
            value = json.loads(value or "{}")
        except ValueError:
            return None
    return value if isinstance(value, dict) else None


def parse_calls(text: str, names: Sequence[str]) -> tuple[str, list[ToolCallBlock]]:
    """The text without its tool calls, and the calls of known tools in it.

    Understands the JSON that models are trained to write (Hermes and Qwen tags, Llama's `parameters`, Mistral's
    lists, fenced blocks); JSON that calls no known tool stays text.
    """
    calls: list[ToolCallBlock] = []
    rest, done = [], 0
    for start, stop, value in _json_values(text):
        found = [call for item in _items(value) if (call := _call(item, names)) is not None]
        if found:
            calls += found
            rest.append(text[done:start])
            done = stop
    rest.append(text[done:])
    if not calls:
        return text, []
    return _WRAPPING.sub("", "".join(rest)).strip(" \t\r\n,;"), calls


def _json_values(text: str) -> Iterator[tuple[int, int, Any]]:
    at = 0
    while match := _OPENING.search(text, at):
        try:
            value, stop = _DECODER.raw_decode(text, match.start())
        except ValueError:
            at = match.end()
            continue
        yield match.start(), stop, value
        at = stop


def _items(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _call(item: Any, names: Sequence[str]) -> ToolCallBlock | None:
    if isinstance(item, dict) and isinstance(item.get("function"), dict):
        item = item["function"]
    if not isinstance(item, dict) or item.get("name") not in names:
        return None
    arguments = arguments_of(item.get("arguments", item.get("parameters", {})))
    if arguments is None:
        return None
    return ToolCallBlock(tool_call_id=f"call_{uuid.uuid4().hex[:12]}", tool_name=item["name"], tool_kwargs=arguments)
