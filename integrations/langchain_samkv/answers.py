"""Turn the engine's answers into LangChain's messages, whole or in chunks."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from langchain_core.messages import AIMessage, AIMessageChunk, InvalidToolCall
from langchain_core.messages.ai import InputTokenDetails, UsageMetadata
from langchain_core.messages.tool import ToolCall, ToolCallChunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult

from langchain_samkv.calls import CallReader, is_json
from samkv_rag.prompt.reasoning import ReasoningReader, Said, rest, split, told
from samkv_rag.types import Answer

THOUGHT = "reasoning_content"
"""The key in `additional_kwargs` where LangChain looks for a model's thoughts."""
_CUT_OFF = "The answer ended inside this call; allow more tokens with max_tokens."


@dataclass(frozen=True, slots=True)
class Reading:
    """How to read an answer of the model `name`: whether it may hold tool calls, and what separates out thoughts."""

    name: str
    may_call: bool
    thoughts: ReasoningReader | None = None


def usage_of(answer: Answer) -> UsageMetadata:
    """Token counts in LangChain's terms: tokens read from chunk caches are part of the input."""
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


def result_of(answer: Answer, reading: Reading) -> ChatResult:
    """A finished answer as LangChain's result, without leading whitespace: a conversation's turn begins with a word."""
    thought, text = split(answer.text, reading.thoughts)
    text = text.lstrip()
    if reading.may_call:
        message = _with_calls(answer, text, reading.name)
    else:
        metadata = metadata_of(answer, reading.name, False)
        message = AIMessage(text, usage_metadata=usage_of(answer), response_metadata=metadata)
    if thought:
        message.additional_kwargs[THOUGHT] = thought
    return ChatResult(generations=[ChatGeneration(message=message)], llm_output={"model_name": reading.name})


def _with_calls(answer: Answer, text: str, model: str) -> AIMessage:
    """A message with the words of `text` as content, calls as `tool_calls`, and a call that was cut off as invalid."""
    reader = CallReader()
    words, calls = "", list[ToolCallChunk]()
    for event in [*reader.feed(text), *reader.end()]:
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

    def __init__(self, reading: Reading) -> None:
        self._model = reading.name
        self._thoughts = reading.thoughts
        self._calls = CallReader() if reading.may_call else None
        self._spoke = False

    def write(self, piece: str) -> Iterator[ChatGenerationChunk]:
        """The chunks that a piece of text completes."""
        yield from self._written(told(piece, self._thoughts))

    def _written(self, pieces: Iterable[Said]) -> Iterator[ChatGenerationChunk]:
        for said in pieces:
            if said.thought:
                yield _thought(said.text)
                continue
            text = said.text if self._spoke else said.text.lstrip()
            if text:
                self._spoke = True
                yield from map(_chunk, self._calls.feed(text) if self._calls else [text])

    def finish(self, answer: Answer) -> Iterator[ChatGenerationChunk]:
        """Yield what was held back, then the last chunk."""
        yield from self._written(rest(self._thoughts))
        if self._calls:
            yield from map(_chunk, self._calls.end())
        metadata = metadata_of(answer, self._model, bool(self._calls and self._calls.count))
        last = AIMessageChunk(
            content="", usage_metadata=usage_of(answer), response_metadata=metadata, chunk_position="last"
        )  # fmt: skip
        yield ChatGenerationChunk(message=last)


def _thought(text: str) -> ChatGenerationChunk:
    return ChatGenerationChunk(message=AIMessageChunk(content="", additional_kwargs={THOUGHT: text}))


def _chunk(event: str | ToolCallChunk) -> ChatGenerationChunk:
    if isinstance(event, str):
        return ChatGenerationChunk(message=AIMessageChunk(content=event))
    return ChatGenerationChunk(message=AIMessageChunk(content="", tool_call_chunks=[event]))
