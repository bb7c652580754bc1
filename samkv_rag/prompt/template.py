"""The one prompt that `answer()` renders, and how messages become a prompt in which the chunks can still be found.

Chunks are replaced with ASCII placeholders before the chat template runs (templates trim and escape) and found again
afterwards. A template that drops or doubles a placeholder is detected; then nothing is reused.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from samkv_rag.errors import SamKVError
from samkv_rag.prompt.checks import require_messages, require_text

HEAD = "Answer from the passages in a few words, or say: not in the passages.\n\n"
SEPARATOR = "\n\n"
QUESTION = "\n\nQuestion: "
TAIL = "\nAnswer:"

THINKING = "enable_thinking"
"""The variable with which chat templates turn thinking off; those of models that do not think ignore it."""

Message = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Conversation:
    """Chat messages, the tools (JSON schemas of functions) that the model's chat template is to offer, and further
    variables of it, `template`, such as `enable_thinking`; they take precedence over the engine's own."""

    messages: Sequence[Message]
    tools: Sequence[Mapping[str, Any]] = ()
    template: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, messages: Iterable[Message] | Conversation) -> Conversation:
        """A conversation that does not change with the caller's list; raises `SamKVError` for what is none."""
        given = messages if isinstance(messages, Conversation) else cls(messages)  # type: ignore[arg-type]
        return replace(given, messages=require_messages(given.messages))


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of the prompt, in order: a chunk (with `is_chunk`) or glue. `key` is the matched store entry, if any."""

    text: str
    is_chunk: bool = False
    key: str | None = None
    partial: bool = False


def answer_pieces(question: str, chunks: Sequence[str]) -> list[Piece]:
    """The pieces of `answer(question, chunks)`: instruction, passages, question."""
    pieces = [Piece(HEAD)]
    for index, chunk in enumerate(chunks):
        pieces += [Piece(SEPARATOR)] if index else []
        pieces.append(Piece(chunk, is_chunk=True))
    return [*pieces, Piece(QUESTION + question + TAIL)]


def content_of(message: Message) -> str:
    """The text of a message whose content is a string or a list of text parts; raises `SamKVError` on others."""
    content = message.get("content") or ""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, Iterable) and not isinstance(content, bytes | Mapping) else [content]
    texts = [part.get("text") if isinstance(part, Mapping) else part for part in parts]
    if any(not isinstance(text, str) for text in texts):
        raise SamKVError("Only text content is supported; remove images, audio and files from the messages.")
    return "".join(map(str, texts))


def merged(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Adjacent messages of one role as one, with blank lines between: many chat templates require roles to alternate.

    Tool results, and messages that call tools, are kept apart; a name is kept if all have it.
    """
    made: list[dict[str, Any]] = []
    for message in messages:
        last = made[-1] if made else {}
        if last.get("role") != message["role"] or message["role"] == "tool" or "tool_calls" in {*last, *message}:
            made.append(dict(message))
            continue
        last["content"] = "\n\n".join(filter(None, (last["content"], message["content"])))
        if last.get("name") != message.get("name"):
            last.pop("name", None)
    return made


def has_template(tokenizer: Any) -> bool:
    """Whether the tokenizer has a chat template, which then writes a prompt's BOS itself."""
    return getattr(tokenizer, "chat_template", None) is not None


def render(
    tokenizer: Any, messages: Sequence[Message], contents: Sequence[Sequence[Piece]], tools: Sequence[Any] = (),
    options: Mapping[str, Any] | None = None,
) -> list[Piece] | None:  # fmt: skip
    """The chat template's output as pieces, chunks in place; None if the template lost or doubled one.

    `contents[i]` are the pieces of message i's content, `options` further variables of the template. Raises
    `SamKVError` on what cannot be encoded.
    """
    nonce = secrets.token_hex(4)
    marks: dict[str, Piece] = {}
    marked = []
    for message, pieces in zip(messages, contents, strict=True):
        text = ""
        for piece in pieces:
            mark = f"SAMKVx{nonce}x{len(marks):05d}x" if piece.is_chunk else ""
            marks.update({mark: piece} if mark else {})
            text += mark or piece.text
        marked.append({**message, "content": text})
    return _split(
        require_text(rendered(tokenizer, marked, tools, options or {}), "The prompt that the messages make"), marks
    )


def variables(*given: Any) -> dict[str, Any]:
    """Variables of a chat template as callers give them, later ones taking precedence; None adds nothing. Raises
    `SamKVError` on anything but a mapping."""
    for one in given:
        if one is not None and not isinstance(one, Mapping):
            raise SamKVError(f"chat_template_kwargs is a dictionary, such as {{{THINKING!r}: False}}, not {one!r}.")
    return {name: value for one in given for name, value in (one or {}).items()}


def rendered(tokenizer: Any, messages: Sequence[Message], tools: Sequence[Any], options: Mapping[str, Any]) -> str:
    """What the chat template makes of messages; without one they are joined in order."""
    given = {**options, **({"tools": list(tools)} if tools else {})}
    if not has_template(tokenizer):
        return SEPARATOR.join(content_of(message) for message in messages) + TAIL
    try:
        text = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True, **given)
    except Exception as error:  # a template is the model's own program: whatever it raises concerns the messages
        raise SamKVError(f"The model's chat template refused the messages: {error}") from error
    return str(text)


def _split(text: str, marks: Mapping[str, Piece]) -> list[Piece] | None:
    if any(text.count(mark) != 1 for mark in marks):
        return None
    pieces, rest = [], text
    for mark in sorted(marks, key=text.index):
        before, rest = rest.split(mark, 1)
        pieces += [Piece(before), marks[mark]]
    return [piece for piece in [*pieces, Piece(rest)] if piece.text]
