"""Turn the pieces of an answer into the framework's responses while it streams."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Generic

from llama_index.llms.samkv.requests import Request, Response
from samkv_rag import Answer
from samkv_rag.prompt.reasoning import Said, rest, told


def shown(request: Request[Any], text: str) -> str:
    """The beginning of an answer: a turn of a conversation starts with a word, a continuation may start with blanks."""
    return text if isinstance(request.prompt, str) else text.lstrip()


class Writer(Generic[Response]):
    """Turns pieces of text into responses; the last one carries usage and thoughts."""

    def __init__(self, request: Request[Response]) -> None:
        self._request = request
        self._text = self._thought = ""

    def write(self, piece: str) -> Iterator[Response]:
        """The responses that a piece completes."""
        yield from self._written(told(piece, self._request.thoughts))

    def _written(self, pieces: Iterable[Said]) -> Iterator[Response]:
        for said in pieces:
            if said.thought:
                self._thought += said.text
                yield self._request.piece(self._text, "", said.text)
                continue
            delta = said.text if self._text else shown(self._request, said.text)
            self._text += delta
            if delta:
                yield self._request.piece(self._text, delta)

    def finish(self, answer: Answer) -> Iterator[Response]:
        """Yield what was held back, then the finished response."""
        yield from self._written(rest(self._request.thoughts))
        yield self._request.last(self._text, answer, self._thought.strip(), delta="")
