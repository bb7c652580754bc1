"""From the engine's answers to LangChain's messages, whole or in chunks."""

from __future__ import annotations

import json
from collections.abc import Iterator

from langchain_core.messages import AIMessage, AIMessageChunk, InvalidToolCall
from langchain_core.messages.ai import InputTokenDetails, UsageMetadata
from langchain_core.messages.tool import ToolCall, ToolCallChunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult

from langchain_samkv.calls import CallReader, is_json
from samkv_rag.types import Answer

_CUT_OFF = "The answer ended inside this call; allow more tokens with max_tokens."


def usage_of(answer: Answer) -> UsageMetadata:
    """Token counts in LangChain's terms: what was read from chunk caches is part of the input."""
    usage = answer.usage
    return UsageMetadata(
        input_tokens=usage.prompt_tokens,
        output_tokens=usage.completion_tokens,
        total_tokens=usage.total_tokens,
        input_token_details=InputTokenDetails(cache_read=usage.cache_read),
    )


def metadata_of(answer: Answer, model: str, called: bool) -> dict[str, object]:
    """`response_metadata`: the model's name, why the answer ended, and the engine's full report."""
    reason = "tool_calls" if called and answer.finish_reason == "stop" else answer.finish_reason
    return {
        "model_name": model,
        "model_provider": "samkv",
        "finish_reason": reason,
        "samkv": answer.report.as_dict(),
    }


def result_of(answer: Answer, model: str, may_call: bool) -> ChatResult:
    """A finished answer as LangChain's result."""
    if may_call:
        message = _with_calls(answer, model)
    else:
        metadata = metadata_of(answer, model, False)
        message = AIMessage(answer.text, usage_metadata=usage_of(answer), response_metadata=metadata)
    return ChatResult(generations=[ChatGeneration(message=message)], llm_output={"model_name": model})


def _with_calls(answer: Answer, model: str) -> AIMessage:
    """Words as content, calls as `tool_calls`, a call that was cut off as an invalid one."""
    reader = CallReader()
    words, calls = "", list[ToolCallChunk]()
    for event in [*reader.feed(answer.text), *reader.end()]:
        if isinstance(event, str):
            words += event
        elif event["id"] is not None:
            calls.append(event)
        else:
            calls[-1]["args"] = (calls[-1]["args"] or "") + (event["args"] or "")
    return AIMessage(
        words,
        tool_calls=[_whole(call) for call in calls if is_json(call["args"])],
        invalid_tool_calls=[_cut(call) for call in calls if not is_json(call["args"])],
        usage_metadata=usage_of(answer),
        response_metadata=metadata_of(answer, model, bool(calls)),
    )


def _whole(call: ToolCallChunk) -> ToolCall:
    return ToolCall(name=str(call["name"]), args=json.loads(call["args"] or ""), id=call["id"], type="tool_call")


def _cut(call: ToolCallChunk) -> InvalidToolCall:
    return InvalidToolCall(
        name=call["name"], args=call["args"], id=call["id"], error=_CUT_OFF, type="invalid_tool_call"
    )  # fmt: skip


class ChunkWriter:
    """Turns pieces of text into chunks; the last one carries usage and metadata."""

    def __init__(self, model: str, may_call: bool) -> None:
        self._model = model
        self._reader = CallReader() if may_call else None

    def write(self, piece: str) -> Iterator[ChatGenerationChunk]:
        """The chunks that a piece of text completes."""
        for event in self._reader.feed(piece) if self._reader else [piece]:
            yield _chunk(event)

    def finish(self, answer: Answer) -> Iterator[ChatGenerationChunk]:
        """What was held back, and the last chunk."""
        if self._reader:
            yield from map(_chunk, self._reader.end())
        metadata = metadata_of(answer, self._model, bool(self._reader and self._reader.count))
        last = AIMessageChunk(
            content="", usage_metadata=usage_of(answer), response_metadata=metadata, chunk_position="last"
        )  # fmt: skip
        yield ChatGenerationChunk(message=last)


def _chunk(event: str | ToolCallChunk) -> ChatGenerationChunk:
    if isinstance(event, str):
        return ChatGenerationChunk(message=AIMessageChunk(content=event))
    return ChatGenerationChunk(message=AIMessageChunk(content="", tool_call_chunks=[event]))
