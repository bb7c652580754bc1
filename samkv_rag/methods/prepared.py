"""What a method leaves for decoding to start from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from samkv_rag.model.cache import SlotCache
from samkv_rag.model.decoding import Decoding, Hearer, Settling
from samkv_rag.model.loop import Loop
from samkv_rag.types import Selection


@dataclass(frozen=True)
class Prepared:
    """What `generate()` starts from. `tokens` `(K,)` are the ids of the kept tokens, on any device; `cache` holds them
    all, and `logits` `(vocab,)`, fp32, are the first new token's. Both are None for an ordinary prefill of all prompt
    tokens. `chosen` makes the selection, which may have to wait for a GPU. With `settling` everything is kept until
    that decides, in the middle of the answer, what is kept; the selection then says so."""

    cache: SlotCache | None
    tokens: Tensor
    chosen: Callable[[], Selection]
    logits: Tensor | None = None
    settling: Settling | None = None

    @classmethod
    def of(
        cls, cache: SlotCache | None, tokens: Tensor, selection: Selection, logits: Tensor | None = None
    ) -> Prepared:
        """From a selection that is known already."""
        return cls(cache, tokens, lambda: selection, logits)

    @cached_property
    def ids(self) -> tuple[int, ...]:
        """The ids of the kept tokens, on the host, which waits for them."""
        return tuple(self.tokens.tolist())

    @property
    def selection(self) -> Selection:
        """Which tokens of every chunk are kept, and why; the host waits for it."""
        return self.chosen()

    def begin(
        self, loop: Loop, hearer: Hearer | None = None, random: torch.Generator | None = None, **generation: Any
    ) -> Decoding:
        """Begin the answer, with its first token; see `Loop.begin`. This uses up what was prepared."""
        return loop.begin(self.tokens, self.cache, self.logits, hearer, random, self.settling, **generation)

    def generate(self, loop: Loop, **generation: Any) -> list[int]:
        """The new token ids of the whole answer, decoded alone."""
        return loop.finish(self.begin(loop, **generation))
