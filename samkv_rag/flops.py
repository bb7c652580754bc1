"""Floating-point operations of an answer up to its first new token, counted from the passes that really ran.

A multiplication and an addition are two operations. A pass of Q rows, row q attending to n_q tokens, costs per layer

    2 * Q * (elements of the layer's weight matrices)  +  4 * H * D * sum over q of n_q

(queries times keys, and weights times values, each 2 * H * D per pair). Of latents a layer makes keys and values anew,
for all tokens it attends to, not only for the Q, unless it attends to them as they are. A pass that ends early costs on
its last layer 2 * Q * hidden * (H + 2 G) * D. H, G and D are the layer's. The first token adds the output matrix once.
Not counted: norms, rotations, softmax, embeddings, and the scores that a selection computes for itself (`scored_bytes`
says what those read). Layers with a sliding window attend no further than their window. Of experts stored in one
tensor, as many count as a token is routed to. Matrices before the layers count for every row; a layer's values count as
if their matrix were not that of its keys (Gemma 4).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from samkv_rag.methods import Run
from samkv_rag.methods.costs import Pass
from samkv_rag.model.absorbed import Latents
from samkv_rag.model.adapter import ModelAdapter


def answer_flops(run: Run) -> int:
    """Operations of all passes of `run` and of the first new token."""
    output = _weights(run.adapter.model.get_output_embeddings(), 1)
    return pass_flops(run.adapter, run.costs.passes) + 2 * output


def pass_flops(adapter: ModelAdapter, passes: Sequence[Pass]) -> int:
    """Operations of passes through the decoder's layers, without the output matrix."""
    layers, config = list(adapter.decoder.layers), adapter.config.__dict__
    chosen = config.get("num_experts_per_tok") or config.get("top_k_experts") or 1
    weights = [sum(_weights(module, chosen) for module in layer.modules()) for layer in layers]
    windows = [_window(adapter, layer) for layer in layers]
    ahead = sum(_weights(module, 1) for module in adapter.decoder.children() if hasattr(module, "in_features"))
    rows = sum(len(one.slots) for one in passes)
    return 2 * rows * ahead + sum(_one(adapter, one, weights, windows) for one in passes)


def _one(adapter: ModelAdapter, one: Pass, weights: Sequence[int], windows: Sequence[int | None]) -> int:
    shape, own, linear = adapter.shape, adapter.shape.cached().stop, 0
    absorbed = 0 if adapter.latents is None else _absorbed(adapter.latents, one)
    alike = Counter[tuple[bool, int | None, bool]]()
    for layer, (weight, window) in enumerate(zip(weights, windows, strict=True)):
        if layer < one.layers - one.ended:
            stack, cached = shape.stack_of(layer), layer < own
            linear += 2 * len(one.among(cached).slots) * weight
            alike[cached, window, one.narrowed(layer)] += stack.heads * (absorbed or stack.attended)
    attention = sum(
        2 * width * one.among(cached).pairs(window, narrowed) for (cached, window, narrowed), width in alike.items()
    )
    if adapter.latents is not None:
        linear += _of_latents(adapter.latents, one, bool(absorbed))
    elif one.ended:
        hidden, last = adapter.model.get_input_embeddings().weight.shape[1], shape.stack_of(one.layers - 1)
        made = 2 * last.kv_heads if one.layers <= own else 0  # otherwise keys and values are another layer's
        linear += 2 * len(one.slots) * hidden * (last.heads + made) * last.head_dim
    return linear + attention


def _absorbed(latents: Latents, one: Pass) -> int:
    """How many numbers a query head attends to per token, if a pass attends to latents as they are; else 0."""
    if one.prefill or one.limited or not latents.pays(len(one.slots), len(one.positions)):
        return 0
    return latents.layers[0].keys.shape[1] + latents.layers[0].values.shape[1]


def _of_latents(latents: Latents, one: Pass, absorbed: bool) -> int:
    """What layers make of the latents of tokens that the pass does not run, or of its queries and what these find; and
    what its last layer does if it ends."""
    rows, linear = len(one.slots), 0
    for layer in range(one.layers):
        if absorbed:
            making, ends = latents.layers[layer], one.ended and layer == one.layers - 1
            linear += 2 * rows * (making.keys.numel() + (0 if ends else making.values.numel()))
        else:
            linear += 2 * (len(one.positions) - rows) * _weights(latents.modules[layer].kv_b_proj, 1)
    if one.ended:
        own = latents.modules[one.layers - 1]
        ahead = sum(_weights(part, 1) for part in own.children()) - _weights(own.o_proj, 1)
        linear += 2 * len(one.slots) * ahead
    return linear


def _weights(module: Any, chosen: int) -> int:
    """How many weights a token is multiplied by: a linear layer's, in however few bits; of experts in one tensor, those
    of the `chosen` ones."""
    if hasattr(module, "in_features"):
        return int(module.in_features * module.out_features)
    own = [weight for weight in module.parameters(recurse=False) if weight.ndim in (2, 3)]
    return sum(w.numel() if w.ndim == 2 else w[0].numel() * min(chosen, len(w)) for w in own)


def _window(adapter: ModelAdapter, layer: Any) -> int | None:
    """The layer's sliding window: its attention module's own, or else the model's."""
    own = (part.sliding_window for part in layer.modules() if hasattr(part, "sliding_window"))
    window: int | None = next(own, adapter.config.__dict__.get("sliding_window"))
    return window
