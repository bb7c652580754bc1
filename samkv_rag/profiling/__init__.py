"""Which layers of a model should choose tokens: measured, not guessed. `profile(engine, items)`."""

from __future__ import annotations

from samkv_rag.profiling.candidates import FEWEST
from samkv_rag.profiling.choice import LayerProfile, Outcome, Tried, profile
from samkv_rag.profiling.measure import Looked

__all__ = ["FEWEST", "LayerProfile", "Looked", "Outcome", "Tried", "profile"]
