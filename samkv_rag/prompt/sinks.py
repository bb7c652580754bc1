"""Sink prefixes: what precedes chunks at ingestion, so that their first tokens do not become attention sinks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from samkv_rag.errors import SamKVError
from samkv_rag.prompt.encoding import Encoder
from samkv_rag.prompt.template import HEAD, THINKING, answer_pieces, has_template, render

Sink = Callable[[Any], tuple[int, ...]]
"""From a tokenizer to the tokens that precede its chunks at ingestion."""


def _head(tokenizer: Any) -> tuple[int, ...]:
    """The first lines of an `answer` prompt, after a BOS where prompts begin with one. Anything else that a chat
    template puts first would make every chunk one that opens a conversation, which few do (docs/fidelity.md)."""
    encoder = Encoder(tokenizer)
    began = encoder.glue(_rendered(tokenizer)) if has_template(tokenizer) else encoder.prefix
    bos = [token for token in began[:1] if token == tokenizer.bos_token_id]
    return (*bos, *encoder.glue(HEAD))


def _rendered(tokenizer: Any) -> str:
    """What the chat template writes before the first passage; a BOS if it refuses or loses the passage."""
    pieces = None
    with suppress(SamKVError):
        pieces = render(tokenizer, [{"role": "user"}], [answer_pieces("?", ["passage"])], options={THINKING: False})
    if not pieces:
        return tokenizer.bos_token or ""
    return "" if pieces[0].is_chunk else pieces[0].text


def _bos(tokenizer: Any) -> tuple[int, ...]:
    return () if tokenizer.bos_token_id is None else (int(tokenizer.bos_token_id),)


SINK_PREFIXES: Mapping[str, Sink] = {"none": lambda tokenizer: (), "bos": _bos, "head": _head}


def sink_of(sink_prefix: str) -> Sink:
    """The sink prefix of this name; raises `SamKVError` on an unknown one."""
    if sink_prefix not in SINK_PREFIXES:
        raise SamKVError(f"sink_prefix is one of {', '.join(SINK_PREFIXES)}, not {sink_prefix!r}.")
    return SINK_PREFIXES[sink_prefix]
