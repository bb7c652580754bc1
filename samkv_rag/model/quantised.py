"""Quantised weights: which of them compute a token the same way, whatever other tokens are computed with it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from samkv_rag.errors import UnsupportedModel
from samkv_rag.model.memory import is_out_of_memory
from samkv_rag.model.rounding import apart

ROWS, QUIET, PEAK, LOUD = 16, 0.05, 5.0, 100.0
TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-3, torch.bfloat16: 4e-3}
"""Allowed RMS difference, relative to the RMS: a different number of rows may use another kernel, which rounds
differently. A scale or a split of columns that depends on other rows makes many times that difference."""


def is_quantised(model: Any) -> bool:
    """Whether a model has weights of few bits, as far as transformers and its linear layers tell."""
    return getattr(model, "hf_quantizer", None) is not None or any(True for _ in _layers(model))


@torch.inference_mode()
def refuse_rows_that_mix(model: Any) -> None:
    """Raise `UnsupportedModel` when a linear layer's values for a token depend on the other tokens.

    A chunk is computed alone and read in any prompt, so its tokens must not depend on what else a pass computes.
    Weights of few bits are no obstacle, nor are inputs that are rounded token by token; a scale taken over all tokens
    of a pass is, and so are columns that become exceptions because of any of them (LLM.int8).
    """
    like = model.get_input_embeddings().weight
    found = ((_mixing(layer, like), name, type(layer).__name__) for name, layer in _layers(model))
    worst, name, kind = max(found, default=(0.0, "", ""))
    if not worst <= TOLERANCE.get(like.dtype, TOLERANCE[torch.bfloat16]):
        raise UnsupportedModel(
            f"{type(model).__name__} is quantised so that a token's values depend on what other tokens are computed "
            f"with it (by {worst:.1%} in {name}, a {kind}): a chunk's cache would not be what a prompt has. Keep "
            "inputs as they are, or rounded per token (4-bit NF4, GPTQ, AWQ, weight-only int8; of LLM.int8, "
            "llm_int8_threshold=0.0), or load it in bf16, fp16 or fp32."
        )


def _layers(model: Any) -> Iterator[tuple[str, Any]]:
    """The linear layers, by name, except those that multiply by a plain tensor."""
    for name, module in model.named_modules():
        if getattr(module, "in_features", None) is not None and not _is_plain(module):
            yield name, module


def _is_plain(layer: Any) -> bool:
    """Whether it multiplies by a tensor of 16 bits or more, by torch's own function."""
    own = type(layer).forward is nn.Linear.forward and "forward" not in vars(layer)
    return isinstance(layer, nn.Linear) and own and _has_plain_weights(layer)


def _has_plain_weights(layer: Any) -> bool:
    weights = [*layer.parameters(), *layer.buffers()]
    plain = all(type(weight) in (nn.Parameter, Tensor) and weight.dtype.itemsize > 1 for weight in weights)
    return bool(weights) and plain


def _mixing(layer: Any, like: Tensor) -> float:
    """How much rows change with what follows them, relative to their RMS.

    Each row has one value that decides its rounding, and the rest far below: rounding with another scale, or leaving a
    column unrounded, shows. What follows is loud in all columns. What is a linear layer only by its attributes, and has
    plain weights, is not our concern.
    """
    draw = torch.Generator().manual_seed(0)
    rows = QUIET * torch.randn(1, ROWS, int(layer.in_features), generator=draw)
    rows[0, torch.arange(ROWS), torch.randint(rows.shape[2], (ROWS,), generator=draw)] = PEAK
    alone, company = rows.to(like), (LOUD * rows.flip(1, 2)).to(like)
    try:
        expected: Tensor = layer(alone).float()
        found: Tensor = layer(torch.cat([alone, company], 1))[:, :ROWS].float()
        off = apart(found, expected)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        if _has_plain_weights(layer):
            return 0.0
        raise UnsupportedModel(f"A quantised {type(layer).__name__} could not be tried ({error}).") from error
    return math.inf if math.isnan(off) else off
