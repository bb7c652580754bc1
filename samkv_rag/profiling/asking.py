"""Many questions, each measured in several ways over its own chunks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from samkv_rag.calls import check_fits
from samkv_rag.engine import SamKVEngine
from samkv_rag.errors import SamKVError
from samkv_rag.eval.items import Item
from samkv_rag.model.generation import GenerationOptions
from samkv_rag.profiling.answers import ANSWER_TOKENS
from samkv_rag.store import ChunkKVStore
from samkv_rag.types import PromptPlan

T = TypeVar("T")
Measure = Callable[[SamKVEngine, PromptPlan, int], T]
"""Called with an engine whose store holds the chunks of a question, the question's plan, and its number."""
Progress = Callable[[str, int, int], None]
"""Called with what is being done, how many of its measurements have been made, and how many there will be."""


def can_be_asked(engine: SamKVEngine, item: Item, most: int = ANSWER_TOKENS) -> bool:
    """Whether a question has passages, and a prompt that fits the model with an answer of `most` tokens."""
    if not any(chunk.strip() for chunk in item.chunks):
        return False
    try:
        plan = engine.plan_question(item.question, item.chunks)
        check_fits(plan, GenerationOptions(max_new_tokens=most), engine.adapter.config)
    except SamKVError:
        return False
    return True


@dataclass(frozen=True, slots=True)
class Asking:
    """The questions `items`, for the model of `engine`."""

    engine: SamKVEngine
    items: Sequence[Item]
    progress: Progress

    def each(self, doing: str, measures: Sequence[Measure[T]]) -> list[list[T]]:
        """For every one of the `measures`, what it found for every question.

        A question's chunks are computed into a store of their own, closed before the next question's is opened: those
        of many would not fit into memory together. What is found does not depend on what was asked before.
        """
        with self.engine.adapter.unacquainted(room=0):
            return self._each(doing, measures)

    def _each(self, doing: str, measures: Sequence[Measure[T]]) -> list[list[T]]:
        found: list[list[T]] = [[] for _ in measures]
        done, total = 0, len(measures) * len(self.items)
        for number, item in enumerate(self.items):
            with ChunkKVStore() as store, SamKVEngine(self.engine.source, store) as own:
                own.precompute(item.chunks)
                plan = own.plan_question(item.question, item.chunks)
                for measure, column in zip(measures, found, strict=True):
                    self.progress(doing, done, total)
                    column.append(measure(own, plan, number))
                    done += 1
        self.progress(doing, done, total)
        return found
