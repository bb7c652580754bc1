"""What the tests of references and kernels share: distances, tolerances, and the shapes that every kernel must take."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from samkv_kernels.backend import interpreting

# On a GPU everything runs there; without one, and not interpreting, the tests of kernels say that they need one.
DEVICE = "cpu" if interpreting() else "cuda"
NEEDS = [] if interpreting() else [pytest.mark.gpu]

TOLERANCE = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.2e-2}
"""Largest distance (`far`) by the dtype of the results: a few units in the last place."""


def far(got: Tensor, want: Tensor) -> float:
    """The largest difference, over the largest magnitude in `want`; infinite where `got` is NaN."""
    assert got.shape == want.shape
    if got.numel() == 0:
        return 0.0
    distance = (got.double() - want.double()).abs().max() / want.double().abs().max().clamp(min=1e-30)
    return float(distance.nan_to_num(torch.inf))


@contextmanager
def poisoned(device: str = DEVICE) -> Iterator[None]:
    """Within the block, memory that torch hands out is full of NaN."""
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    assert bool(torch.empty(9, device=device).isnan().all())
    yield
    torch.use_deterministic_algorithms(False)


@contextmanager
def on(number: int) -> Iterator[None]:
    """Within the block torch has so many threads, and they share whatever a kernel for the CPU does."""
    from samkv_kernels.cpu import threads

    before = torch.get_num_threads()
    torch.set_num_threads(number)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threads, "LEAST", 1)
        yield
    torch.set_num_threads(before)
