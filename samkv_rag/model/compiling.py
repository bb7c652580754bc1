"""Norms and MLPs compiled by torch, where they stand: one launch for each instead of up to eight. `SAMKV_COMPILE=on`.

Of an 8B model's recompute of 830 tokens on an H200 products take 16 of 28 ms, norms, rotation and gating 10
(docs/benchmarks.md). Compiling takes seconds at the first prompts, which is why nobody gets it unasked.
"""

from __future__ import annotations

import os
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


def compile_parts(model: Any) -> int:
    """Have a model's norms and MLPs compiled, for any number of tokens, when they first run: how many there are. Raises
    `SamKVError` where torch cannot compile here; the model is then as it was."""
    parts = [module for module in model.modules() if type(module).__name__.endswith(KINDS)]
    for part in parts:
        part.compile(dynamic=True)
    try:
        _try(model)
    except Exception as error:
        for part in parts:
            part._compiled_call_impl = None  # as it is before `compile`
        raise SamKVError(
            f"{VARIABLE}=on, but torch cannot compile here ({type(error).__name__}: {str(error)[:200]}). It needs a "
            "C++ compiler: install one, or do without."
        ) from error
    return len(parts)


@torch.inference_mode()
def _try(model: Any) -> None:
    """Run a few tokens."""
    model(torch.zeros(1, 4, dtype=torch.long, device=model.get_input_embeddings().weight.device), use_cache=False)
