"""What is kept of a prompt in four bits per number, beside a cache of what is kept at full precision."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor

from samkv_kernels.backend import Backend
from samkv_kernels.packed import Packed
from samkv_kernels.sparse_attention import Spans
from samkv_rag.model.buffers import Buffers


@dataclass(frozen=True, slots=True)
class PackedTokens:
    """Packed tokens at `positions` `(N,)`, sorted, by layer of a cache. `sources` names, for every layer of the model,
    the layer whose entries it attends to, usually itself."""

    positions: Tensor
    layers: Sequence[Packed]
    sources: Sequence[int]

    @classmethod
    def of(
        cls, buffers: Iterable[Buffers], slots: Tensor, positions: Tensor, sources: Sequence[int],
        backend: Backend = "torch",
    ) -> PackedTokens:  # fmt: skip
        """Pack those at `slots` `(N,)` of a cache, one layer after another: that takes no more than a copy of one
        layer."""
        layers = {
            place: Packed.of(keys[0], values[0], slots, backend)
            for one in buffers
            for place, keys, values in one.by_layer()
        }
        return cls(positions, [layers[place] for place in sorted(layers)], sources)

    def of_layer(self, layer: int) -> Packed:
        """What a layer of the model attends to."""
        return self.layers[self.sources[layer]]

    def seen(self, queries: Tensor, window: int | None) -> Tensor | None:
        """What queries at positions `(Q,)`, after all packed tokens, attend to in a layer with this sliding window:
        bool `(Q, N)`; None: all."""
        if window is None:
            return None
        return Spans.causal(queries[None], self.positions[None], window).mask(len(self.positions))[0]

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values, and of what is needed to unpack them."""
        return sum(layer.nbytes for layer in self.layers)
