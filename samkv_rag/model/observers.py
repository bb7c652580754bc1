"""Observers of a pass: they get what every layer attends with, and what came of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from samkv_kernels.backend import Backend
from samkv_kernels.piecewise import piecewise_shares
from samkv_kernels.softmax import Softmax
from samkv_kernels.sparse_attention import Spans, attention_shares


@dataclass(frozen=True, slots=True)
class Observation:
    """What one layer attends with: rotated `query` `(B, H, Q, D)`, assembled `key` `(B, G, T, D)`, which keys each
    query attends to, how scores become weights. `shares` `(n, T)` are the weights of the last n queries of a batch of
    one, averaged over heads, where attending has computed them anyway. The pass has as many rows as `before` ahead of
    these queries, which attend to something else."""

    layer: int
    query: Tensor
    key: Tensor
    spans: Spans
    softmax: Softmax
    backend: Backend
    shares: Tensor | None = None
    before: int = 0

    def weights(self, rows: Tensor, spans: Spans | None = None) -> Tensor:
        """Softmax attention of some `rows` of the pass, averaged over heads: fp32 `(len(rows), T)` of the first in the
        batch. `spans` are those of the rows, where they are known."""
        rows = rows - self.before
        if self.shares is not None:
            return self.shares[rows - (self.query.shape[2] - len(self.shares))]
        query, spans = self.query[:1].index_select(2, rows), spans or self.spans.rows(rows)
        if query.device.type == "cpu" and self.backend != "triton":
            return piecewise_shares(query, self.key[:1], spans, self.softmax)[0]
        return attention_shares(query, self.key[:1], spans, self.softmax, self.backend)[0]


Observer = Callable[[Observation], None]


class Watcher(ABC):
    """An observer of weights: those of the query `rows` (sorted), on the layers that it `watches`."""

    def __init__(self, rows: Tensor) -> None:
        self.rows = rows
        self._spans: tuple[Spans, Spans] | None = None

    def __call__(self, seen: Observation) -> None:
        if self.watches(seen.layer):
            self.take(seen.weights(self.rows, self._own_spans(seen)))

    def _own_spans(self, seen: Observation) -> Spans | None:
        """The spans of the rows: layers share theirs, so these are made once per pass."""
        if seen.shares is not None:
            return None
        if self._spans is None or self._spans[0] is not seen.spans:
            self._spans = seen.spans, seen.spans.rows(self.rows - seen.before)
        return self._spans[1]

    @property
    @abstractmethod
    def kind(self) -> Hashable:
        """What identifies watchers that watch other rows in the same way."""

    @abstractmethod
    def watching(self, rows: Tensor) -> Self:
        """A watcher of the same kind for other rows."""

    @abstractmethod
    def watches(self, layer: int) -> bool:
        """Whether it wants the weights of this layer."""

    @abstractmethod
    def take(self, weights: Tensor) -> None:
        """Take in the weights `(len(rows), T)` of one layer."""

    @property
    @abstractmethod
    def found(self) -> Tensor:
        """The result from the weights of all layers, fp32 `(..., len(rows), T)`."""

    @abstractmethod
    def accept(self, found: Tensor) -> None:
        """Take over what a watcher of the same kind found for these rows, in a pass that it observed instead."""


class AttentionMaps(Watcher):
    """Gathers what the query `rows` of a pass attend to on `layers`."""

    def __init__(self, rows: Tensor, layers: Sequence[int]) -> None:
        super().__init__(rows)
        self._layers = layers
        self._maps: list[Tensor] = []

    @property
    def kind(self) -> Hashable:
        return type(self), tuple(self._layers)

    def watching(self, rows: Tensor) -> Self:
        return type(self)(rows, self._layers)

    def watches(self, layer: int) -> bool:
        return layer in self._layers

    def take(self, weights: Tensor) -> None:
        self._maps.append(weights)

    @property
    def found(self) -> Tensor:
        """Softmax attention over all slots, averaged over heads: fp32 `(len(layers), len(rows), T)`."""
        return torch.stack(self._maps)

    def accept(self, found: Tensor) -> None:
        self._maps = list(found)


class MeanAttention(Watcher):
    """Averages what the query `rows` of a pass attend to, over all layers that it observes."""

    def __init__(self, rows: Tensor) -> None:
        super().__init__(rows)
        self._sum: Tensor | None = None
        self._layers = 0

    @property
    def kind(self) -> Hashable:
        return type(self)

    def watching(self, rows: Tensor) -> Self:
        return type(self)(rows)

    def watches(self, layer: int) -> bool:
        return True

    def take(self, weights: Tensor) -> None:
        self._sum = weights if self._sum is None else self._sum + weights
        self._layers += 1

    @property
    def found(self) -> Tensor:
        """Softmax attention over all slots, averaged over heads and layers: fp32 `(len(rows), T)`."""
        if self._sum is None:
            raise ValueError("no layer of a pass has been seen")
        return self._sum / self._layers

    def accept(self, found: Tensor) -> None:
        self._sum, self._layers = found, 1
