"""The one place that decides what runs: the PyTorch references, or the Triton kernels."""

from __future__ import annotations

import importlib.util
import os
from typing import Literal

import torch

Backend = Literal["torch", "triton"]

VARIABLE = "SAMKV_BACKEND"
_CHOICES = ("auto", "torch", "triton")
_OLDEST = (8, 0)


class BackendError(RuntimeError):
    """The backend that was asked for cannot run here; the text is a sentence that names the remedy."""


def choose(device: torch.device, wanted: str | None = None) -> Backend:
    """The backend for tensors on `device`.

    `wanted` is "auto", "torch" or "triton"; None takes it from the environment variable SAMKV_BACKEND, else "auto".
    "auto" is Triton on CUDA devices that can run it, else torch. Raises `BackendError` if Triton was asked for and
    cannot run: nothing falls back silently.
    """
    name = wanted if wanted is not None else os.environ.get(VARIABLE) or "auto"
    if name not in _CHOICES:
        raise BackendError(f"{name!r} is no backend; use 'auto', 'torch' or 'triton' (argument or {VARIABLE}).")
    if name == "torch":
        return "torch"
    obstacle = _obstacle(device)
    if obstacle is None and (name == "triton" or device.type == "cuda"):
        return "triton"
    if name == "triton":
        raise BackendError(f"The Triton kernels were asked for, but {obstacle}")
    return "torch"


def interpreting() -> bool:
    """True when Triton runs its kernels in Python, on tensors of any device (TRITON_INTERPRET=1): for tests."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def _obstacle(device: torch.device) -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed: pip install 'samkv-rag[triton]', or choose the backend 'auto'."
    if interpreting():
        return None
    if device.type != "cuda":
        return f"the model is on {device.type}: load it on a CUDA device, or choose the backend 'auto'."
    if torch.cuda.get_device_capability(device) < _OLDEST:
        return "this GPU is older than compute capability 8.0: choose the backend 'torch'."
    return None
