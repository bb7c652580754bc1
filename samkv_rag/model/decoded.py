"""Compare decoding step by step, after packed tokens, with one pass over the same tokens unpacked.

Steps have kernels of their own, and so do packed tokens; none of these is run here for the expected result.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from samkv_rag.model.adapter import ModelAdapter
from samkv_rag.model.cache import SlotCache
from samkv_rag.model.decoding import Decoding, Settling, take
from samkv_rag.model.rounding import apart, worst
from samkv_rag.model.rules import Rules
from samkv_rag.model.unpacked import UnpackedPlan

STEPS = 8
"""The most tokens that are decoded: at the second, the prompt may be settled and packed."""


class Heard(LogitsProcessor):
    """Records the `scores`, each `(1, vocab)`, by which tokens are chosen."""

    def __init__(self) -> None:
        self.scores: list[Tensor] = []

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        self.scores.append(scores.clone())
        return scores


Answer = tuple[Decoding, Heard]


@torch.inference_mode()
def begun(tokens: Tensor, cache: SlotCache, logits: Tensor, settling: Settling | None, count: int) -> Answer:
    """An answer of `count` tokens, at least 3: the likeliest ones, whatever the model's generation config says."""
    heard = Heard()
    rules = Rules(LogitsProcessorList([heard]), (), (), frozenset(), False, len(tokens) + count)
    decoding = Decoding(tokens[None], cache, rules, settling=settling)
    take([decoding], logits[None])
    return decoding, heard


@torch.inference_mode()
def decode_error(adapter: ModelAdapter, answers: Sequence[Answer]) -> float:
    """The largest RMS difference between the scores of answers that are decoded together, from the third token on, and
    those of one pass over each, relative to the latter. Raises what goes wrong in a step."""
    left = [decoding for decoding, _ in answers]
    while left := [decoding for decoding in left if not decoding.ended]:
        due = [decoding for decoding in left if decoding.due]
        if due:
            adapter.loop.step(due)
        else:
            adapter.loop.together(left)
    return worst(_error(adapter, *answer) for answer in answers)


def _error(adapter: ModelAdapter, decoding: Decoding, heard: Heard) -> float:
    """The error of one answer, which has ended."""
    count, cache = len(decoding.result()) - 2, decoding.cache
    start = cache.get_seq_length() - count
    cache.crop_to(start)
    places = cache.positions[start : start + count]
    plan = UnpackedPlan(cache.positions, packed=cache.packed, latents=adapter.latents)
    logits = adapter.forward(decoding.ids[0, -count - 1 : -1], places, cache, plan, count)
    return apart(torch.cat(heard.scores[2:]), logits[0])  # type: ignore[index]
