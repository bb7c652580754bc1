"""Convert LangChain messages to those of chat templates. Text is passed on unchanged: it is the key to the caches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)

from samkv_rag import SamKVError
from samkv_rag.prompt.grammar import call_text
from samkv_rag.prompt.template import has_template, merged

Turn = dict[str, Any]

# Parts of an assistant's content that are not text for the reader: calls are in `tool_calls`, thoughts are private.
_SILENT = {
    "tool_use",
    "tool_call",
    "tool_call_chunk",
    "invalid_tool_call",
    "thinking",
    "reasoning",
    "redacted_thinking",
}
_MARK = "samkvxrolexprobe"


@dataclass(frozen=True, slots=True)
class Roles:
    """Which roles a chat template can carry besides user and assistant."""

    system: bool = True
    tool: bool = True

    @classmethod
    def of(cls, tokenizer: Any) -> Roles:
        """Determined by rendering: a template may refuse a role, or drop its content."""
        if not has_template(tokenizer):
            return cls()
        ask, called = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
        result = {"role": "tool", "content": _MARK, "name": "f", "tool_call_id": "000000000"}
        return cls(
            system=_shows(tokenizer, [{"role": "system", "content": _MARK}, ask]),
            tool=_shows(tokenizer, [ask, called, result]),
        )


def _shows(tokenizer: Any, turns: list[Turn]) -> bool:
    try:
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    except Exception:  # a template is a program that comes with the model and may raise anything
        return False
    return str(text).count(_MARK) == 1


def converted(messages: Sequence[BaseMessage], roles: Roles, instructions: str = "") -> list[Turn]:
    """Turns for a chat template that has these `roles`; `instructions` go into the system message.

    Adjacent messages of one role become one turn, because many templates want turns to alternate. Without a system role
    its text begins the first user turn; without a tool role, results become user turns.
    """
    turns = [_turn(message) for message in messages]
    if instructions:
        at = 1 if turns and turns[0]["role"] == "system" else 0
        turns.insert(at, {"role": "system", "content": instructions})
    if not roles.tool:
        turns = [_as_user(turn) if turn["role"] == "tool" else turn for turn in turns]
    if not roles.system:
        turns = [{**turn, "role": "user"} if turn["role"] == "system" else turn for turn in turns]
    return merged(turns)


def question_of(messages: Sequence[BaseMessage], roles: Roles) -> str | None:
    """The question, if the engine cannot find it in the turns because results that had to become user turns hide it."""
    if roles.tool or not any(isinstance(message, ToolMessage | FunctionMessage) for message in messages):
        return None
    asked = [text_of(message) for message in messages if isinstance(message, HumanMessage)]
    return asked[-1] if asked else None


def text_of(message: BaseMessage) -> str:
    """The text of a message, its parts joined without a separator; raises `SamKVError` on images, audio and files."""
    content = message.content
    return content if isinstance(content, str) else "".join(_part(part, message) for part in content)


def _part(part: str | Mapping[Any, Any], message: BaseMessage) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type")
    if kind in ("text", None) and isinstance(part.get("text"), str):
        return str(part["text"])
    if kind in _SILENT and isinstance(message, AIMessage):
        return ""
    if kind == "refusal" and isinstance(message, AIMessage):  # what another model said in place of an answer
        return str(part.get("refusal", ""))
    raise SamKVError(
        f"The {message.type} message holds a part of type {kind!r}, and the model reads text only; remove it from the "
        "messages."
    )


def _turn(message: BaseMessage) -> Turn:
    turn: Turn = {"role": _role(message), "content": text_of(message)}
    if isinstance(message, AIMessage):
        calls = [call_text(call["name"], call["args"]) for call in message.tool_calls]
        turn["content"] = "\n".join([*([turn["content"]] if turn["content"] else []), *calls])
    if isinstance(message, ToolMessage):
        turn["tool_call_id"] = message.tool_call_id
    return turn | ({"name": message.name} if message.name else {})


def _role(message: BaseMessage) -> str:
    if isinstance(message, ChatMessage):
        return message.role
    if isinstance(message, HumanMessage):
        return "user"
    if isinstance(message, AIMessage):
        return "assistant"
    if isinstance(message, SystemMessage):
        return "system"
    if isinstance(message, ToolMessage | FunctionMessage):
        return "tool"
    raise SamKVError(f"A {message.type} message cannot be shown to a model; remove it from the messages.")


def _as_user(turn: Turn) -> Turn:
    return {"role": "user", "content": f"<tool_response>\n{turn['content']}\n</tool_response>"}
