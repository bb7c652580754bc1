"""Full prefill of the plan's own token ids: the reference for every comparison."""

from __future__ import annotations

from dataclasses import dataclass

from samkv_rag.methods.prepared import Prepared
from samkv_rag.methods.run import Run


@dataclass(frozen=True)
class Full:
    """Nothing is reused; every prompt token is computed. "Same answer" always means: the same as this."""

    name = "full"

    def prepare(self, run: Run) -> Prepared:
        return run.prefill()
