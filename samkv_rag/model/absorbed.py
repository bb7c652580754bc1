"""Attending to latents without making keys and values of them.

What a layer makes of its latents is linear. So a query can be compared with the latents themselves, once it is
multiplied by what makes keys, and a sum of latents can be made a value after it was added up (DeepSeek-V2, section
2.1.2, "absorbed"). transformers makes the keys and values of all heads of all tokens anew at every step: for 20 heads
over 4,000 tokens that is a hundred times the work.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from samkv_kernels.backend import without_triton
from samkv_kernels.softmax import Softmax
from samkv_kernels.sparse_attention import masked_attention
from samkv_rag.model.attention import AttentionPlan
from samkv_rag.model.cache import Entries, SlotCache
from samkv_rag.model.latent import joined, parted, whole
from samkv_rag.model.rounding import alike

FEW = 16
"""The most rows of an absorbed pass on a GPU."""


@dataclass(frozen=True, slots=True)
class Making:
    """What one layer makes of joined entries `(T, R + C)`, of which the first R turn: keys `(H, T, D)` by multiplying
    them with `keys` `(H, R + C, D)`, values `(H, T, E)` by multiplying the last C with `values` `(H, C, E)`."""

    keys: Tensor
    values: Tensor

    @classmethod
    @torch.inference_mode()
    def of(cls, module: Any, turning: int, like: Tensor) -> Making:
        """That of an attention module, from what it makes of unit vectors as wide and of the kind of `like`."""
        units = torch.eye(like.shape[-1], dtype=like.dtype, device=like.device)[None, None]
        keys, values = module.expand_kv(units[..., turning:].contiguous(), units[..., :turning].contiguous())
        return cls(keys[0].contiguous(), values[0, :, turning:].contiguous())

    def explains(self, entries: Tensor, given: Entries, rough: bool = False) -> bool:
        """Whether a layer that holds `entries` `(1, 1, T, R + C)` attends to what is made of them; `rough`: but for the
        rounding of inputs to 8 bits."""
        made = entries @ self.keys, self.latents(entries) @ self.values
        return all(x.shape == y.shape and alike(x, y, rough) for x, y in zip(made, given, strict=True))

    def latents(self, entries: Tensor) -> Tensor:
        """The latents in entries `(..., R + C)`."""
        return entries[..., -self.values.shape[1] :]

    def pays(self, rows: int, total: int, anyway: int) -> bool:
        """Whether a pass of the last `rows` of `total` tokens takes fewer operations over entries than over keys and
        values, of which the model makes those of as many tokens as `anyway` in any case."""
        (latent, made), (both, width) = self.values.shape[1:], self.keys.shape[1:]
        pairs = rows * (total - (rows - 1) / 2)
        absorbing = pairs * (both + latent) + rows * (both * width + latent * made)
        return absorbing < pairs * (width + made) + (total - anyway) * latent * (width - (both - latent) + made)


class Latents:
    """What a model's layers make of what they cache: `expand` by the model itself, its attention `modules`; `layers`
    without it, where all of them could be learned (`absorbed`)."""

    def __init__(
        self, decoder: Any, turning: int, held: Sequence[Entries], given: Mapping[int, Sequence[Entries]],
        rough: bool = False,
    ) -> None:  # fmt: skip
        """`held` has the entries in each layer's cache, joined, and `given` what it attended to, call by call; `rough`:
        the model is quantised."""
        self._turning = turning
        self.modules = {module.layer_idx: module for module in decoder.modules() if hasattr(module, "expand_kv")}
        entries = {layer: torch.cat(own, -1) for layer, own in enumerate(held)}
        known = self.modules.keys() == entries.keys()
        learned = {layer: Making.of(self.modules[layer], turning, own) for layer, own in entries.items() if known}
        fitting = [one for layer, one in learned.items() if one.explains(entries[layer], given[layer][0], rough)]
        self.layers = fitting if len(fitting) == len(held) else []

    @property
    def absorbed(self) -> bool:
        """Whether decoding can do without the model's own keys and values."""
        return bool(self.layers)

    def expand(self, layer: int, keys: Tensor, values: Tensor) -> Entries:
        """The keys and values of all heads that the model makes of joined entries `(B, 1, T, ...)`."""
        made: Entries = self.modules[layer].expand_kv(*parted(keys, values, self._turning))
        return made

    def pays(self, rows: int, total: int, anyway: int | None = None) -> bool:
        """Whether `rows` rows of a pass among `total` tokens should attend to latents as they are, where the model
        makes keys and values of as many tokens as `anyway`, by default the rows, in any case. On a GPU that is computed
        in float32, and only worth it for a few."""
        if not self.absorbed or (self.layers[0].keys.is_cuda and rows > FEW):
            return False
        return self.layers[0].pays(rows, total, rows if anyway is None else anyway)


