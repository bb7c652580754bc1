"""CacheBlend: all entries kept; the tokens whose keys deviate most at an early layer are recomputed above it.

Yao et al., "CacheBlend: Fast Large Language Model Serving for RAG with Cached Knowledge Fusion", EuroSys 2025.
"""

from __future__ import annotations

from dataclasses import dataclass

from samkv_rag.methods.prepared import Prepared
from samkv_rag.methods.prophetkv import top_tokens
from samkv_rag.methods.run import Run
from samkv_rag.options import Count, Options, Share
from samkv_rag.types import Selection


@dataclass(frozen=True)
class CacheBlend(Options):
    """Recomputes `share` of all chunk tokens on every layer, and all of them up to the `check` layer, where the squared
    difference between new and stored keys decides which."""

    share: Share = 0.15
    check: Count = 1

    name = "cacheblend"

    def prepare(self, run: Run) -> Prepared:
        kept = Selection.all_of(run.plan).kept
        check = min(self.check, run.adapter.shape.cached().stop - 1)
        return run.recompute_checked(check, lambda moved, columns: top_tokens(kept, moved, columns, self.share))
