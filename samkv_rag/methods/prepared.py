"""What a method leaves for decoding to begin with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from samkv_rag.model.cache import SlotCache
from samkv_rag.model.decoding import Settling
from samkv_rag.types import Selection


@dataclass(frozen=True)
class Prepared:
    """What `generate()` starts from. `tokens` `(K,)` are the ids of the kept tokens, wherever they were chosen; `cache`
    holds them all, and `logits` `(vocab,)`, fp32, are the first new token's. Both are None for an ordinary prefill of
    all prompt tokens. `chosen` makes the selection: a GPU may have to be waited for. With `settling` everything is kept
    until that settles what stays, in the middle of the answer; the selection then says so."""

    cache: SlotCache | None
    tokens: Tensor
    chosen: Callable[[], Selection]
    logits: Tensor | None = None
    settling: Settling | None = None

    @classmethod
    def of(
        cls, cache: SlotCache | None, tokens: Tensor, selection: Selection, logits: Tensor | None = None
    ) -> Prepared:
        """With a selection that is there."""
        return cls(cache, tokens, lambda: selection, logits)

    @cached_property
    def ids(self) -> tuple[int, ...]:
        """The kept tokens, on the host, which waits for them."""
        return tuple(self.tokens.tolist())

    @property
    def selection(self) -> Selection:
        """Which tokens of every chunk stay, and why; the host waits for it."""
        return self.chosen()
