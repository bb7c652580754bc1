"""How far apart tensors are in memory: where a kernel finds several that were not allocated together."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor


def apart(x: Tensor, first: Tensor) -> int:
    """How many elements after `first` `x` begins, however they were allocated."""
    return (x.data_ptr() - first.data_ptr()) // x.element_size()


def hint(steps: Iterable[int]) -> int:
    """A common divisor of all steps, as far as it matters: that many elements may be loaded at once."""
    return 16 if all(step % 16 == 0 for step in steps) else 1
