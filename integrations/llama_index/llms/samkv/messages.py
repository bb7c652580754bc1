"""Convert LlamaIndex messages to those of chat templates. Text is passed on unchanged: it is the key to the caches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llama_index.core.base.llms.types import (
    CachePoint,
    ChatMessage,
    CitableBlock,
    CitationBlock,
    MessageRole,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
)

from llama_index.llms.samkv.tools import arguments_of
from samkv_rag import SamKVError
from samkv_rag.prompt.grammar import call_text
from samkv_rag.prompt.template import merged

ROLES = {
    MessageRole.SYSTEM: "system",
    MessageRole.DEVELOPER: "system",
    MessageRole.USER: "user",
    MessageRole.ASSISTANT: "assistant",
    MessageRole.CHATBOT: "assistant",
    MessageRole.MODEL: "assistant",
    MessageRole.TOOL: "tool",
    MessageRole.FUNCTION: "tool",
}
_SILENT = (CachePoint, ThinkingBlock, ToolCallBlock)

Converted = dict[str, Any]


def text_of(message: ChatMessage) -> str:
    """The text of a message, blocks joined by line breaks; raises `SamKVError` on images, audio and files."""
    texts = [text for block in message.blocks for text in _texts(block)]
    return "\n".join(texts)


def _texts(block: Any) -> list[str]:
    if isinstance(block, TextBlock):
        return [block.text]
    if isinstance(block, CitableBlock):
        return [text for inner in block.content for text in _texts(inner)]
    if isinstance(block, CitationBlock):
        return _texts(block.cited_content)
    if isinstance(block, _SILENT):
        return []
    raise SamKVError(
        f"A message holds a {block.block_type} block, and the model reads text only; remove it from the messages."
    )


def convert(messages: Sequence[ChatMessage], native_tools: bool) -> list[Converted]:
    """Messages for a chat template.

    With `native_tools` the template renders tool calls and tool results itself; otherwise they become text of the
    assistant and of the user. Adjacent messages of one role are merged, because many templates want turns to alternate.
    """
    return merged([_native(message) if native_tools else _plain(message) for message in messages])


def calls_in(message: ChatMessage) -> list[ToolCallBlock]:
    """The tool calls of an assistant's message."""
    return [block for block in message.blocks if isinstance(block, ToolCallBlock)]


def _native(message: ChatMessage) -> Converted:
    new: Converted = {"role": ROLES[message.role], "content": text_of(message)}
    if calls := calls_in(message):
        new["tool_calls"] = [
            {
                "type": "function",
                "id": call.tool_call_id,
                "function": {"name": call.tool_name, "arguments": arguments_of(call.tool_kwargs) or {}},
            }
            for call in calls
        ]
    if new["role"] == "tool":
        known = {"name": "name", "tool_call_id": "tool_call_id"}
        new |= {key: message.additional_kwargs[key] for key in known if message.additional_kwargs.get(key)}
    return new


def _plain(message: ChatMessage) -> Converted:
    role, text = ROLES[message.role], text_of(message)
    if role == "tool":
        name = message.additional_kwargs.get("name")
        return {"role": "user", "content": f"Result of {name or 'the function'}:\n{text}"}
    calls = [call_text(call.tool_name, arguments_of(call.tool_kwargs) or {}) for call in calls_in(message)]
    return {"role": role, "content": "\n".join([*([text] if text else []), *calls])}
