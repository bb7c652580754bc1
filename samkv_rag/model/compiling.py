"""Norms and MLPs compiled by torch, where they stand: one launch for each instead of up to eight. `SAMKV_COMPILE=on`.

Of an 8B model's recompute of 830 tokens on an H200 products take 16 of 28 ms, norms, rotation and gating 10
(docs/benchmarks.md). Compiling takes seconds at the first prompts, which is why nobody gets it unasked.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from samkv_rag.errors import SamKVError

VARIABLE = "SAMKV_COMPILE"
KINDS = ("RMSNorm", "MLP")
"""How the classes are named whose modules are compiled: they look at nothing but what they are given."""


def wanted() -> bool:
    """Whether to compile, as SAMKV_COMPILE says: "on", or "off" (the default). Raises `SamKVError` on anything else."""
    choice = os.environ.get(VARIABLE) or "off"
    if choice not in ("on", "off"):
        raise SamKVError(f"{VARIABLE}={choice!r} is neither 'on' nor 'off'.")
    return choice == "on"


@contextmanager
def compiled(model: Any) -> Iterator[None]:
    """Within the block and behind it a model has its norms and MLPs compiled, if that is asked for; a block that fails
    leaves it as it was. Exactness is then that of the compiled model: it differs from the other one by rounding."""
    parts = compile_parts(model) if wanted() else []
    try:
        yield
    except BaseException:
        _undo(parts)
        raise


def compile_parts(model: Any) -> list[Any]:
    """Have a model's norms and MLPs compiled, for any number of tokens, when they first run; those that are already are
    left alone. Returns them. Raises `SamKVError` where torch cannot compile here; the model is then as it was."""
    named = [module for module in model.modules() if type(module).__name__.endswith(KINDS)]
    parts = [module for module in named if module._compiled_call_impl is None]
    for part in parts:
        part.compile(dynamic=True)
    try:
        _try(model)
    except Exception as error:
        _undo(parts)
        raise SamKVError(
            f"{VARIABLE}=on, but torch cannot compile here ({type(error).__name__}: {str(error)[:200]}). It needs a "
            "C++ compiler: install one, or do without."
        ) from error
    return parts


def _undo(parts: Sequence[Any]) -> None:
    for part in parts:
        part._compiled_call_impl = None  # as it is before `compile`


@torch.inference_mode()
def _try(model: Any) -> None:
    """Run a few tokens."""
    model(torch.zeros(1, 4, dtype=torch.long, device=model.get_input_embeddings().weight.device), use_cache=False)
