"""What an answer must look like, as a Lark grammar for `llguidance`: JSON that fits a schema, and tool calls.

A call is written as Hermes and Qwen models write it, so that a model that knows this form is never led astray:

    <tool_call>
    {"name": "search", "arguments": {"query": "..."}}
    </tool_call>
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from samkv_rag.prompt.reasoning import TAGS

OPEN, CLOSE = "<tool_call>", "}\n</tool_call>"
_HEAD = "%llguidance {}\n"
_JSON = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": ", "lenient": True}
_DEFINITIONS = {"$defs", "definitions"}
_BY_NAME = {"properties", "patternProperties"} | _DEFINITIONS
_ALL, _ONE = {"allOf", "if", "then", "else", "not"}, {"anyOf", "oneOf"}
"""What an object must fit besides the schema that has them, and what it may be one of."""

Schema = Mapping[str, Any]


def json_grammar(schema: Schema) -> str:
    """The grammar of one JSON value that fits `schema`, written as `json.dumps` writes it.

    Objects have only the properties that the schema names, unless it says otherwise. What JSON Schema can express and
    a grammar cannot is left to the caller to check.
    """
    return f"{_HEAD}start: {_rule(schema)}\n"


def call_grammar(
    tools: Sequence[tuple[str, Schema]], required: bool, parallel: bool, answer: Schema | None = None,
    inside: bool | None = None,
) -> str:  # fmt: skip
    """The grammar of an answer with calls of `tools`, given as (name, schema of the arguments).

    `required`: calls and nothing else. Otherwise words, a call, or words followed by a call; with a schema for the
    `answer`, a call or JSON that fits it. `parallel` allows several calls. Where words are allowed, a thought may
    precede them, in which nothing is a call: `inside` says whether the prompt has opened it; None: there is none.
    """
    words = not required and answer is None
    otherwise = f"{_rule(answer)} | " if answer is not None and not required else "WORDS | " if words else ""
    rules = [
        *(_thinking(inside) if words else ["start: said"]),
        f"said: {otherwise}first {'(sep call)*' if parallel else ''}",
        "first: begin body",
        f"call: {json.dumps(OPEN)} body",
        'sep: "\\n"',
        f'body: "\\n{{\\"name\\": " tool {json.dumps(CLOSE)}',
        "tool: " + " | ".join(f"tool_{index}" for index in range(len(tools))),
        *(f"tool_{i}: {json.dumps(_opening(name))} {_rule(schema)}" for i, (name, schema) in enumerate(tools)),
        f"begin[lazy]: WORDS {json.dumps(OPEN)}" if words else f"begin: {json.dumps(OPEN)}",
    ]
    return _HEAD + "\n".join(rules) + "\n"


def _thinking(inside: bool | None) -> list[str]:
    """Rules for what may precede what is said, and for words, which are then not thoughts."""
    text = r"TEXT: /(.|\n)*/"
    if inside is None:
        return ["start: said", text, "WORDS: TEXT"]
    opened = "" if inside else f"/[ \\n]*{TAGS.open}/ "
    return [
        "start: thought said" if inside else "start: thought said | said",
        f"thought[lazy]: {opened}TEXT {json.dumps(TAGS.close)}",
        text,
        "WORDS: TEXT" if inside else f"WORDS: TEXT & ~/[ \\n]*{TAGS.open}(.|\\n)*/",
    ]


def call_text(name: str, arguments: Mapping[str, Any]) -> str:
    """A call in the form of `call_grammar`; what JSON cannot express, such as a date, is in it as text."""
    return f'{OPEN}\n{{"name": {_opening(name)}{json.dumps(arguments, ensure_ascii=False, default=str)}{CLOSE}'


def _opening(name: str) -> str:
    return f'{json.dumps(name, ensure_ascii=False)}, "arguments": '


def _rule(schema: Schema) -> str:
    return "%json " + json.dumps({**_closed(schema, _combines(schema)), "x-guidance": _JSON})


def _combines(schema: Any) -> bool:
    """Whether an object has to fit several schemas at once, somewhere: each names only some of its properties."""
    if isinstance(schema, list):
        return any(map(_combines, schema))
    if not isinstance(schema, Mapping):
        return False
    here = _ALL & {*schema} or ("properties" in schema and _ONE & {*schema})
    return bool(here) or any(map(_combines, schema.values()))


def _closed(schema: Any, combines: bool, open_: bool = False) -> Any:
    """The schema with `additionalProperties: false` wherever properties are named and nothing is said about others,
    except in schemas that are combined: in `open_` ones, and in definitions if anything `combines` them."""
    if isinstance(schema, list):
        return [_closed(item, combines, open_) for item in schema]
    if not isinstance(schema, Mapping):
        return schema
    beside = "properties" in schema or _ALL & {*schema}
    closed = dict[str, Any]()
    for key, value in schema.items():
        branch = key in _ALL or (key in _ONE and (open_ or bool(beside)))
        if key in _BY_NAME and isinstance(value, Mapping):
            own = combines and key in _DEFINITIONS
            closed[key] = {name: _closed(inner, combines, own) for name, inner in value.items()}
        else:
            closed[key] = _closed(value, combines, branch)
    known = isinstance(schema.get("properties"), Mapping) and "additionalProperties" not in schema
    alone = not open_ and not (_ALL | _ONE) & {*schema}
    return closed | ({"additionalProperties": False} if known and alone else {})
