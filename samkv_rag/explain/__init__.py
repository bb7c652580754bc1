"""Look inside: what each method kept of every chunk, and what it answered. `explain(engine, question, chunks)`."""

from __future__ import annotations

from samkv_rag.explain.views import Explanation, explain

__all__ = ["Explanation", "explain"]
