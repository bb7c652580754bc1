"""From token ids, one at a time, to pieces of text that together are what the tokenizer makes of all of them."""

from __future__ import annotations

import re
from collections.abc import Sequence
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
        self._known, self._told = 0, ""

    def feed(self, token: int) -> str:
        """The text that is certain since `token` came."""
        if self._is_skipped(token):  # and ends no run of bytes
            return ""
        self._window.append(token)
        if _BYTE.fullmatch(str(self._tokenizer.convert_ids_to_tokens(token))):  # decoded once, when the run ends
            return ""
        text = self._decoded(self._window)
        return "" if text.endswith("\ufffd") else self._passed_on(text)

    def rest(self) -> str:
        """The text that was held back, when no more tokens come."""
        return self._passed_on(self._decoded(self._window))

    def _passed_on(self, text: str) -> str:
        piece = text[len(self._told) :]
        if piece:  # a window always begins with tokens that have text
            self._window, self._known = self._window[self._known :], len(self._window) - self._known
            self._told = self._decoded(self._window)
        return piece

    def _decoded(self, tokens: Sequence[int], skip: bool = True) -> str:
        return str(self._tokenizer.decode(tokens, skip_special_tokens=skip))

    def _is_skipped(self, token: int) -> bool:
        """Whether a token is a special one, of which answers show nothing."""
        return not self._decoded([token]) and bool(self._decoded([token], skip=False))
