"""Text to token ids, one segment at a time.

Glue is tokenised in the tokenizer's usual way. Chunk text is tokenised with every added token disabled, so that
`<|im_end|>` inside a document is a few ordinary tokens and cannot forge a turn.
"""

from __future__ import annotations

import re
from functools import cached_property
from itertools import pairwise
from typing import Any


class Encoder:
    """Segment-wise encoding with one tokenizer (any Hugging Face tokenizer)."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def glue(self, text: str) -> list[int]:
        """Ids of prompt text; added tokens are recognised, none are prepended."""
        return self._encode(text)

    def chunk(self, text: str) -> list[int]:
        """Ids of document text, in which no added token is recognised."""
        return [token for _, ids in self._disarmed(text) for token in ids if token not in self._control_ids]

    def chunk_texts(self, text: str) -> list[str]:
        """The piece of `text` that each of its `chunk(text)` tokens stands for; together they are `text`.

        A character that takes several tokens goes to the last of them. For tokenizers that do not report the places of
        their tokens, each piece is what the token decodes to.
        """
        ids = self.chunk(text)
        starts = self._starts(text) if getattr(self.tokenizer, "is_fast", False) else []
        if len(starts) != len(ids):
            return [self.tokenizer.decode([token]) for token in ids]
        cuts = [0, *starts[1:], len(text)]
        return [text[left:right] for left, right in pairwise(cuts)] if ids else []

    def _starts(self, text: str) -> list[int]:
        """Where every token of the disarmed text begins."""
        starts, base = list[int](), 0
        for piece, _ in self._disarmed(text):
            found = self.tokenizer(piece, add_special_tokens=False, verbose=False, return_offsets_mapping=True)
            starts += [base + left for left, _ in found["offset_mapping"]]
            base += len(piece)
        return starts

    @cached_property
    def prefix(self) -> list[int]:
        """What the tokenizer prepends to a raw string, such as a BOS."""
        ids, own = list(self.tokenizer("a", add_special_tokens=True)["input_ids"]), self._encode("a")
        return next((ids[:at] for at in range(len(ids)) if own and ids[at : at + len(own)] == own), [])

    def span(self, text: str, start: int, stop: int) -> tuple[int, int]:
        """The token range of `glue(text)` that covers characters `start`..`stop`; the whole text if unknown."""
        if not getattr(self.tokenizer, "is_fast", False):
            return 0, len(self._encode(text))
        offsets = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        inside = [index for index, (left, right) in enumerate(offsets) if left < stop and right > start]
        return (inside[0], inside[-1] + 1) if inside else (0, 0)

    def _encode(self, text: str) -> list[int]:
        if not text:
            return []
        ids: list[int] = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return ids

    @cached_property
    def _controls(self) -> dict[str, int]:
        """Added tokens by text, except for harmless ones: runs of blanks, which some tokenizers add for compactness,
        and single characters that are text."""
        added, special = self.tokenizer.get_added_vocab(), {*self.tokenizer.all_special_tokens}
        return {text: index for text, index in added.items() if text.strip() and (len(text) > 1 or text in special)}

    @cached_property
    def _control_ids(self) -> frozenset[int]:
        """Those that no document may have; what stands for characters that the model does not know is none of them."""
        unknown, ends = self.tokenizer.unk_token_id, (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id)
        return frozenset(self._controls.values()) - ({unknown} if unknown not in ends else set())

    @cached_property
    def _pattern(self) -> re.Pattern[str] | None:
        longest_first = sorted((text for text in self._controls if len(text) > 1), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, longest_first))) if longest_first else None

    def _disarmed(self, text: str) -> list[tuple[str, list[int]]]:
        """`text` cut after the first character of every added token in it, so that none is whole; each piece with its
        ids."""
        pieces, rest = [], text
        while match := self._pattern.search(rest) if self._pattern else None:
            pieces.append(rest[: match.start() + 1])
            rest = rest[match.start() + 1 :]
        return [part for piece in [*pieces, rest] for part in self._unread(piece)]

    def _unread(self, piece: str) -> list[tuple[str, list[int]]]:
        """`piece` cut where the tokenizer reads an added token all the same, in characters that it takes for others."""
        ids = self._encode(piece)
        if len(piece) < 2 or not self._control_ids.intersection(ids):
            return [(piece, ids)]
        middle = len(piece) // 2
        return [*self._unread(piece[:middle]), *self._unread(piece[middle:])]
