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

from torch.nn import ModuleList

from samkv_rag.methods import Run
from samkv_rag.methods.costs import Pass
from samkv_rag.model.absorbed import Latents
from samkv_rag.model.adapter import ModelAdapter

ROUTED = ("num_experts_per_tok", "top_k_experts", "moe_topk")
"""What configs call the number of experts that a token is routed to."""


def answer_flops(run: Run) -> int:
    """Operations of all passes of `run` and of the first new token."""
    output = _weights(run.adapter.model.get_output_embeddings(), 1)
    return pass_flops(run.adapter, run.costs.passes) + 2 * output


def pass_flops(adapter: ModelAdapter, passes: Sequence[Pass]) -> int:
    """Operations of passes through the decoder's layers, without the output matrix."""
    layers, config = [part for layer in adapter.decoder.layers for part in _parts(layer)], adapter.config.__dict__
    chosen = next((config[name] for name in ROUTED if config.get(name)), 1)
    weights = [sum(_weights(module, chosen) for own in layer for module in own.modules()) for layer in layers]
    windows = [_window(adapter, layer) for layer in layers]
    ahead = sum(_weights(module, 1) for module in adapter.decoder.children() if hasattr(module, "in_features"))
    rows = sum(len(one.slots) for one in passes)
    return 2 * rows * ahead + sum(_one(adapter, one, weights, windows) for one in passes)


def _one(adapter: ModelAdapter, one: Pass, weights: Sequence[int], windows: Sequence[int | None]) -> int:
    shape, own, linear = adapter.shape, adapter.shape.cached().stop, 0
    absorbed = 0 if adapter.latents is None else _absorbed(adapter.latents, one)
    alike = Counter[tuple[bool, int | None, bool, int]]()
    for layer, (weight, window) in enumerate(zip(weights, windows, strict=True)):
        if layer < one.layers - one.ended:
            stack, cached = shape.stack_of(layer), layer < own
            linear += 2 * len(one.among(cached).slots) * weight
            alike[cached, window, one.narrowed(layer), stack.attended] += stack.heads
    attention = sum(
        2 * heads * _attended(one.among(cached), window, narrowed, width, absorbed or width)
        for (cached, window, narrowed, width), heads in alike.items()
    )
    if adapter.latents is not None:
        linear += _of_latents(adapter.latents, one, bool(absorbed))
    elif one.ended:
        hidden, last = adapter.model.get_input_embeddings().weight.shape[1], shape.stack_of(one.layers - 1)
        made = 2 * last.kv_heads if one.layers <= own else 0  # otherwise keys and values are another layer's
        linear += 2 * len(one.slots) * hidden * (last.heads + made) * last.head_dim
    return linear + attention


def _attended(one: Pass, window: int | None, narrowed: bool, width: int, absorbed: int) -> int:
    """How many numbers a query head of a layer attends to: `width` per token, or as many as `absorbed` where it attends
    to latents as they are."""
    inner, outer = one.parts
    if inner is None:
        return outer.pairs(window) * absorbed
    if not narrowed:
        return one.pairs(window) * width
    return inner.pairs(window) * width + outer.pairs(window) * absorbed


def _absorbed(latents: Latents, one: Pass) -> int:
    """How many numbers a query head attends to per token, if a pass attends to latents as they are, or those rows of it
    that no layer limits; else 0."""
    inner, asking = one.parts
    anyway = None if inner is None else len(inner.positions)
    if one.prefill or not latents.pays(len(asking.slots), len(one.positions), anyway):
        return 0
    return latents.layers[0].keys.shape[1] + latents.layers[0].values.shape[1]


def _of_latents(latents: Latents, one: Pass, absorbed: bool) -> int:
    """What layers make of the latents of tokens that the pass does not run, or of its queries and what these find; and
    what its last layer does if it ends."""
    rows, linear = len(one.slots), 0
    inner, asking = one.parts
    for layer in range(one.layers):
        absorbs = absorbed and (inner is None or one.narrowed(layer))
        if absorbs:
            making, ends = latents.layers[layer], one.ended and layer == one.layers - 1
            linear += 2 * len(asking.slots) * (making.keys.numel() + (0 if ends else making.values.numel()))
        made = len(one.positions) if not absorbs else rows if inner is None else len(inner.positions)
        linear += 2 * (made - rows) * _weights(latents.modules[layer].kv_b_proj, 1)
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


def _parts(layer: Any) -> list[list[Any]]:
    """The modules of a decoder layer by the attention that they run with: LongCat-Flash lists two of each in a layer,
    and what it has once runs with the first."""
    once, several = list[Any](), list[ModuleList]()
    for module in layer.children():
        (several if isinstance(module, ModuleList) else once).append(module)
    parts = [list(own) for own in zip(*several, strict=True)] or [[]]
    return [once + parts[0], *parts[1:]]


def _window(adapter: ModelAdapter, layer: Sequence[Any]) -> int | None:
    """The layer's sliding window: its attention module's own, or else the model's."""
    own = (part.sliding_window for one in layer for part in one.modules() if hasattr(part, "sliding_window"))
    window: int | None = next(own, adapter.config.__dict__.get("sliding_window"))
    return window
