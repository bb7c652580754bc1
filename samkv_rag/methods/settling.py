"""What is kept of a prompt, decided in the middle of an answer by what its tokens, and the question's, attend to.

A sentence takes many tokens, and each attends to something else. Until it is settled everything is kept: the first
tokens attend to all entries. (Lookahead Q-Cache and SpecKV choose by tokens of a draft; these are the answer's own.)
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
"""What is kept at full precision where the rest is packed, as a share of what was chosen: with none, packing costs
three times as much (docs/fidelity.md)."""
LEAST_PACKED = 16
"""Tokens. Fewer take no less room in four bits: they are held in groups of 32, with scales for each group."""


@dataclass(frozen=True, slots=True)
class Settlement:
    """When it is decided what is kept: after `after` tokens of the answer (0: with the first one); what becomes of the
    `rest` then; and what was not done as asked (`notes`)."""

    after: int = 0
    rest: Literal["drop", "int4", "stay"] = "drop"
    notes: tuple[str, ...] = ()

    @property
    def all_stays(self) -> bool:
        """Whether everything is kept at full precision for a while."""
        return self.after > 0 or self.rest != "drop"


@dataclass
class LateSettling:
    """Once there are `after` tokens of an answer, `choose` decides what is kept of the prompt on `ground`.

    It gets how much attention each of the T tokens of all chunks (of `lengths`) received: before (`looked_at` `(T,)`),
    or from these tokens on `layers`. For that they go through the model once more, together, attending to everything,
    which also produces the next token. `again` are the chunk tokens that were recomputed.
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
        """See `samkv_rag.model.decoding.Settling`."""
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
        cache.keep(stays, None if packed is None else self.ground.spots[packed.at], self.adapter.backend)
        if cache.packed is not None:
            self._packed_bytes = cache.packed.nbytes
        self._settled = settled
        return logits[-1]

    def selection(self) -> Selection:
        """What is kept; all, if the answer ended before that was decided, or there was no memory to decide it."""
        if self._settled is not None:
            return replace(self._settled.selection(self.lengths), packed_bytes=self._packed_bytes)
        notes: tuple[str, ...] = (f"the answer ended before token {self.after + 1}: everything was kept",)
        if self._short:
            notes = ("there was too little memory to decide what to keep: everything was kept",)
        elif self.after == 1:
            notes = ()  # its only token attends to everything, as with any settlement
        worth = standardised(self.looked_at[None])[0]
        return Settled(largest(worth, len(worth)), self.again, worth, notes).selection(self.lengths)
