"""A cache of numbered slots: written in place during recompute, appended to during decoding.

One preallocated buffer per layer serves both phases: no concatenation per step, and dropped tokens are not in it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache

from samkv_kernels.backend import Backend
from samkv_kernels.sending import few, sent
from samkv_rag.model.blending import Blend
from samkv_rag.model.buffers import Buffers
from samkv_rag.model.packing import PackedTokens

Entries = tuple[Tensor, Tensor]
"""Keys and values of one layer."""


class GrowingCache(DynamicCache):
    """transformers' own cache, which starts empty. torch.compile does not look into it: it would make a version for
    every layer."""

    update = torch.compiler.disable(DynamicCache.update)


class SlotLayer(CacheLayerMixin):
    """One layer of a `SlotCache`. `update` writes to the slots being recomputed, else to the next free ones."""

    is_sliding = False
    is_compileable = False

    def __init__(self) -> None:
        self.is_initialized = False  # the base class would also set keys and values, which follow from the length here
        self.length = 0
        self._shown: tuple[Tensor, Tensor] | None = None
        self.slots: Tensor | None = None
        self.rows: Tensor | None = None
        self.blend: Blend | None = None

    def bind(self, keys: Tensor, values: Tensor) -> None:
        """Use `(1, G, T + room, D)` as buffers from now on; how much of them is live is set next (`length`)."""
        self._keys, self._values, self._shown = keys, values, None
        self.lazy_initialization(keys, values)

    @property
    def keys(self) -> Tensor:  # type: ignore[override]
        """The live keys `(1, G, T, D)`."""
        return self._live()[0]

    @property
    def values(self) -> Tensor:  # type: ignore[override]
        """The live values `(1, G, T, D)`."""
        return self._live()[1]

    def _live(self) -> tuple[Tensor, Tensor]:
        """The live views, made when they are first read: a replayed step only sets how long the cache is."""
        if self._shown is None or self._shown[0].shape[2] != self.length:
            self._shown = self._keys[:, :, : self.length], self._values[:, :, : self.length]
        return self._shown

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.dtype, self.device, self.is_initialized = key_states.dtype, key_states.device, True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Store new `(1, G, Q, D)` keys and values; returns the live `(1, G, T, D)` view the model attends to."""
        if self.slots is None:
            self._append(key_states, value_states)
        else:
            self._overwrite(key_states, value_states, self.slots)
        return self._live()

    @property
    def buffers(self) -> tuple[Tensor, Tensor]:
        """The whole buffers `(1, G, T + room, D)`."""
        return self._keys, self._values

    @property
    def place(self) -> tuple[int, int]:
        """Where the keys' buffer begins and how many slots it has."""
        return self._keys.data_ptr(), self._keys.shape[2]

    def _append(self, keys: Tensor, values: Tensor) -> None:
        self.require_room(keys.shape[2])
        start, self.length = self.length, self.length + keys.shape[2]
        self._keys[:, :, start : self.length] = keys
        self._values[:, :, start : self.length] = values

    def require_room(self, count: int) -> None:
        """Raise ValueError unless `count` more tokens fit."""
        if self.length + count > self._keys.shape[2]:
            raise ValueError(f"the cache is full: {self.length + count} tokens, room for {self._keys.shape[2]}")

    def _overwrite(self, keys: Tensor, values: Tensor, slots: Tensor) -> None:
        if self.blend is not None:
            keys = self.blend.mix(keys, self._keys[:, :, slots])
            values = self.blend.mix(values, self._values[:, :, slots])
        if self.rows is not None:
            slots, keys, values = slots[self.rows], keys[:, :, self.rows], values[:, :, self.rows]
        for buffer, new in ((self._keys, keys), (self._values, values)):
            buffer.index_copy_(2, slots, new if new.dtype == buffer.dtype else new.to(buffer.dtype))

    def snapshot(self) -> tuple[Tensor, Tensor]:
        """A copy of the live keys and values `(1, G, T, D)`."""
        keys, values = self._live()
        return keys.clone(), values.clone()

    def restore(self, stored: tuple[Tensor, Tensor]) -> None:
        """Put back a snapshot of the same length."""
        for live, copy in zip(self._live(), stored, strict=True):
            live.copy_(copy)

    def crop(self, max_length: int) -> None:
        """Forget the slots from `max_length` on (negative: that many from the end, as in transformers)."""
        self.length = max_length if max_length >= 0 else self.length + max_length

    def get_seq_length(self) -> int:
        return self.length

    def get_max_length(self) -> int:
        return int(self._keys.shape[2])

    def get_max_cache_shape(self) -> int:
        return int(self._keys.shape[2])

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.length + (query_length if self.slots is None else 0), 0


