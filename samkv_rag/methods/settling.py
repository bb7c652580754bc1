"""What stays of a prompt, settled in the middle of an answer: by what its tokens look at, beside the question's.

A sentence takes many tokens, and each looks elsewhere. Until it is settled everything is kept: the first tokens see all
entries. (Lookahead Q-Cache and SpecKV choose by tokens of a draft; these are the answer's own.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from samkv_rag.methods.layout import Ground
from samkv_rag.methods.picked import Picked, Settled, largest, most_looked_at
from samkv_rag.methods.selection import standardised
from samkv_rag.model.adapter import ModelAdapter
from samkv_rag.model.cache import SlotCache
from samkv_rag.model.memory import is_out_of_memory
from samkv_rag.model.observers import AttentionMaps
from samkv_rag.types import Selection

EXACT = 0.25
"""What stays as it is where the rest is packed, as a share of what was chosen: with none, packing costs three times as
much (docs/fidelity.md)."""
LEAST_PACKED = 16
"""Tokens. Fewer take no less in four bits: they are held by 32, with scales for these."""


@dataclass(frozen=True, slots=True)
class Settlement:
    """When it is settled what stays: behind `after` tokens of the answer, 0: with the first one; what becomes of the
    `rest` then; and what was not done as asked."""

    after: int = 0
    rest: Literal["drop", "int4", "stay"] = "drop"
    notes: tuple[str, ...] = ()

    @property
    def all_stays(self) -> bool:
        """Whether there is everything for a while, as it is."""
        return self.after > 0 or self.rest != "drop"


@dataclass
class LateSettling:
    """When `after` tokens of an answer are there, `choose` says what stays of the prompt on `ground`.

    It gets how much each of the T tokens of all chunks (of `lengths`) was looked at: before (`looked_at` `(T,)`), or by
    these tokens on `layers`. They go through the model once more for it, together, in sight of all, which says the next
    token as well. `again` are the chunks' tokens that were computed.
    """

    after: int
    adapter: ModelAdapter
    ground: Ground
    lengths: Sequence[int]
    layers: Sequence[int]
    again: Picked
    looked_at: Tensor
    choose: Callable[[Tensor], Settled]
    _settled: Settled | None = None
    _packed_bytes: int = 0
    _short: bool = False

    def settle(self, cache: SlotCache, tokens: Sequence[int]) -> Tensor:
        """See `Settling` of the model's floor."""
        try:
            return self._settle(cache, tokens)
        except Exception as error:
            self._short = is_out_of_memory(error)
            raise

    @torch.inference_mode()
    def _settle(self, cache: SlotCache, tokens: Sequence[int]) -> Tensor:
        prompt, count, device = len(self.ground.ids), len(tokens), self.adapter.device
        maps = AttentionMaps(torch.arange(count, device=device), self.layers)
        cache.crop_to(prompt)
        logits = self.adapter.logits_of(tokens, cache, maps)
        now = most_looked_at(maps.found).index_select(0, self.ground.spots)
        settled = self.choose(torch.maximum(self.looked_at, now))
        written = torch.arange(prompt, prompt + count, device=device)
        exact, packed = settled.exact or settled.kept, settled.packed
        stays = torch.cat([self.ground.staying(exact), written])
        cache.keep(stays, None if packed is None else self.ground.spots[packed.at])
        if cache.packed is not None:
            self._packed_bytes = cache.packed.nbytes
        self._settled = settled
        return logits[-1]

    def selection(self) -> Selection:
        """What stays; all of it, if the answer ended before that was settled, or there was no memory for it."""
        if self._settled is not None:
            return replace(self._settled.selection(self.lengths), packed_bytes=self._packed_bytes)
        notes: tuple[str, ...] = (f"the answer ended before its token {self.after + 1}: all was kept to its end",)
        if self._short:
            notes = ("memory was too short to settle what stays: all was kept",)
        elif self.after == 1:
            notes = ()  # its only token sees all, as with any settlement
        worth = standardised(self.looked_at[None])[0]
        return Settled(largest(worth, len(worth)), self.again, worth, notes).selection(self.lengths)
