"""Decoding over latents without making keys and values of them.

What a layer makes of its latents is linear. So a query can be compared with the latents themselves, once it is
multiplied by what makes keys, and a sum of latents can be made a value after it was added up (DeepSeek-V2, section
2.1.2, "absorbed"). transformers makes the keys and values of all heads of all tokens anew at every step: for 20 heads
over 4,000 tokens that is a hundred times the work.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from samkv_kernels.softmax import Softmax
from samkv_kernels.sparse_attention import masked_attention
from samkv_rag.model.decoding import Decoding
from samkv_rag.model.latent import joined, parted
from samkv_rag.model.rounding import alike

Entries = tuple[Tensor, Tensor]
"""Keys and values."""


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

    def explains(self, entries: Tensor, given: Entries) -> bool:
        """Whether a layer that holds `entries` `(1, 1, T, R + C)` attends to what is made of them."""
        made = entries @ self.keys, self._latents(entries) @ self.values
        return all(x.shape == y.shape and alike(x, y) for x, y in zip(made, given, strict=True))

    def _latents(self, entries: Tensor) -> Tensor:
        return entries[..., -self.values.shape[1] :]

    def attend(self, query: Tensor, entries: Tensor, mask: Tensor | None, softmax: Softmax) -> Tensor:
        """Attention of `query` `(1, H, Q, D)` over `entries` `(1, 1, T, R + C)` -> `(1, H, Q, E)`."""
        fixed = replace(softmax, scale=softmax.scale_for(query.shape[-1]))
        found = masked_attention(query @ self.keys.mT, entries, self._latents(entries), mask, fixed)
        return found @ self.values


class Latents:
    """What a model's layers make of what they cache: `expand` by the model itself, its attention `modules`; `layers`
    without it, where all of them could be learned (`absorbed`)."""

    def __init__(
        self, decoder: Any, turning: int, held: Sequence[Entries], given: Mapping[int, Sequence[Entries]]
    ) -> None:  # fmt: skip
        """`held` has the entries in each layer's cache, joined, and `given` what it attended to, call by call."""
        self._turning = turning
        self.modules = {module.layer_idx: module for module in decoder.modules() if hasattr(module, "expand_kv")}
        entries = {layer: torch.cat(own, -1) for layer, own in enumerate(held)}
        known = self.modules.keys() == entries.keys()
        learned = {layer: Making.of(self.modules[layer], turning, own) for layer, own in entries.items() if known}
        fitting = [one for layer, one in learned.items() if one.explains(entries[layer], given[layer][0])]
        self.layers = fitting if len(fitting) == len(held) else []

    @property
    def absorbed(self) -> bool:
        """Whether decoding can do without the model's own keys and values."""
        return bool(self.layers)

    def expand(self, layer: int, keys: Tensor, values: Tensor) -> Entries:
        """The keys and values of all heads that the model makes of joined entries `(B, 1, T, ...)`."""
        made: Entries = self.modules[layer].expand_kv(*parted(keys, values, self._turning))
        return made


class Appending(Cache):
    """Stores the new latents of several answers, a token of each, row by row in its own cache; the model gets back only
    those."""

    def __init__(self, rows: Sequence[Decoding]) -> None:
        super().__init__(layers=rows[0].cache.layers)
        self._rows = rows

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Entries:
        """Store them; returns what it was given, `(B, 1, 1, C)` and `(B, 1, 1, R)`."""
        keys, values = joined(key_states, value_states)
        for row, key, value in zip(self._rows, keys.split(1), values.split(1), strict=True):
            row.cache.extend(layer_idx, key, value)
        return key_states, value_states


@dataclass(frozen=True, slots=True)
class LatentRows:
    """One new token for each of several answers, row by row over its own cache, where it is by now: what the model made
    of the new tokens' latents is not used."""

    rows: Sequence[Decoding]
    layers: Sequence[Making]

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, softmax: Softmax, window: int | None
    ) -> Tensor:
        """One layer of the step; see `Plan`."""
        making, out = self.layers[layer], list[Tensor]()
        for row, own in zip(self.rows, query.split(1), strict=True):
            held = row.cache.slot_layers[row.cache.home(layer)]
            sight, packed = row.plan.sight(1, held.length, window), row.plan.packed
            entries = torch.cat([held.keys, held.values], -1)
            if packed is not None:
                unpacked = torch.cat(packed.of_layer(layer).entries(), -1)
                entries = torch.cat([unpacked[None].to(entries.dtype), entries], 2)
            out.append(making.attend(own, entries, sight.whole_mask(entries.shape[2] - held.length), softmax))
        return torch.cat(out)