class SlotCache(Cache):
    """Kept tokens of a prompt at their true positions, with room to decode.

    `buffers` together have all its layers, with keys already turned to `positions` `(T,)`, which are sorted; the cache
    takes them over. The cache's `positions` cover the free slots too: they run on from the prompt's last position.
    `sources` names, for every layer of the model, the layer whose entries it attends to, usually itself.
    """

    def __init__(self, buffers: Sequence[Buffers], positions: Tensor, sources: Sequence[int]) -> None:
        keys = buffers[0].keys
        room = keys.shape[2] - len(positions)
        self.slot_layers = [SlotLayer() for one in buffers for _ in one.places]
        super().__init__(layers=list(self.slot_layers))
        last = int(positions[-1]) + 1 if len(positions) else 0
        reaching = torch.cat([positions, torch.arange(last, last + room, device=positions.device)])
        self.positions = sent(reaching, keys.device)
        self._buffers, self._sources = list(buffers), sources
        self.packed: PackedTokens | None = None
        self._coming = deque[tuple[int, Callable[[], None]]]()
        self._bind()
        self.crop_to(len(positions))

    def _bind(self) -> None:
        for one in self._buffers:
            for place, keys, values in one.by_layer():
                self.slot_layers[place].bind(keys, values)

    def later(self, place: int, fill: Callable[[], None]) -> None:
        """Have `fill` called before the layer at `place`, or one above it, is read; places are given in order."""
        self._coming.append((place, fill))

    def arrive(self, place: int | None = None) -> None:
        """Fill the layers up to `place`, by default all, that are still to be filled; after a failure, none of them."""
        while self._coming and (place is None or self._coming[0][0] <= place):
            fill = self._coming.popleft()[1]
            try:
                fill()
            except BaseException:
                self._coming.clear()  # the fill functions lead back to this cache
                raise

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Store a layer's new entries, once it is filled; see `SlotLayer.update`."""
        self.arrive(layer_idx)
        return super().update(key_states, value_states, layer_idx, *args, **kwargs)

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """What a layer of the model attends to, `(1, G, T, D)`; its new entries `(1, G, Q, D)` are stored first if it
        has a cache of its own."""
        own = self.slot_layers[self.home(layer)]
        return own.update(keys, values) if self.home(layer) == layer else (own.keys, own.values)

    def home(self, layer: int) -> int:
        """The layer whose entries a layer of the model attends to, usually itself."""
        return self._sources[layer]

    @contextmanager
    def writing(
        self, slots: Tensor, rows: Sequence[Tensor | None] | None = None, blend: Blend | None = None
    ) -> Iterator[None]:
        """Within the block the model's new entries go to `slots` `(Q,)`.

        `rows[layer]` (bool `(Q,)`) restricts which of them that layer stores; `blend` mixes instead of overwriting.
        """
        for index, layer in enumerate(self.slot_layers):
            layer.slots, layer.blend = slots, blend
            layer.rows = rows[index] if rows is not None else None
        try:
            yield
        finally:
            for layer in self.slot_layers:
                layer.slots = layer.rows = layer.blend = None

    @contextmanager
    def restoring(self, slots: Tensor) -> Iterator[None]:
        """Restore, after the block, what was in `slots` `(Q,)` before it."""
        self.arrive()
        stood = [[buffer.index_select(2, slots) for buffer in one.both] for one in self._buffers]
        try:
            yield
        finally:
            for one, old in zip(self._buffers, stood, strict=True):
                for buffer, entries in zip(one.both, old, strict=True):
                    buffer.index_copy_(2, slots, entries)

    def keep(self, slots: Tensor, packed: Tensor | None = None, backend: Backend = "torch") -> None:
        """Forget all tokens but those at `slots` `(K,)` and those at `packed` `(N,)`, both sorted, none in both. The
        latter are held in four bits per number and no longer have slots. Positions do not change, nor does the room
        after the slots."""
        if len(slots) == self.get_seq_length():
            return  # everything is kept: no copy of it all
        self.arrive()
        four_bits = None
        if packed is not None and len(packed):
            live = [one.slots(0, self.get_seq_length()) for one in self._buffers]
            four_bits = PackedTokens.of(live, packed, self.positions[packed], self._sources, backend)
        stays, free = few(slots, self.positions.device), self.positions[self.get_seq_length() :]
        kept = [one.at(stays, len(free)) for one in self._buffers]
        self.positions, self._buffers = torch.cat([self.positions[stays], free]), kept  # once there was memory for all
        self.packed = four_bits or self.packed
        self._bind()
        self.crop_to(len(slots))

    def move(self) -> None:
        """Continue in memory of its own, no longer in what was borrowed."""
        self.arrive()
        length = self.get_seq_length()
        self._buffers = [one.copied() for one in self._buffers]
        self._bind()
        self.crop_to(length)

    def deepen(self, other: SlotCache) -> None:
        """Take over the layers of `other`, a cache of the same tokens, above its own."""
        below = len(self.slot_layers)
        self.slot_layers += other.slot_layers
        self.layers += other.slot_layers
        self._buffers += [replace(one, places=tuple(below + place for place in one.places)) for one in other._buffers]
        self._coming += [(below + place, fill) for place, fill in other._coming]

    def require_room(self, count: int) -> None:
        """Raise ValueError unless `count` more tokens fit: all layers have the same room."""
        self.slot_layers[0].require_room(count)

    def clear_room(self) -> None:
        """Fill what follows the live slots with zeros: a weight of 0 does not cancel a NaN."""
        for one in self._buffers:
            for buffer in one.both:
                buffer[:, :, self.get_seq_length() :] = 0

    def crop_to(self, length: int) -> None:
        """Forget the slots from `length` on."""
        for layer in self.slot_layers:
            layer.length = length

    @property
    def nbytes(self) -> int:
        """Bytes of the live keys and values, and of packed ones."""
        live = sum(x.nbytes for one in self._buffers for x in one.slots(0, self.get_seq_length()).both)
        return live + (self.packed.nbytes if self.packed is not None else 0)