@dataclass
class AbsorbedPlan(AttentionPlan):
    """Attends to the entries that `cache` holds, packed ones included: a model gets back only the new ones from it, and
    what it makes of these is not used. `layers`: what its layers make of entries."""

    cache: SlotCache | None = None
    layers: Sequence[Making] = ()
    absorbs: ClassVar[bool] = True

    @classmethod
    def of(cls, plan: AttentionPlan, cache: SlotCache, latents: Latents) -> AbsorbedPlan:
        """The plan of the same pass, over this cache. Entries are wider than the heads that our kernels take."""
        return cls.like(plan, backend=without_triton(plan.backend), cache=cache, layers=latents.layers)

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, softmax: Softmax, window: int | None
    ) -> Tensor:
        """One layer of this pass; see `Plan`."""
        assert self.cache is not None
        making, held = self.layers[layer], self.cache.slot_layers[self.cache.home(layer)]
        fixed = replace(softmax, scale=softmax.scale_for(query.shape[3]))
        asked, entries = query @ making.keys.mT, whole(held.keys, held.values)
        return super().attend(layer, asked, entries, making.latents(entries), fixed, window) @ making.values

    def attended(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, softmax: Softmax, window: int | None,
        shares: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """The attention itself; what is packed is unpacked, and placed before the others. On a GPU SDPA would copy the
        entries for every head."""
        if self.packed is None and query.device.type == "cpu":
            return super().attended(layer, query, key, value, softmax, window, shares)
        entries, packed = key, 0
        if self.packed is not None:
            packed, unpacked = len(self.packed.positions), self.packed.of_layer(layer).entries(self.backend)
            entries = key.new_empty(1, 1, packed + key.shape[2], key.shape[3])
            entries[:, :, packed:] = key
            for half, own in zip(entries[0, :, :packed].chunk(2, -1), unpacked, strict=True):
                half.copy_(own)
        mask = self.sight(query.shape[2], key.shape[2], window).whole_mask(packed)
        return masked_attention(query, entries, self.layers[layer].latents(entries), mask, softmax)


@dataclass(frozen=True, slots=True)
class AbsorbedRows:
    """One new token for each of several answers, row by row over its own cache, under its own plan."""

    plans: Sequence[AbsorbedPlan]

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, softmax: Softmax, window: int | None
    ) -> Tensor:
        """One layer of the step; see `Plan`."""
        rows = zip(self.plans, query.split(1), key.split(1), value.split(1), strict=True)
        return torch.cat([plan.attend(layer, q, k, v, softmax, window) for plan, q, k, v in rows])


class Appending(Cache):
    """Several caches as a model takes them whose latents are absorbed: new ones are stored row by row, each in its own
    cache, and only these are handed back."""

    def __init__(self, caches: Sequence[SlotCache]) -> None:
        super().__init__(layers=caches[0].layers)
        self._caches = caches

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Entries:
        """Store them; returns what it was given, `(B, 1, Q, C)` and `(B, 1, Q, R)`."""
        keys, values = joined(key_states, value_states)
        for cache, key, value in zip(self._caches, keys.split(1), values.split(1), strict=True):
            cache.update(key, value, layer_idx)
        return key_states, value_states
