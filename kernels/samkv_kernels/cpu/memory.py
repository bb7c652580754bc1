"""The memory that tensors lie in, as kernels for the CPU read it."""

from __future__ import annotations

from torch import Tensor


def in_rows(x: Tensor) -> bool:
    """Whether the last dimension is contiguous, and what lies before it a number of such rows apart."""
    return x.stride(-1) == 1 and all(step % x.shape[-1] == 0 for step in x.stride()[:-1]) and x.data_ptr() % 4 == 0


def table(x: Tensor) -> Tensor:
    """The rows of all the memory that `x`, which is `in_rows`, lies in, from its first one on: `(N, D)`."""
    return memory(x).view(-1, x.shape[-1])


def memory(x: Tensor) -> Tensor:
    """All the memory that `x` lies in, from its first number to its last one: `(N,)`."""
    last = sum((size - 1) * step for size, step in zip(x.shape, x.stride(), strict=True))
    return x.as_strided((last + 1,), (1,))
