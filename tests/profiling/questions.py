"""Questions for a tiny model that reads bytes."""

from __future__ import annotations

from samkv_rag import SamKVEngine
from samkv_rag.eval.items import Item
from samkv_rag.types import PromptPlan

CHUNKS = (
    "Lumen Labs is a company in Oslo that was founded in 1987 by Ana Petrov. It makes solar lamps.",
    "Ana Petrov studied chemistry in Bergen, and later in Oslo.",
    "The company then moved to the coast, where it keeps a museum of old lamps.",
)
ITEM = Item("t-0", "t", "Where is Lumen Labs based?", ("Oslo",), CHUNKS)
ITEMS = [ITEM, Item("t-1", "t", "Who founded it?", ("Ana Petrov",), CHUNKS[::-1])]


def planned(engine: SamKVEngine, item: Item = ITEM) -> PromptPlan:
    """The question's prompt, its chunks stored."""
    engine.precompute(item.chunks)
    return engine.plan_question(item.question, item.chunks)
