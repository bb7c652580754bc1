"""One call of the LLM, prepared for the engine: the prompt, the keywords, and how to shape the response."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    CompletionResponse,
    MessageRole,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
)

from llama_index.llms.samkv.reuse import raw_of
from llama_index.llms.samkv.tools import parse_calls
from samkv_rag import Answer, SamKVError
from samkv_rag.calls import overridden
from samkv_rag.prompt.grammar import OPEN
from samkv_rag.prompt.plan import Prompt
from samkv_rag.prompt.reasoning import ReasoningReader

OPTIONS = ("max_new_tokens", "temperature", "top_p", "top_k", "seed", "stop", "method", "keep", "question")
ALIASES = {"max_tokens": "max_new_tokens"}
TOOL_OPTIONS = ("tools", "tool_choice", "tool_required", "allow_parallel_tool_calls")


def call_options(defaults: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The engine's keywords for one call: the LLM's own, overridden by those of the call. An empty question is None."""
    twice = [name for name, other in ALIASES.items() if name in given and given.get(other, given[name]) != given[name]]
    if twice:
        raise SamKVError(f"{twice[0]} and {ALIASES[twice[0]]} mean the same, and differ here; pass one of them.")
    renamed = {ALIASES.get(name, name): value for name, value in given.items()}
    if unknown := sorted(set(renamed) - set(OPTIONS)):
        known = (*OPTIONS, *ALIASES, "chat_template_kwargs")
        raise SamKVError(f"Unknown keywords: {', '.join(unknown)}. A call takes: {', '.join(known)}.")
    merged = overridden(defaults, renamed)
    merged["question"] = merged.get("question") or None
    if isinstance(merged.get("stop"), str):
        merged["stop"] = [merged["stop"]]
    return {name: value for name, value in merged.items() if value is not None}


Response = TypeVar("Response", covariant=True)


class Request(Protocol[Response]):
    """What the engine is asked, and how its answer becomes a response of the framework."""

    @property
    def prompt(self) -> Prompt: ...

    @property
    def options(self) -> Mapping[str, Any]: ...

    @property
    def thoughts(self) -> ReasoningReader | None: ...

    def piece(self, text: str, delta: str, thought: str = "") -> Response: ...

    def last(self, text: str, answer: Answer, thought: str, delta: str | None = None) -> Response: ...


@dataclass(frozen=True, slots=True)
class CompletionRequest:
    """A prompt that is answered with a `CompletionResponse`; `thoughts` separates thoughts from the answer."""

    prompt: Prompt
    options: Mapping[str, Any]
    thoughts: ReasoningReader | None = None

    def piece(self, text: str, delta: str, thought: str = "") -> CompletionResponse:
        """The response while it streams."""
        return CompletionResponse(text=text, delta=delta, additional_kwargs=_thinking(thought))

    def last(self, text: str, answer: Answer, thought: str, delta: str | None = None) -> CompletionResponse:
        """The finished response."""
        extra = {"thinking": thought} if thought else {}
        return CompletionResponse(text=text, delta=delta, raw=raw_of(answer), additional_kwargs=extra)


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A prompt that is answered with a `ChatResponse`; calls of `tool_names` are taken out of its text, and
    thoughts by `thoughts`."""

    prompt: Prompt
    options: Mapping[str, Any]
    thoughts: ReasoningReader | None = None
    tool_names: tuple[str, ...] = ()
    parallel: bool = True

    def piece(self, text: str, delta: str, thought: str = "") -> ChatResponse:
        """The response while it streams; a tool call is text until it is finished."""
        message = ChatMessage(role=MessageRole.ASSISTANT, content=text)
        return ChatResponse(message=message, delta=delta, additional_kwargs=_thinking(thought))

    def last(self, text: str, answer: Answer, thought: str, delta: str | None = None) -> ChatResponse:
        """The finished response."""
        rest, calls = parse_calls(text, self.tool_names) if self.tool_names else (text, [])
        if self.tool_names and not calls and OPEN in text:  # a framework would take it for an answer in words
            raise SamKVError("The answer ended inside a call: raise max_new_tokens, or leave out what stops it.")
        blocks: list[TextBlock | ToolCallBlock | ThinkingBlock] = [ThinkingBlock(content=thought)] if thought else []
        blocks += [TextBlock(text=rest)] if rest or not calls else []
        calls = calls if self.parallel else calls[:1]
        blocks += calls
        message = ChatMessage(role=MessageRole.ASSISTANT, blocks=blocks, additional_kwargs=_called(calls))
        return ChatResponse(message=message, delta=delta, raw=raw_of(answer))


def _called(calls: Sequence[ToolCallBlock]) -> dict[str, Any]:
    """The calls once more, where the framework's programs look for them when they stream."""
    told = [
        {
            "id": call.tool_call_id,
            "type": "function",
            "function": {"name": call.tool_name, "arguments": json.dumps(call.tool_kwargs)},
        }
        for call in calls
    ]
    return {"tool_calls": told} if told else {}


def _thinking(piece: str) -> dict[str, str]:
    """A piece of a thought, under the key where the framework looks for it."""
    return {"thinking_delta": piece} if piece else {}
