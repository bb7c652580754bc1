"""Checks of what callers pass as text, before anything is made of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from samkv_rag.errors import SamKVError


def require_text(value: Any, what: str) -> str:
    """`value`, if it is a string that can be encoded; else raises `SamKVError` that says what it is."""
    if not isinstance(value, str):
        raise SamKVError(f"{what} must be text, not {_kind(value)}.")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise SamKVError(
            f"{what} holds half of a surrogate pair at character {error.start}, which is no text; decode its source "
            'with errors="replace".'
        ) from error
    return value


def require_texts(values: Any, what: str) -> list[str]:
    """A list of texts, from any iterable but a string."""
    if isinstance(values, str | bytes) or not isinstance(values, Iterable):
        raise SamKVError(f"{what} must be a list of texts, not {_kind(values)}; pass [text].")
    return [require_text(value, f"{what}, item {number}") for number, value in enumerate(values)]


def require_messages(values: Any) -> list[Mapping[str, Any]]:
    """A list of messages, each a mapping with a role."""
    if isinstance(values, bytes | Mapping) or not isinstance(values, Iterable):
        raise SamKVError(f"A prompt is text or a list of messages, not {_kind(values)}.")
    found = list(values)
    if not found:
        raise SamKVError("There are no messages to answer; pass at least one.")
    for number, message in enumerate(found):
        if not isinstance(message, Mapping) or "role" not in message:
            raise SamKVError(
                f"Message {number} must be a mapping with a role and a content, not {_kind(message)}; for example "
                '{"role": "user", "content": "Where is the mill?"}.'
            )
    return found


def _kind(value: Any) -> str:
    return "None" if value is None else type(value).__name__
