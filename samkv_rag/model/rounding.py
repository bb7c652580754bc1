"""How far apart two ways to compute the same thing are."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

_TOLERANCE = {torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 4e-2}


def apart(found: Tensor, expected: Tensor) -> float:
    """RMS of the difference, relative to the RMS of what is `expected`."""
    return float((found - expected).square().mean().sqrt() / expected.square().mean().sqrt().clamp_min(1e-30))


def alike(found: Tensor, expected: Tensor, rough: bool = False) -> bool:
    """Whether they are equal within the rounding of what is `expected`, or with `rough` of inputs to 8 bits."""
    share = _TOLERANCE.get(torch.bfloat16 if rough else expected.dtype, 1e-4)
    limit = share * (expected.float().abs().max().item() + 1e-3)
    return bool((found.float() - expected.float()).abs().max().item() < limit)


def worst(errors: Iterable[float]) -> float:
    """The largest of some errors; NaN, which compares with nothing, before all others."""
    return max(errors, key=lambda error: (error != error, error))
