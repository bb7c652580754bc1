"""The sizes of a model's cache: which layers have caches of one shape, and what a token takes in them."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Stack:
    """Layers whose caches are alike, by their sorted numbers in the model: H query heads, G key/value heads of D
    dimensions. `readers` are the layers that attend to them: themselves, and layers without a cache of their own. What
    a query head attends to has `attended` numbers per token, key and value: 2 D, unless latents are cached."""

    layers: tuple[int, ...]
    readers: tuple[int, ...]
    heads: int
    kv_heads: int
    head_dim: int
    attended: int

    def within(self, layers: range) -> range:
        """The places in this stack of its layers that are among `layers`, a run of the model's layers."""
        return range(bisect_left(self.layers, layers.start), bisect_left(self.layers, layers.stop))


@dataclass(frozen=True, slots=True)
class Cut:
    """The part of one stack that is in a run of the model's layers: those at `places` of stack number `index`."""

    index: int
    stack: Stack
    places: range

    @property
    def layers(self) -> tuple[int, ...]:
        """Their numbers in the model."""
        return self.stack.layers[self.places.start : self.places.stop]


@dataclass(frozen=True, slots=True)
class KVShape:
    """What determines a cache: its stacks, by their first layers; for every layer of the model the layer whose cache it
    attends to, usually itself; and the element size in bytes. Layers without a cache of their own come last."""

    stacks: tuple[Stack, ...]
    sources: tuple[int, ...]
    itemsize: int

    @classmethod
    def of(cls, sizes: Sequence[tuple[int, ...]], sources: Sequence[int], itemsize: int) -> KVShape:
        """The shape of caches whose layers have these `sizes`: heads, key/value heads, head dimensions, numbers
        attended to, and anything else that keeps layers apart."""
        alike: dict[tuple[int, ...], list[int]] = {}
        for layer, own in enumerate(sizes):
            alike.setdefault(own, []).append(layer)
        stacks = [
            Stack(tuple(layers), tuple(i for i, source in enumerate(sources) if source in layers), *own[:4])
            for own, layers in alike.items()
        ]
        return cls(tuple(stacks), tuple(sources), itemsize)

    @property
    def layers(self) -> int:
        """The number of layers of the model."""
        return len(self.sources)

    @property
    def shared(self) -> bool:
        """Whether some layers have no cache of their own."""
        return self.sources != tuple(self.cached())

    def cached(self, layers: range | None = None) -> range:
        """Those of `layers`, a run of the model's layers, that have a cache of their own; by default of all layers."""
        own = sum(len(stack.layers) for stack in self.stacks)
        return range(own) if layers is None else range(layers.start, min(layers.stop, own))

    @property
    def bytes_per_token(self) -> int:
        values = sum(len(stack.layers) * stack.kv_heads * stack.head_dim for stack in self.stacks)
        return 2 * values * self.itemsize

    def cuts(self, layers: range) -> list[Cut]:
        """The part of each stack that is in `layers`, a run; stacks without any are left out. Layers from 0 on have the
        first stacks."""
        found = (Cut(index, stack, stack.within(layers)) for index, stack in enumerate(self.stacks))
        return [cut for cut in found if cut.places]

    def readers(self, last_layer: int) -> list[tuple[int, ...]]:
        """By stack, the layers up to `last_layer` that attend to it; stacks that have none, the last ones, are left
        out."""
        found = [tuple(layer for layer in stack.readers if layer <= last_layer) for stack in self.stacks]
        return [layers for layers in found if layers]

    def stack_of(self, layer: int) -> Stack:
        """The stack that a layer attends to."""
        return next(stack for stack in self.stacks if layer in stack.readers)
