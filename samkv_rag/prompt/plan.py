"""Where known chunks are in a prompt, and what the question is: text or messages in, `PromptPlan` out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from samkv_rag.errors import SamKVError
from samkv_rag.prompt.checks import require_text
from samkv_rag.prompt.encoding import Encoder
from samkv_rag.prompt.matcher import Matcher
from samkv_rag.prompt.template import (
    THINKING,
    Conversation,
    Message,
    Piece,
    answer_pieces,
    content_of,
    has_template,
    render,
)  # fmt: skip
from samkv_rag.types import PromptPlan, Question, Segment

Prompt = str | Sequence[Message] | Conversation


@dataclass(frozen=True)
class Planner:
    """Makes plans for one tokenizer and one store.

    `key_of(token_ids)` is the store key of a chunk, `stored_ids(key)` its token ids, or None if the store has no
    such entry: the chunk is then a reported miss, and its tokens are prefilled like glue. `template` holds further
    variables of the chat template.
    """

    encoder: Encoder
    matcher: Matcher
    key_of: Callable[[Sequence[int]], str]
    stored_ids: Callable[[str], Sequence[int] | None]
    template: Mapping[str, Any] = field(default_factory=dict)

    def for_question(self, question: str, chunks: Sequence[str]) -> PromptPlan:
        """The plan of `answer(question, chunks)`: one fixed template, chunk texts stripped, empty ones left out.

        The prompt asks for a few words, so thinking is turned off in models that can do without."""
        texts = [text for chunk in chunks if (text := chunk.strip())]
        pieces = answer_pieces(question, texts)
        if not has_template(self.encoder.tokenizer):
            return self._plan(pieces, question, self.encoder.prefix)
        options = {THINKING: False, **self.template}
        rendered = render(self.encoder.tokenizer, [{"role": "user"}], [pieces], options=options)
        if rendered is None:
            raise SamKVError("The model's chat template drops or repeats user content; it cannot carry passages.")
        return self._plan(rendered, question, [])

    def for_prompt(self, prompt: Prompt, question: str | None = None) -> PromptPlan:
        """The plan of any prompt: known chunk texts are found by content. If there are none: one glue segment."""
        question = question if question is None else require_text(question, "The question")
        if isinstance(prompt, str):
            pieces = self._matched(require_text(prompt, "The prompt"))
            return self._plan(pieces, question if question is not None else _asked(pieces), self.encoder.prefix)
        talk = Conversation.of(prompt)
        messages, options = talk.messages, {**self.template, **talk.template}
        contents = [self._matched(content_of(message)) for message in messages]
        asked = question if question is not None else _asked_in(messages, contents)
        pieces, lost = self._rendered(messages, contents, talk.tools, options)
        return self._plan(pieces, asked, [] if has_template(self.encoder.tokenizer) else self.encoder.prefix, lost)

    def _rendered(
        self, messages: Sequence[Message], contents: Sequence[Sequence[Piece]], *how: Any
    ) -> tuple[list[Piece], list[Piece]]:
        """The prompt's pieces, and the chunks that are not among them: all, if the template writes another text where
        stand-ins are in their place. Some look at what a message says."""
        whole = render(self.encoder.tokenizer, messages, [[Piece(content_of(one))] for one in messages], *how) or []
        chunks = [piece for pieces in contents for piece in pieces if piece.is_chunk]
        found = render(self.encoder.tokenizer, messages, contents, *how) or [] if chunks else whole
        return (found, []) if _text(found) == _text(whole) else (whole, chunks)

    def _matched(self, text: str) -> list[Piece]:
        pieces, done = [], 0
        for span in self.matcher.find(text):
            pieces += [Piece(text[done : span.start])] if span.start > done else []
            pieces.append(Piece(text[span.start : span.stop], True, span.key, span.partial))
            done = span.stop
        return [*pieces, Piece(text[done:])] if done < len(text) or not pieces else pieces

    # -- segments ----------------------------------------------------------------------------------------------

    def _plan(
        self, pieces: Sequence[Piece], question: str, prefix: Sequence[int], lost: Sequence[Piece] = ()
    ) -> PromptPlan:  # fmt: skip
        segments: list[Segment] = []
        missed: list[Piece] = []

        def add(kind: Any, text: str, ids: Sequence[int], key: str | None = None) -> None:
            start = segments[-1].stop if segments else 0
            if ids:
                segments.append(Segment(kind, text, tuple(ids), start, key))

        for index, piece in enumerate(pieces):
            lead = list(prefix) if index == 0 else []
            if not piece.is_chunk:
                add("glue", piece.text, lead + self.encoder.glue(piece.text))
                continue
            add("glue", "", lead)
            ids, key, reused = self._chunk(piece)
            if key is None:
                missed.append(piece)
                add("glue", piece.text, ids)
                continue
            add("chunk", piece.text, ids[:reused], key)
            add("glue", "", ids[reused:])
        if not segments:
            raise SamKVError("The prompt is empty; pass some text.")
        segments = _ending_fresh(segments)
        misses = tuple(piece.text for piece in (*lost, *missed))
        whole = tuple(piece.text for piece in missed if not piece.partial)
        return PromptPlan(tuple(segments), self._question(segments, question, len(prefix)), misses, whole)

    def _chunk(self, piece: Piece) -> tuple[list[int], str | None, int]:
        """Token ids, the store key if it is there, and how many leading tokens its entry covers."""
        ids = self.encoder.chunk(piece.text)
        key = piece.key if piece.partial and piece.key is not None else self.key_of(ids)
        stored = self.stored_ids(key)
        if stored is None or self.key_of(stored) != key:  # the latter: another model's entry for the same text
            return ids, None, 0
        return ids, key, _common_prefix(ids, stored)

    def _question(self, segments: Sequence[Segment], text: str, n_prefix: int) -> Question:
        """The question's tokens at their last occurrence in the glue; if there is none, as tokens to be appended."""
        wanted = text.strip()
        for segment in reversed(segments):
            at = segment.text.rfind(wanted) if wanted and segment.kind == "glue" else -1
            if at >= 0:
                shift = n_prefix if segment.start == 0 else 0
                first, stop = self.encoder.span(segment.text, at, at + len(wanted))
                ids = segment.token_ids[shift + first : shift + stop]
                if ids:
                    return Question(wanted, ids, segment.start + shift + first)
        outside = tuple(self.encoder.glue(wanted))
        if outside:
            return Question(wanted, outside, segments[-1].stop, in_prompt=False)
        return Question("", segments[-1].token_ids[-1:], segments[-1].stop - 1)


def _text(pieces: Sequence[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


def _ending_fresh(segments: list[Segment]) -> list[Segment]:
    """The same, but with the last token as glue: it produces the next token, so it is always computed."""
    *others, last = segments
    if last.kind == "glue":
        return segments
    chunk, end = replace(last, token_ids=last.token_ids[:-1]), last.token_ids[-1:]
    kept = [chunk] if chunk.token_ids else []
    return [*others, *kept, Segment("glue", "", end, last.stop - 1)]


def _asked(pieces: Sequence[Piece]) -> str:
    """The text after the last chunk, else before the first."""
    if not pieces[-1].is_chunk and pieces[-1].text.strip():
        return pieces[-1].text
    glue = [piece.text for piece in pieces if not piece.is_chunk and piece.text.strip()]
    return glue[0] if glue else ""


def _asked_in(messages: Sequence[Message], contents: Sequence[Sequence[Piece]]) -> str:
    for message, pieces in zip(reversed(messages), reversed(contents), strict=True):
        if message.get("role") == "user":
            return _asked(pieces)
    return _asked(contents[-1])


def _common_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    count = 0
    for a, b in zip(left, right, strict=False):
        if a != b:
            break
        count += 1
    return count
