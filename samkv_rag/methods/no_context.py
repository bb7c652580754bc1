"""Control: the prompt without its chunks. What the model answers from the question alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from samkv_rag.methods.prepared import Prepared
from samkv_rag.methods.run import Run
from samkv_rag.types import Selection


@dataclass(frozen=True)
class NoContext:
    """Every chunk token dropped; the glue keeps its true positions."""

    name = "no_context"

    def prepare(self, run: Run) -> Prepared:
        nothing = tuple(torch.arange(0) for _ in run.lengths)
        return run.recompute(Selection(nothing, nothing))
