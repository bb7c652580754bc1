"""The one place that decides what runs: the PyTorch references, or kernels by Triton for GPUs, by Numba for CPUs."""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable, Mapping
from typing import Literal

import torch

Backend = Literal["torch", "numba", "triton"]

VARIABLE = "SAMKV_BACKEND"
_OLDEST = (8, 0)


class BackendError(RuntimeError):
    """The backend that was asked for cannot run here; the text is a sentence that names the remedy."""


def choose(device: torch.device, wanted: str | None = None) -> Backend:
    """The backend for tensors on `device`.

    `wanted` is "auto", "torch", "numba" or "triton"; None takes it from the environment variable SAMKV_BACKEND, else
    "auto". That is Triton on CUDA devices and Numba on a CPU where they can run, else torch. Raises `BackendError` if
    one was asked for and cannot run: nothing falls back silently.
    """
    name = wanted if wanted is not None else os.environ.get(VARIABLE) or "auto"
    if name not in ("auto", "torch", *_OBSTACLES):
        raise BackendError(
            f"{name!r} is no backend; use 'auto', 'torch', 'numba' or 'triton' (argument or {VARIABLE})."
        )
    asked: Backend = _USUAL.get(device.type, "torch") if name == "auto" else name  # type: ignore[assignment]
    obstacle = None if asked == "torch" else _OBSTACLES[asked](device)
    if obstacle and name != "auto":
        raise BackendError(f"The kernels by {asked.capitalize()} were asked for, but {obstacle}")
    return "torch" if obstacle else asked


def without_triton(backend: Backend) -> Backend:
    """The backend of what has no kernel by Triton."""
    return "torch" if backend == "triton" else backend


def interpreting() -> bool:
    """True when Triton runs its kernels in Python, on tensors of any device (TRITON_INTERPRET=1): for tests."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def _no_triton(device: torch.device) -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed: pip install 'samkv-rag[triton]', or choose the backend 'auto'."
    if interpreting():
        return None
    if device.type != "cuda":
        return f"the model is on {device.type}: load it on a CUDA device, or choose the backend 'auto'."
    if torch.version.hip is not None:
        return "the kernels have been compiled and read for NVIDIA's GPUs alone: choose the backend 'torch'."
    if torch.cuda.get_device_capability(device) < _OLDEST:
        return "this GPU is older than compute capability 8.0: choose the backend 'torch'."
    return None


def _no_numba(device: torch.device) -> str | None:
    if device.type != "cpu":
        return f"the model is on {device.type}, and Numba compiles for the CPU: choose the backend 'auto'."
    if importlib.util.find_spec("numba") is None:
        return "numba is not installed: pip install 'samkv-rag[cpu]', or choose the backend 'auto'."
    try:
        for module in ("gathering", "packed", "rounding"):
            importlib.import_module(f"samkv_kernels.cpu.{module}")  # compiles the kernels, the first time
    except Exception as error:  # a Numba that does not go with this NumPy, or with this processor
        return f"numba cannot be used here ({error}): choose the backend 'auto'."
    return None


_USUAL: Mapping[str, Backend] = {"cuda": "triton", "cpu": "numba"}
_OBSTACLES: Mapping[str, Callable[[torch.device], str | None]] = {"triton": _no_triton, "numba": _no_numba}
