"""How far apart two ways to compute the same thing are."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor


def apart(found: Tensor, expected: Tensor) -> float:
    """RMS of the difference, relative to the RMS of what is `expected`."""
    return float((found - expected).square().mean().sqrt() / expected.square().mean().sqrt().clamp_min(1e-30))


def worst(errors: Iterable[float]) -> float:
    """The largest of some errors; NaN, which compares with nothing, before all others."""
    return max(errors, key=lambda error: (error != error, error))
