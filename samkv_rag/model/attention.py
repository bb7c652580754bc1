"""One attention function for every supported model: it compares positions, so kept tokens may have gaps between them.

Registered with transformers under the name "samkv". Without a plan it is plain SDPA with the model's own mask; with one
(a ContextVar, because `generate()` refuses unknown keywords) the mask is made from the true positions of the cache's
slots: no dense HF mask, and correct for gaps and for sliding windows.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, Self

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from samkv_kernels.backend import Backend
from samkv_kernels.packed import packed_attention
from samkv_kernels.piecewise import Piece, fused_is_faster, pieces_of, piecewise_attention
from samkv_kernels.softmax import Softmax
from samkv_kernels.sparse_attention import Spans, equally_wide, masked_attention, sparse_attention
from samkv_rag.errors import UnsupportedModel
from samkv_rag.model.observers import Observation, Observer, Watcher
from samkv_rag.model.packing import PackedTokens

NAME = "samkv"


class Plan(Protocol):
    """How one pass attends."""

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, softmax: Softmax, window: int | None
    ) -> Tensor:
        """Attention of `query` `(B, H, Q, D)` over what the cache returned, `(B, G, T, D)` -> `(B, H, Q, D)`."""
        ...


@dataclass(slots=True)
class Sight:
    """What the queries of a pass attend to: `spans`. `plain`: SDPA needs no mask, as every query attends to all keys,
    or with `causal` to those up to its own index. `packed`: which of the packed tokens, bool `(Q, N)`; None: all."""

    spans: Spans
    keys: int
    plain: bool
    causal: bool
    packed: Tensor | None = None
    _mask: Tensor | None = None
    _pieces: dict[int, list[list[Piece]]] = field(default_factory=dict)

    def mask(self) -> Tensor | None:
        """The mask of `spans`, bool `(Q, T)`; None where SDPA needs none."""
        return None if self.plain else self._full_mask()

    def _full_mask(self) -> Tensor:
        if self._mask is None:
            self._mask = self.spans.mask(self.keys)[0]
        return self._mask

    def whole_mask(self, packed: int) -> Tensor | None:
        """The mask of that many packed tokens and, after them, the keys, bool `(Q, N + T)`; None where every query
        attends to all."""
        if self.plain and not self.causal and self.packed is None:
            return None
        own = self._full_mask()
        if not packed:
            return own
        before = own.new_ones(len(own), packed) if self.packed is None else self.packed
        return torch.cat([before, own], 1)

    def pieces(self, shared: int) -> list[list[Piece]]:
        """The queries in pieces, where `shared` heads share a key head."""
        if shared not in self._pieces:
            step = self.plain and not self.causal
            self._pieces[shared] = [[Piece.open(1, self.keys)]] if step else pieces_of(self.spans, shared)
        return self._pieces[shared]


@dataclass(slots=True)
class AttentionPlan:
    """What one pass needs to know: the position of every cache slot, which slots are queries, who observes.

    `slots` None means the queries are the last live slots (ingestion, decoding). `observer` gets every layer's query
    and keys. With `last_layer` the pass ends there (`PassEnded`), once that layer's keys are stored and observed. All
    queries attend to what is `packed` too, beside the slots, which follow it or lie around it. As many rows of the pass
    as `before` attend under another plan and come before these queries. `absorbs`: whether it attends to a cache's
    entries itself, not to what the model makes of them.
    """

    absorbs: ClassVar[bool] = False

    positions: Tensor
    slots: Tensor | None = None
    observer: Observer | None = None
    last_layer: int | None = None
    backend: Backend = "torch"
    packed: PackedTokens | None = None
    before: int = 0
    seen: set[int] = field(default_factory=set)
    _shape: tuple[int, int] = (0, 0)
    _sights: dict[int | None, Sight] = field(default_factory=dict)

    @classmethod
    def like(cls, plan: AttentionPlan, **others: Any) -> Self:
        """A plan of this kind for the same pass, with `others` as further fields, or in place of the plan's."""
        names = "positions", "slots", "observer", "last_layer", "backend", "packed", "before"
        return cls(**{name: getattr(plan, name) for name in names} | others)

    @property
    def windows(self) -> set[int | None]:
        """The sliding windows that the layers of the pass have reported so far."""
        return set(self._sights)

    def sight(self, n_query: int, n_key: int, window: int | None) -> Sight:
        """What queries attend to in a layer with this sliding window; made once a pass, not once a layer."""
        if self._shape != (n_query, n_key):
            self._shape = (n_query, n_key)
            self._sights.clear()
        if window not in self._sights:
            self._sights[window] = self._make_sight(n_query, n_key, window)
        return self._sights[window]

    def _make_sight(self, n_query: int, n_key: int, window: int | None) -> Sight:
        queries = self.positions[n_key - n_query : n_key] if self.slots is None else self.positions[self.slots]
        spans = Spans.causal(queries[None], self.positions[None, :n_key], window)
        causal = window is None and self.slots is None and n_query == n_key and n_query > 1 and self.packed is None
        plain = causal or (window is None and n_query == 1 and (self.slots is None or n_key == 1))
        packed = None if self.packed is None else self.packed.seen(queries, window)
        return Sight(spans, n_key, plain, causal, packed)

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, softmax: Softmax, window: int | None
    ) -> Tensor:
        """One layer of this pass; see `Plan`. Raises `PassEnded` at `last_layer`."""
        self.seen.add(layer)
        sight, out, shares = self.sight(query.shape[2], key.shape[2], window), None, None
        if layer != self.last_layer:
            shares = self._room_for_shares(layer, query, key, sight, softmax)
            out = self.attended(layer, query, key, value, softmax, window, shares)
        if self.observer is not None:
            seen = Observation(layer, query, key, sight.spans, softmax, self.backend, shares, self.before)
            self.observer(seen)
        if out is None:
            raise PassEnded
        return out

    def _room_for_shares(self, layer: int, query: Tensor, key: Tensor, sight: Sight, softmax: Softmax) -> Tensor | None:
        """Room for the weights of the last queries of a pass, where attending computes them and most are wanted."""
        watcher, n_query = self.observer, query.shape[2]
        if not isinstance(watcher, Watcher) or not watcher.watches(layer) or 2 * len(watcher.rows) < n_query:
            return None
        if len(query) > 1 or not self._in_pieces(query, sight, softmax) or int(watcher.rows[0]) < self.before:
            return None
        return torch.zeros(n_query, key.shape[2])

    def shown(self, layer: int) -> Tensor | None:
        """The slots, of those in the cache, whose entries the model needs for this layer; None: all."""
        return None

    def _in_pieces(self, query: Tensor, sight: Sight, softmax: Softmax) -> bool:
        """Whether attention is computed for a few queries at a time: on a CPU, except where SDPA is faster."""
        plain = sight.plain and softmax.plain
        if query.device.type != "cpu" or (self.backend == "triton" and not plain):
            return False
        return not (plain and sight.causal and fused_is_faster(query.dtype))

    def attended(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, softmax: Softmax, window: int | None,
        shares: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """The attention itself, carried out the fastest way; the weights of all queries are added to `shares`."""
        sight = self.sight(query.shape[2], key.shape[2], window)
        if self.packed is not None:
            own = self.packed.of_layer(layer)
            return packed_attention(query, key, value, own, sight.mask(), sight.packed, softmax, self.backend)
        if self._in_pieces(query, sight, softmax):
            pieces = sight.pieces(query.shape[1] // key.shape[1])
            return piecewise_attention(query, key, value, pieces, softmax, None if shares is None else shares[None])
        if softmax.plain and (sight.plain or self.backend != "triton"):
            return _sdpa(query, key, value, sight, softmax.scale)
        return sparse_attention(query, key, value, sight.spans, softmax, self.backend)


_PLAN: ContextVar[Plan | None] = ContextVar("samkv_attention_plan", default=None)


class PassEnded(Exception):
    """Ends a forward pass whose later layers are not needed; caught by the code that set `last_layer`."""


@contextmanager
def attention_plan(plan: Plan) -> Iterator[None]:
    """Run model calls of this context (this thread, this task) under `plan`."""
    token = _PLAN.set(plan)
    try:
        yield
    finally:
        _PLAN.reset(token)


class _WithoutCudnn:
    """While any caller is within, SDPA does without cuDNN, which makes a plan for every new number of keys: 45 ms for
    every decoded token, twice what the rest of the step takes (torch 2.11 on an H100, where cuDNN is preferred). The
    setting is process-wide: the first caller in turns it off, the last one out restores it."""

    def __init__(self) -> None:
        self._lock, self._inside, self._before = threading.Lock(), 0, True

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._before = torch.backends.cuda.cudnn_sdp_enabled()
                torch.backends.cuda.enable_cudnn_sdp(False)
            self._inside += 1

    def __exit__(self, *exc: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                torch.backends.cuda.enable_cudnn_sdp(self._before)


without_cudnn = _WithoutCudnn()


def _sdpa(query: Tensor, key: Tensor, value: Tensor, sight: Sight, scale: float | None) -> Tensor:
    """Attention of `(B, H, Q, D)` over `(B, G, T, D)` -> `(B, H, Q, E)`; consecutive heads share a key head. Where
    values are not as wide as keys, SDPA alone takes six times as long (torch 2.13 on a CPU, 12 heads, 4,096 tokens)."""
    grouped, scale = query.shape[1] != key.shape[1], Softmax(scale).scale_for(key.shape[3])
    out = F.scaled_dot_product_attention(
        *equally_wide(query, key, value), attn_mask=sight.mask(), is_causal=sight.causal, scale=scale,
        enable_gqa=grouped,
    )  # fmt: skip
    return out[..., : value.shape[3]]


@torch.compiler.disable  # type: ignore[untyped-decorator]
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
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The function transformers calls: output `(B, Q, H, D)`, no weights. `s_aux` is transformers' name for sinks."""
    plan, softmax = _PLAN.get(), Softmax(scaling, softcap, s_aux)
    if plan is None:
        return _without_plan(module, query, key, value, attention_mask, softmax, kwargs)
    if attention_mask is not None and (attention_mask.dtype != torch.bool or attention_mask.numel() > 1):
        raise UnsupportedModel(
            f"{type(module).__name__} attends under a mask of its own making, which positions alone do not tell."
        )
    out = plan.attend(module.layer_idx, query, key, value, softmax, sliding_window)
    return out.transpose(1, 2).contiguous(), None


def _without_plan(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, softmax: Softmax,
    kwargs: dict[str, Any],
) -> tuple[Tensor, None]:  # fmt: skip
    if softmax.plain:
        out, _ = sdpa_attention_forward(module, query, key, value, mask, scaling=softmax.scale, **kwargs)
        return out, None
    if mask is None and query.shape[2] > 1:
        mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device).tril()
    return masked_attention(query, key, value, mask, softmax).transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, samkv_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
