"""From token ids, one at a time, to pieces of text that together are what the tokenizer makes of all of them."""

from __future__ import annotations

import re
from typing import Any

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
"""A token of one byte, as tokenizers with byte fallback spell it."""


class Detokenizer:
    """Decodes each token together with those of the piece before it: some tokenizers strip a space from, or add one to,
    the first token that they decode.

    Nothing is passed on that more tokens may change: half a character, nor a run of byte tokens, all of which become
    replacement characters where one of them is wrong.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._window: list[int] = []
        self._known = 0
        self._told = self._text = ""
        self._open = False

    def feed(self, token: int) -> str:
        """The text that is certain since `token` came."""
        self._window.append(token)
        text = self._decoded(self._window)
        if text != self._text:  # special tokens are skipped, and end no run
            self._open = text.endswith("\ufffd") or self._is_byte(token)
        self._text = text
        return "" if self._open else self._passed_on()

    def rest(self) -> str:
        """The text that was held back, when no more tokens come."""
        return self._passed_on()

    def _passed_on(self) -> str:
        piece = self._text[len(self._told) :]
        if piece:  # a window always begins with tokens that have text
            self._window, self._known = self._window[self._known :], len(self._window) - self._known
            self._told = self._text = self._decoded(self._window)
        return piece

    def _decoded(self, tokens: list[int]) -> str:
        return str(self._tokenizer.decode(tokens, skip_special_tokens=True))

    def _is_byte(self, token: int) -> bool:
        return _BYTE.fullmatch(str(self._tokenizer.convert_ids_to_tokens(token))) is not None
