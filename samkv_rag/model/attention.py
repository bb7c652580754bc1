"""One attention function for every supported model: it compares positions, so gaps between kept tokens are right.

Registered with transformers under the name "samkv". Without a plan it is plain SDPA with the model's own mask; with
one (a ContextVar, because `generate()` refuses unknown keywords) the mask is made from the true positions of the
cache's slots: no dense HF mask, right for gaps and for sliding windows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "samkv"


@dataclass(frozen=True, slots=True)
class Observation:
    """What one layer attends with: rotated `query` `(B, H, Q, D)`, assembled `key` `(B, G, T, D)`, bool `mask` `(Q, T)`
    (None with `causal` or when everything is visible), score scale and soft cap."""

    layer: int
    query: Tensor
    key: Tensor
    mask: Tensor | None
    causal: bool
    scale: float | None
    softcap: float | None

    def weights(self, rows: Tensor) -> Tensor:
        """Softmax attention of query `rows`, averaged over heads: fp32 `(len(rows), T)` of the first in the batch."""
        query = self.query[:, :, rows]
        scores = attention_scores(query, self.key, self.scale, self.softcap)
        visible = self.mask
        if self.causal:
            visible = torch.ones(self.query.shape[2], self.key.shape[2], dtype=torch.bool, device=query.device).tril()
        if visible is not None:
            scores = scores.masked_fill(~visible[rows], float("-inf"))
        return scores.softmax(-1)[0].mean(0)


Observer = Callable[[Observation], None]


class Plan(Protocol):
    """How one pass attends."""

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float | None, softcap: float | None,
        window: int | None,
    ) -> Tensor:  # fmt: skip
        """`query` `(B, H, Q, D)` over what the cache returned, `(B, G, T, D)` -> `(B, H, Q, D)`."""
        ...


@dataclass(slots=True)
class AttentionPlan:
    """What one pass needs to know: the position of every cache slot, which slots are queries, who listens.

    `slots` None means the queries are the last live slots (ingestion, decoding). `observer` sees every
    layer's query and keys. With `last_layer` the pass ends there
    (`PassEnded`), once that layer's keys are stored and observed.
    """

    positions: Tensor
    slots: Tensor | None = None
    observer: Observer | None = None
    last_layer: int | None = None
    seen: set[int] = field(default_factory=set)
    _shape: tuple[int, int] = (0, 0)
    _masks: dict[int | None, tuple[Tensor | None, bool]] = field(default_factory=dict)

    def mask(self, n_query: int, n_key: int, window: int | None) -> tuple[Tensor | None, bool]:
        """(bool mask `(Q, T)` or None, is_causal) for queries of this pass; made once a pass, not once a layer."""
        if self._shape != (n_query, n_key):
            self._shape = (n_query, n_key)
            self._masks.clear()
        if window not in self._masks:
            self._masks[window] = self._make_mask(n_query, n_key, window)
        return self._masks[window]

    def _make_mask(self, n_query: int, n_key: int, window: int | None) -> tuple[Tensor | None, bool]:
        if window is None and self.slots is None and n_query == 1:
            return None, False
        if window is None and n_query == n_key:
            return None, True
        keys = self.positions[:n_key]
        queries = self.positions[n_key - n_query : n_key] if self.slots is None else self.positions[self.slots]
        visible = keys[None, :] <= queries[:, None]
        if window is not None:
            visible &= keys[None, :] > queries[:, None] - window
        return visible, False

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float | None, softcap: float | None,
        window: int | None,
    ) -> Tensor:  # fmt: skip
        """One layer of this pass; see `Plan`. Raises `PassEnded` at `last_layer`."""
        self.seen.add(layer)
        mask, causal = self.mask(query.shape[2], key.shape[2], window)
        if self.observer is not None:
            self.observer(Observation(layer, query, key, mask, causal, scale, softcap))
        if layer == self.last_layer:
            raise PassEnded
        return attend(query, key, value, mask, causal, scale, softcap)


_PLAN: ContextVar[Plan | None] = ContextVar("samkv_attention_plan", default=None)


class PassEnded(Exception):
    """Ends a forward pass whose later layers nobody needs; caught by whoever set `last_layer`."""


@contextmanager
def attention_plan(plan: Plan) -> Iterator[None]:
    """Run model calls of this context (this thread, this task) under `plan`."""
    token = _PLAN.set(plan)
    try:
        yield
    finally:
        _PLAN.reset(token)


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    causal: bool,
    scale: float | None,
    softcap: float | None,
) -> Tensor:
    """Attention of `(B, H, Q, D)` over `(B, G, T, D)` -> `(B, H, Q, D)`; consecutive heads share a key head."""
    grouped = query.shape[1] != key.shape[1]
    if softcap is None:
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=causal, scale=scale, enable_gqa=grouped
        )
    return _attend_with_softcap(query, key, value, mask, causal, scale, softcap)


def _attend_with_softcap(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool, scale: float | None, softcap: float
) -> Tensor:
    """SDPA has no soft cap: scores in fp32, as the model's eager attention computes them."""
    scores = attention_scores(query, key, scale, softcap)
    value = value.repeat_interleave(query.shape[1] // key.shape[1], 1)
    if causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return (scores.softmax(-1) @ value.float()).to(query.dtype)


def attention_scores(query: Tensor, key: Tensor, scale: float | None, softcap: float | None) -> Tensor:
    """Scores before the mask, fp32 `(B, H, Q, T)`; consecutive heads share a key head."""
    key = key.repeat_interleave(query.shape[1] // key.shape[1], 1)
    scores = query.float() @ key.float().transpose(-1, -2) * (scale or query.shape[-1] ** -0.5)
    return scores if softcap is None else softcap * torch.tanh(scores / softcap)


def samkv_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The function transformers calls: output `(B, Q, H, D)`, no weights."""
    plan = _PLAN.get()
    if plan is None:
        return _without_plan(module, query, key, value, attention_mask, scaling, softcap, kwargs)
    out = plan.attend(module.layer_idx, query, key, value, scaling, softcap, sliding_window)
    return out.transpose(1, 2).contiguous(), None


def _without_plan(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float | None,
    softcap: float | None, kwargs: dict[str, Any],
) -> tuple[Tensor, None]:  # fmt: skip
    if softcap is None:
        out, _ = sdpa_attention_forward(module, query, key, value, mask, scaling=scaling, **kwargs)
        return out, None
    causal = mask is None and query.shape[2] > 1
    out = attend(query, key, value, mask, causal, scaling, softcap)
    return out.transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, samkv_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
