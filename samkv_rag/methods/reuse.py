"""Plain reuse: all chunk entries as they were stored, nothing recomputed. What chunk-wise caches cost in accuracy."""

from __future__ import annotations

from dataclasses import dataclass

from samkv_rag.methods.prepared import Prepared
from samkv_rag.methods.run import Run
from samkv_rag.types import Selection


@dataclass(frozen=True)
class Reuse:
    """Every chunk token kept, rotated to its position, none recomputed: chunks do not attend to each other."""

    name = "reuse"

    def prepare(self, run: Run) -> Prepared:
        return run.recompute(Selection.all_of(run.plan, recompute=False))
