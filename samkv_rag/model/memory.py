"""Memory that is not there: torch says so in one way of a GPU's and in another of the host's."""

from __future__ import annotations

import torch

_ON_THE_HOST = "DefaultCPUAllocator"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there is too little memory, of a GPU or of the host."""
    host = isinstance(error, RuntimeError) and _ON_THE_HOST in str(error)
    return host or isinstance(error, torch.OutOfMemoryError | MemoryError)
