"""The memory of caches: layers that are alike share one buffer for keys and one for values."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from samkv_rag.model.latent import side_by_side, whole
from samkv_rag.model.shape import Cut


@dataclass(frozen=True, slots=True)
class Buffers:
    """Keys and values `(L, G, T + room, D)` of the layers at `places` of a cache, to be processed at once."""

    keys: Tensor
    values: Tensor
    places: tuple[int, ...]

    @classmethod
    def of_halves(cls, entries: Tensor, places: tuple[int, ...]) -> Buffers:
        """Keys and values that lie side by side: the halves of `entries` `(L, G, T + room, 2 D)`."""
        keys, values = entries.chunk(2, -1)
        return cls(keys, values, places)

    @property
    def both(self) -> tuple[Tensor, Tensor]:
        return self.keys, self.values

    def layers(self, rows: range, below: int) -> Buffers:
        """Views of neighbouring layers, for a cache that has all layers but the lowest `below`."""
        keys, values = (buffer[rows.start : rows.stop] for buffer in self.both)
        return Buffers(keys, values, tuple(place - below for place in self.places[rows.start : rows.stop]))

    def slots(self, start: int, stop: int) -> Buffers:
        """Views of neighbouring slots."""
        return Buffers(self.keys[:, :, start:stop], self.values[:, :, start:stop], self.places)

    def at(self, slots: Tensor, room: int = 0) -> Buffers:
        """A copy of some slots `(K,)`, laid out in the same way, with room for more after them."""

        def picked(entries: Tensor) -> Tensor:
            out = entries.new_empty(*entries.shape[:2], len(slots) + room, entries.shape[3])
            torch.index_select(entries, 2, slots, out=out[:, :, : len(slots)])
            return out

        return self._copied(picked)

    def copied(self) -> Buffers:
        """A copy, laid out in the same way."""
        return self._copied(Tensor.clone)

    def _copied(self, copy: Callable[[Tensor], Tensor]) -> Buffers:
        if side_by_side(*self.both):
            return Buffers.of_halves(copy(whole(*self.both)), self.places)
        return Buffers(copy(self.keys), copy(self.values), self.places)

    def by_layer(self) -> Iterator[tuple[int, Tensor, Tensor]]:
        """The place of every layer, with views `(1, G, T, D)` of its keys and values."""
        return zip(self.places, *(buffer[:, None].unbind() for buffer in self.both), strict=True)


def room_for(
    cuts: Iterable[Cut], slots: int, below: int, dtype: torch.dtype, device: torch.device, halves: bool = False
) -> list[Buffers]:
    """Uninitialised buffers of `slots` slots for the layers of every cut, in a cache that has all of the model's layers
    but the lowest `below`. `halves`: with keys and values side by side."""
    out = []
    for cut in cuts:
        shape, places = (len(cut.layers), cut.stack.kv_heads, slots), tuple(layer - below for layer in cut.layers)
        if halves:
            entries = torch.empty(*shape, 2 * cut.stack.head_dim, dtype=dtype, device=device)
            out.append(Buffers.of_halves(entries, places))
        else:
            keys, values = (torch.empty(*shape, cut.stack.head_dim, dtype=dtype, device=device) for _ in range(2))
            out.append(Buffers(keys, values, places))
    return out
