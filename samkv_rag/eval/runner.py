"""Every question under every setting, question by question, so that what a killed run has answered is paired."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from samkv_rag.accounting import ids_digest
from samkv_rag.calls import check_fits
from samkv_rag.engine import SamKVEngine
from samkv_rag.errors import SamKVError
from samkv_rag.eval.items import Item
from samkv_rag.eval.metrics import exact_match, token_f1
from samkv_rag.eval.records import SKIPPED, Record, Records
from samkv_rag.eval.settings import Setting
from samkv_rag.eval.sources import Drawing, Source
from samkv_rag.eval.tasks import TASKS
from samkv_rag.model.generation import GenerationOptions
from samkv_rag.types import Answer

ANSWER_TOKENS = 16
Advance = Callable[[str, int], None]
"""Called with the source's name and how many of its answers are done."""


@dataclass(frozen=True)
class Evaluation:
    """What is to be answered. With `max_new_tokens` None: 16, or what a generated task needs."""

    sources: Sequence[Source]
    settings: Sequence[Setting]
    drawing: Drawing
    max_new_tokens: int | None = None

    def __post_init__(self) -> None:
        names = [source.name for source in self.sources]
        if twice := {name for name in names if names.count(name) > 1}:
            raise SamKVError(f"Two sources are called {twice.pop()}; rename one file, the name heads its table.")

    def room(self, source: Source) -> int:
        """How many tokens an answer may have."""
        task = TASKS.get(source.spec)
        return self.max_new_tokens or (task.answer_tokens if task else ANSWER_TOKENS)


def evaluate(engine: SamKVEngine, wanted: Evaluation, records: Records, advance: Advance) -> None:
    """Answer what `records` does not hold yet. The chunks of a question are cached once and forgotten after it."""
    for source in wanted.sources:
        for item in source.items(wanted.drawing):
            open_ones = [s for s in wanted.settings if (item.id, s.label) not in records.done]
            if open_ones and (item.id, SKIPPED) not in records.done:
                records.append(_answered(engine, item, open_ones, wanted.room(source), records.digests.get(item.id)))
            advance(source.name, len(wanted.settings))


def _answered(
    engine: SamKVEngine, item: Item, settings: Sequence[Setting], room: int, digest: str | None
) -> list[Record]:
    keys: list[str] = []
    try:
        try:
            keys = engine.precompute(item.chunks)
            plan = engine.plan_question(item.question, item.chunks)
            check_fits(plan, GenerationOptions(max_new_tokens=room), engine.adapter.config)
        except SamKVError as error:  # too long for the model: the question is counted, not answered
            return [{"id": item.id, "task": item.task, "setting": SKIPPED, "why": str(error)}]
        expected = ids_digest(plan.token_ids)
        if digest not in (None, expected):
            raise SamKVError(f"{item.id} is no longer the prompt that was answered before; use a new folder for --out.")
        return list(_answers(engine, item, [(s, s.method(plan)) for s in settings], room, expected))
    finally:
        engine.forget(list(dict.fromkeys(keys)))


def _answers(
    engine: SamKVEngine, item: Item, methods: Sequence[tuple[Setting, Any]], room: int, digest: str
) -> Iterator[Record]:
    for setting, method in methods:
        answer = engine.answer(item.question, item.chunks, method=method, max_new_tokens=room)
        if answer.report.prompt_digest != digest or answer.report.misses:
            raise SamKVError(
                f"{setting.label} did not get the prompt of the other methods for {item.id}, or its chunks were lost "
                "from the store; nothing can be compared."
            )
        yield _record(item, setting, answer)


def _record(item: Item, setting: Setting, answer: Answer) -> Record:
    """The record of one answer: its first line (a base model goes on), marked against the gold answer it fits best."""
    prediction = answer.text.strip().split("\n")[0].strip()
    return {
        "id": item.id,
        "task": item.task,
        "setting": setting.label,
        "method": setting.name,
        "ratio": setting.ratio,
        "answers": list(item.answers),
        "prediction": prediction,
        "em": float(max(exact_match(prediction, gold) for gold in item.answers)),
        "f1": max(token_f1(prediction, gold) for gold in item.answers),
        "new_tokens": answer.usage.completion_tokens,
        "report": answer.report.as_dict(),
    }
