"""Extract tool calls from the model's text, piece by piece as it is written."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterator
from typing import Literal

from langchain_core.messages.tool import ToolCallChunk, tool_call_chunk

from samkv_rag.prompt.grammar import CLOSE, OPEN

_BEFORE, _AFTER = '{"name": ', ', "arguments": '
_NAME = rf'\s*\{_BEFORE}("(?:[^"\\]|\\.)*")'
_HEAD = re.compile(_NAME + _AFTER)


class CallReader:
    """Splits text into words for the reader and pieces of tool calls: `feed` it text as it comes, then `end` it."""

    def __init__(self) -> None:
        self.count = 0
        self._state: Literal["words", "head", "arguments"] = "words"
        self._held = ""
        self._written = ""

    def feed(self, text: str) -> Iterator[str | ToolCallChunk]:
        """Yield what `text` adds: words, or chunks of calls."""
        self._held += text
        progress = True
        while progress:
            state = self._state
            yield from {"words": self._words, "head": self._head, "arguments": self._arguments}[state]()
            progress = self._state != state

    def end(self) -> Iterator[str | ToolCallChunk]:
        """Yield what was held back, once no more text comes; a call that was cut off stays incomplete."""
        rest, self._held = self._held, ""
        if self._state == "arguments":
            yield self._piece(args=self._sensible(rest))
        elif self._state == "head" and _begins_a_call(rest):
            self.count += 1
            yield self._piece(name=_named(rest), args=OPEN + rest, id=_new_id())  # no JSON: nobody runs it
        elif text := self._cleaned(OPEN + rest if self._state == "head" else rest):
            yield text

    def _words(self) -> Iterator[str | ToolCallChunk]:
        words, found, rest = self._held.partition(OPEN)
        if found:
            self._state, self._held = "head", rest
            words = words.removesuffix("\n")
        else:
            keep = max(_overlap(words, OPEN), _overlap(words, "\n" + OPEN))
            words, self._held = words[: len(words) - keep], words[len(words) - keep :]
        if text := self._cleaned(words):
            yield text

    def _head(self) -> Iterator[str | ToolCallChunk]:
        if match := _HEAD.match(self._held):
            self._state, self._held, self._written = "arguments", self._held[match.end() :], ""
            self.count += 1
            yield self._piece(name=json.loads(match[1]), id=_new_id())

    def _arguments(self) -> Iterator[str | ToolCallChunk]:
        written, found, rest = self._held.partition(CLOSE)
        if found:
            self._state, self._held = "words", rest
        else:
            keep = _overlap(written, CLOSE)
            written, self._held = written[: len(written) - keep], written[len(written) - keep :]
        if written:
            self._written += written
            yield self._piece(args=written)

    def _piece(self, name: str | None = None, args: str = "", id: str | None = None) -> ToolCallChunk:
        return tool_call_chunk(name=name, args=args, id=id, index=self.count - 1)

    def _cleaned(self, words: str) -> str:
        """Drop line breaks between and after calls, which belong to the format."""
        return words.lstrip() if self.count else words

    def _sensible(self, rest: str) -> str:
        """The end of a call that was cut off, without the beginning of `CLOSE` if the call is complete without it."""
        short = rest[: len(rest) - _overlap(rest, CLOSE)]
        return next((tail for tail in (rest, short) if is_json(self._written + tail)), rest)


def _new_id() -> str:
    return f"call_{uuid.uuid4().hex[:24]}"


def _named(head: str) -> str | None:
    """The name in the head of a call that was cut off, if it is whole."""
    match = re.match(_NAME, head)
    return str(json.loads(match[1])) if match else None


def _begins_a_call(text: str) -> bool:
    """Whether more text could make this the head of a call."""
    short = text.lstrip()
    if match := re.match(_NAME, short):
        return _AFTER.startswith(short[match.end() :])
    return _BEFORE.startswith(short) or short.startswith(_BEFORE + '"')


def is_json(text: str | None) -> bool:
    """Whether `text` is one JSON value."""
    try:
        json.loads(text or "")
    except ValueError:
        return False
    return True


def _overlap(text: str, wanted: str) -> int:
    """The number of characters at the end of `text` that may be the beginning of `wanted`."""
    for size in range(min(len(text), len(wanted) - 1), 0, -1):
        if wanted.startswith(text[-size:]):
            return size
    return 0
