"""Lack of memory: torch reports it in one way for a GPU and in another for the host."""

from __future__ import annotations

import torch

_ON_THE_HOST = "DefaultCPUAllocator"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there is too little memory, of a GPU or of the host."""
    host = isinstance(error, RuntimeError) and _ON_THE_HOST in str(error)
    return host or isinstance(error, torch.OutOfMemoryError | MemoryError)
