"""The sizes of a model's cache: which layers have caches of one shape, and what a token takes in them."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Stack:
    """Layers that are alike, by their sorted numbers in the model: H query heads, G key/value heads of D dimensions."""

    layers: tuple[int, ...]
    heads: int
    kv_heads: int
    head_dim: int

    def within(self, layers: range) -> range:
        """The places in this stack of those of its layers that are among `layers`, a run of the model's."""
        return range(bisect_left(self.layers, layers.start), bisect_left(self.layers, layers.stop))


@dataclass(frozen=True, slots=True)
class Cut:
    """What a run of the model's layers has of one stack: the layers at `places` of the stack number `index`."""

    index: int
    stack: Stack
    places: range

    @property
    def layers(self) -> tuple[int, ...]:
        """Their numbers in the model."""
        return self.stack.layers[self.places.start : self.places.stop]


@dataclass(frozen=True, slots=True)
class KVShape:
    """What fixes a cache: its stacks, by their first layers, and the element size in bytes."""

    stacks: tuple[Stack, ...]
    itemsize: int

    @classmethod
    def of(cls, layers: Sequence[tuple[int, ...]], itemsize: int) -> KVShape:
        """The shape of layers with so many heads, key/value heads and head dimensions each."""
        alike: dict[tuple[int, ...], list[int]] = {}
        for number, sizes in enumerate(layers):
            alike.setdefault(sizes, []).append(number)
        return cls(tuple(Stack(tuple(numbers), *sizes[:3]) for sizes, numbers in alike.items()), itemsize)

    @property
    def layers(self) -> int:
        return sum(len(stack.layers) for stack in self.stacks)

    @property
    def bytes_per_token(self) -> int:
        values = sum(len(stack.layers) * stack.kv_heads * stack.head_dim for stack in self.stacks)
        return 2 * values * self.itemsize

    def cuts(self, layers: range) -> list[Cut]:
        """What `layers`, a run, have of each stack; stacks of which they have nothing are left out. Layers from 0 on
        have the first stacks."""
        found = (Cut(index, stack, stack.within(layers)) for index, stack in enumerate(self.stacks))
        return [cut for cut in found if cut.places]

    def stack_of(self, layer: int) -> Stack:
        """The stack that holds a layer."""
        return next(stack for stack in self.stacks if layer in stack.layers)
