"""Send tensors to a device without waiting for them, where that is safe.

Only CUDA copies what the host has let go of in the meantime: told not to wait, MPS reads memory that may hold something
else by then, and says nothing (pytorch issue 189690).
"""

from __future__ import annotations

import torch
from torch import Tensor


def sent(x: Tensor, device: torch.device) -> Tensor:
    """Send `x` to a device while the host goes on. More than 64 KiB of pageable memory would be copied only once the
    device has done everything before it, and the host would wait for that."""
    return few(x.pin_memory() if device.type == "cuda" and x.device.type == "cpu" else x, device)


def few(x: Tensor, device: torch.device) -> Tensor:
    """The same for at most 64 KiB, which CUDA copies from where they are."""
    return x.to(device, non_blocking=device.type == "cuda")
