"""EPIC (LegoLink): all entries kept, the first tokens of every chunk but the first recomputed, whatever the question.

Hu et al., "EPIC: Efficient Position-Independent Caching for Serving Large Language Models", ICML 2025.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from samkv_rag.methods.prepared import Prepared
from samkv_rag.methods.run import Run
from samkv_rag.options import Count, Options
from samkv_rag.types import Selection


@dataclass(frozen=True)
class Epic(Options):
    """`tokens`: how many at the head of each chunk are recomputed (the paper uses up to 32)."""

    tokens: Count = 16

    name = "epic"

    def prepare(self, run: Run) -> Prepared:
        kept = tuple(torch.arange(length) for length in run.lengths)
        heads = tuple(tokens[: self.tokens if index else 0] for index, tokens in enumerate(kept))
        return run.recompute(Selection(kept, heads))
