"""What every launcher needs: the tensors' device as the current one, sizes as powers of two, the matrix unit's type."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.runtime.errors import OutOfResources

from samkv_kernels.backend import VARIABLE, BackendError, interpreting


class on_device:  # noqa: N801
    """Have launches within the block go to the device of `x` (Triton launches on the current one). Raises
    `BackendError` for a kernel that is too large for it."""

    def __init__(self, x: Tensor) -> None:
        self._device: AbstractContextManager[Any] = torch.cuda.device(x.device) if x.is_cuda else nullcontext()

    def __enter__(self) -> None:
        self._device.__enter__()

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self._device.__exit__(kind, error, trace)
        if isinstance(error, OutOfResources):
            raise BackendError(
                f"A kernel takes {error.required} of this GPU's {error.name}, which has {error.limit}: "
                f"{VARIABLE}=torch does without it."
            ) from error


def power_of_2(size: int, least: int = 1) -> int:
    """The smallest power of two that is no less than `size`, but at least `least`."""
    return max(least, int(triton.next_power_of_2(size)))


def dot_type(dtype: torch.dtype) -> Any:
    """The type of `tl.dot` operands: the tensors' own; fp32 for bf16 in the interpreter, which cannot multiply it."""
    if dtype == torch.bfloat16 and not interpreting():
        return tl.bfloat16
    return tl.float16 if dtype == torch.float16 else tl.float32


def require_one_device(first: Tensor, *others: Tensor) -> None:
    """Raise ValueError unless all tensors are on one device."""
    if strangers := {str(x.device) for x in others} - {str(first.device)}:
        raise ValueError(f"all tensors must be on {first.device}, but some are on {', '.join(sorted(strangers))}")
