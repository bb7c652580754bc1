"""How far tensors lie apart in memory: where a kernel finds several of them that were not allocated together."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor


def apart(x: Tensor, first: Tensor) -> int:
    """How many elements `x` begins behind `first`, whoever allocated them."""
    return (x.data_ptr() - first.data_ptr()) // x.element_size()


def hint(steps: Iterable[int]) -> int:
    """What all steps are multiples of, as far as it counts: so many elements may be loaded at once."""
    return 16 if all(step % 16 == 0 for step in steps) else 1
