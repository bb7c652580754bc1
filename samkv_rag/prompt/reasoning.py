"""Separate what a model thinks from what it then says, piece by piece as it is written.

Models that think do so between `<think>` and `</think>` (Qwen3, DeepSeek-R1 and their relatives); some chat templates
open the thought, so that the model's text begins in the middle of it. GPT-OSS writes channels, of whose marks only the
names show in decoded text: `analysis`, a thought, `assistantfinal`, the answer; or `final` and the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from samkv_rag.prompt.template import has_template, rendered


@dataclass(frozen=True, slots=True)
class Marks:
    """The marks before and after a thought, and before an answer without one. `known_by` occurs in the chat templates
    of models that write them."""

    known_by: str
    open: str
    close: str
    at_once: str = ""


TAGS = Marks("</think>", "<think>", "</think>")
CHANNELS = Marks("<|channel|>", "analysis", "assistantfinal", "final")


class Said(NamedTuple):
    """A piece of an answer; `thought`: not for the reader."""

    text: str
    thought: bool = False


class ReasoningReader:
    """Splits an answer; feed it text as it comes, then call `end`. Only what comes first can be a thought; `inside`:
    the prompt has opened one."""

    def __init__(self, inside: bool = False, marks: Marks = TAGS) -> None:
        self.inside, self.marks = inside, marks
        self._state: Literal["before", "inside", "behind", "said"] = "inside" if inside else "before"
        self._begun = False
        self._held = ""

    def feed(self, text: str) -> Iterator[Said]:
        """The pieces that `text` adds."""
        self._held += text
        state = None
        while state != self._state:
            state = self._state
            yield from {"before": self._before, "inside": self._inside, "behind": self._behind, "said": self._said}[
                state
            ]()

    def end(self) -> Iterator[Said]:
        """What was held back, once no more text comes."""
        rest, self._held = self._held, ""
        if self._state == "inside":
            rest = rest.rstrip() if self._begun else rest.strip()
        if rest and self._state != "behind":
            yield Said(rest, self._state == "inside")

    def _before(self) -> Iterator[Said]:
        text, marks = self._held.lstrip(), self.marks
        if text.startswith(marks.open):
            self._state, self._held = "inside", text.removeprefix(marks.open)
        elif marks.at_once and text.startswith(marks.at_once):
            self._state, self._held = "behind", text.removeprefix(marks.at_once)
        elif text and not marks.open.startswith(text) and not marks.at_once.startswith(text):
            self._state = "said"
        yield from ()

    def _inside(self) -> Iterator[Said]:
        """The blanks around a thought are dropped."""
        close = self.marks.close
        thought, found, rest = (self._held if self._begun else self._held.lstrip()).partition(close)
        if found:
            self._state, self._held = "behind", rest
            thought = thought.rstrip()
        else:  # hold back blanks, and what may be the beginning of the closing mark
            keep = next((n for n in range(len(close) - 1, 0, -1) if thought.endswith(close[:n])), 0)
            shown = len(thought[: len(thought) - keep].rstrip())
            thought, self._held = thought[:shown], thought[shown:]
        if thought:
            self._begun = True
            yield Said(thought, thought=True)

    def _behind(self) -> Iterator[Said]:
        self._held = self._held.lstrip()
        if self._held:
            self._state = "said"
        yield from ()

    def _said(self) -> Iterator[Said]:
        text, self._held = self._held, ""
        if text:
            yield Said(text)


class Spoken:
    """Passes on what is said, but no thoughts, of an answer that comes in pieces; call `end` after the last."""

    def __init__(self, hand_on: Callable[[str], None], reader: ReasoningReader) -> None:
        self._hand_on, self._reader = hand_on, reader

    def __call__(self, piece: str) -> None:
        self._say(self._reader.feed(piece))

    def end(self) -> None:
        """Pass on what was held back."""
        self._say(self._reader.end())

    def _say(self, pieces: Iterable[Said]) -> None:
        for piece in pieces:
            if not piece.thought:
                self._hand_on(piece.text)


def told(piece: str, reader: ReasoningReader | None) -> Iterable[Said]:
    """What a piece of an answer adds; without a reader, all of it counts as said."""
    return [Said(piece)] if reader is None else reader.feed(piece)


def rest(reader: ReasoningReader | None) -> Iterable[Said]:
    """What a reader held back, once no more text comes."""
    return () if reader is None else reader.end()


def split(text: str, reader: ReasoningReader | None) -> tuple[str, str]:
    """Split a whole answer into what is thought and what is said."""
    pieces = [*told(text, reader), *rest(reader)]
    return "".join(p.text for p in pieces if p.thought), "".join(p.text for p in pieces if not p.thought)


def reader_of(tokenizer: Any, options: Mapping[str, Any]) -> ReasoningReader | None:
    """The reader for answers to prompts that the tokenizer's chat template makes with these `options`; None if the
    template has no thoughts."""
    template = str(tokenizer.chat_template) if has_template(tokenizer) else ""
    marks = next((marks for marks in (CHANNELS, TAGS) if marks.known_by in template), None)
    if marks is None:
        return None
    prompt = rendered(tokenizer, [{"role": "user", "content": "a"}], (), options)
    return ReasoningReader(prompt.rstrip().endswith(marks.open), marks)
