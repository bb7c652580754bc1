"""Compare decoding step by step, after packed tokens, with one pass over the same tokens unpacked.

Steps have kernels of their own, and so do packed tokens; none of these is run here for the expected result.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from samkv_kernels.softmax import Softmax
from samkv_kernels.sparse_attention import masked_attention
from samkv_rag.model.adapter import ModelAdapter
from samkv_rag.model.attention import AttentionPlan
from samkv_rag.model.decoding import Decoding
from samkv_rag.model.rounding import apart
from samkv_rag.model.rules import Rules

STEPS = 6
"""Tokens that are decoded: at the second, the prompt may be settled and packed."""


@torch.inference_mode()
def decode_error(adapter: ModelAdapter, begin: Callable[..., Decoding]) -> float:
    """The RMS difference between the scores that choose the later of `STEPS` tokens and those of one pass, relative to
    the latter. `begin` begins an answer, with room for that many tokens, by what `generate()` takes; two are decoded
    together."""
    heard, greedily = _Heard(), dict.fromkeys(("max_length", "temperature", "top_p", "top_k"))
    greedily |= {"max_new_tokens": STEPS, "min_new_tokens": STEPS, "do_sample": False, "num_beams": 1}
    begun, beside = begin(logits_processor=LogitsProcessorList([heard]), **greedily), begin(**greedily)
    while not begun.ended:
        adapter.loop.step([begun, beside])
    count = len(begun.result()) - 2
    prompt, start = begun.ids.shape[1] - count - 2, begun.cache.get_seq_length() - count
    begun.cache.crop_to(start)
    places, plan = begun.cache.positions, Unpacked(begun.cache.positions, packed=begun.cache.packed)
    logits = adapter.forward(begun.ids[0, prompt + 1 : -1], places[start : start + count], begun.cache, plan, count)
    processors = Rules.of(adapter.model, begun.ids[:, :prompt], **greedily).processors
    rows = enumerate(logits[0].split(1), prompt + 2)  # type: ignore[index]
    expected = torch.cat([processors(begun.ids[:, :stop], row) for stop, row in rows])  # type: ignore[arg-type]
    allowed = expected.isfinite()
    return apart(torch.cat(heard.scores[2:])[allowed], expected[allowed])


class _Heard(LogitsProcessor):
    """Records the `scores`, each `(1, vocab)`, by which tokens are chosen."""

    def __init__(self) -> None:
        self.scores: list[Tensor] = []

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        self.scores.append(scores.clone())
        return scores


class Unpacked(AttentionPlan):
    """Attends to packed tokens by their unpacked entries, placed before the others."""

    def attended(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, softmax: Softmax, window: int | None,
        shares: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """The attention itself, by the reference where anything is packed."""
        if self.packed is None:
            return super().attended(layer, query, key, value, softmax, window, shares)
        keys, values = self.packed.of_layer(layer).entries()
        sight = self.sight(query.shape[2], key.shape[2], window)
        seen = query.new_ones(query.shape[2], keys.shape[1], dtype=torch.bool) if sight.packed is None else sight.packed
        mask = torch.cat([seen, sight.spans.mask(key.shape[2])[0]], 1)
        both = torch.cat([keys[None], key.float()], 2), torch.cat([values[None], value.float()], 2)
        return masked_attention(query, *both, mask, softmax)
