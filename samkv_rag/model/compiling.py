"""Compile the parts of layers with torch, in place: what they do between their products takes one launch instead of up
to ten. `SAMKV_COMPILE=on`.

When an 8B model recomputes 830 tokens on an H200, products take 16 of 28 ms; norms, rotation and gating take 10
(docs/gpu.md). Compiling takes seconds at the first prompts, so it is off by default.

What stores entries and attends is never compiled (`torch.compiler.disable`, where it is defined): it asks for the
pass's plan, which no two passes share. Layers of one kind share what is compiled.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from samkv_rag.errors import SamKVError
from samkv_rag.options import of_environment

VARIABLE = "SAMKV_COMPILE"
KINDS = ("RMSNorm", "MLP", "Attention")
"""Endings of the names of classes whose modules are compiled."""
VERSIONS = 64
"""Of the same code: for one token and several, with a cache and without, for layers that slide, have norms, share."""


def compile_if_wanted(model: Any) -> None:
    """Have a model's parts compiled if SAMKV_COMPILE says so: "on" or "off" (the default). Raises `SamKVError` on
    anything else."""
    if of_environment(VARIABLE, "off", "on") == "on":
        compile_parts(model)


def compile_parts(model: Any, backend: str = "inductor") -> None:
    """Have the parts of a model's layers compiled when they first run, for any number of tokens; those already compiled
    are left alone. Raises `SamKVError` where torch cannot compile; the model is then unchanged.

    Exactness then refers to the compiled model, which differs from the other one by rounding. The setting that layer
    numbers make no versions of their own is process-wide.
    """
    torch._dynamo.config.allow_unspec_int_on_nn_module = True
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, VERSIONS)
    named = [module for module in model.modules() if type(module).__name__.endswith(KINDS)]
    parts = [module for module in named if module._compiled_call_impl is None]
    try:
        for part in parts:
            part.compile(dynamic=True, backend=backend)
        _try(model)
    except Exception as error:
        _undo(parts)
        raise SamKVError(
            f"{VARIABLE}=on, but torch cannot compile here ({type(error).__name__}: {str(error)[:200]}). It needs a "
            "C++ compiler: install one, or do without."
        ) from error


def _undo(parts: Sequence[Any]) -> None:
    for part in parts:
        part._compiled_call_impl = None  # as it is before `compile`


@torch.inference_mode()
def _try(model: Any) -> None:
    """Run a few tokens."""
    model(torch.zeros(1, 4, dtype=torch.long, device=model.get_input_embeddings().weight.device), use_cache=False)
