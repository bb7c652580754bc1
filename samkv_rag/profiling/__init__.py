"""Which layers of a model should choose blocks: measured, not guessed. `profile(engine, items)`."""

from __future__ import annotations

from samkv_rag.profiling.choice import LayerProfile, Tried, profile
from samkv_rag.profiling.measure import Looked

__all__ = ["LayerProfile", "Looked", "Tried", "profile"]
