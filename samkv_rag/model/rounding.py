"""How far apart two ways to compute the same thing are."""

from __future__ import annotations

from torch import Tensor


def apart(found: Tensor, expected: Tensor) -> float:
    """RMS of the difference, relative to the RMS of what is `expected`."""
    return float((found - expected).square().mean().sqrt() / expected.square().mean().sqrt().clamp_min(1e-30))
