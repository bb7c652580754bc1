"""From a call to its answer: plan and prepare in turn, decode together with other answers, report, heal."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from samkv_rag.accounting import make_report
from samkv_rag.batch import Batch
from samkv_rag.calls import Call, check_fits
from samkv_rag.errors import SamKVError
from samkv_rag.library import Library
from samkv_rag.methods import Prepared, Run
from samkv_rag.model.adapter import ModelAdapter
from samkv_rag.model.decoding import Decoding
from samkv_rag.model.generation import (
    Listener,
    cut_at_stop,
    finished_by_model,
    generation_kwargs,
    random_of,
    stop_texts,
)  # fmt: skip
from samkv_rag.prompt.reasoning import ReasoningReader, Spoken, reader_of, split
from samkv_rag.prompt.template import THINKING
from samkv_rag.store import ChunkKVStore, EntryError
from samkv_rag.turns import Request, Turnstile
from samkv_rag.types import Answer, FinishReason, PromptPlan, Report, Usage

MakePlan = Callable[[], PromptPlan]
OnText = Callable[[str], None]
OnAnswer = Callable[[Answer], None]
Cancelled = Callable[[], bool]


@dataclass(frozen=True, slots=True)
class Answering:
    """Answers calls with one model, from the chunks of one library."""

    adapter: ModelAdapter
    tokenizer: Any
    store: ChunkKVStore
    turnstile: Turnstile
    batch: Batch
    library: Library
    min_kept_tokens: int

    def answer(
        self, make_plan: MakePlan, call: Call, on_text: OnText | None = None, cancelled: Cancelled | None = None,
        on_answer: OnAnswer | None = None,
    ) -> Answer:  # fmt: skip
        """Answer one call; `on_text` receives the pieces from whichever thread makes them.

        Whole chunks that the call missed are stored before this returns but after `on_answer`, unless it was cancelled.
        """
        gone = cancelled or _never
        with self.turnstile.request(cancelled) as request:
            plan, answer = self._answer(make_plan, call, on_text, gone, request)
            if plan.to_store and not gone():
                with self.library.held_open():
                    if on_answer is not None:
                        on_answer(answer)
                    self.library.heal(plan, request)
        return answer

    def _answer(
        self, make_plan: MakePlan, call: Call, on_text: OnText | None, gone: Cancelled, turn: Request
    ) -> tuple[PromptPlan, Answer]:
        started = time.perf_counter()
        with turn:
            if gone():
                raise SamKVError("The answer was cancelled before its turn came.")
            self.adapter.attached.refuse_changes()
            run, prepared = self._prepare(make_plan, call)
            try:
                spoken = self._spoken(on_text, call)
                listener = Listener(self.tokenizer, spoken or on_text, call.options.stop, call.strip)
                ready = time.perf_counter()
                decoding = self._begin(prepared, call, listener, gone)
            finally:
                run.release()  # not earlier: a GPU may still be reading what was loaded for it
        ids = self.batch.finish(decoding, self.adapter.loop.step)
        if spoken is not None:
            spoken.end()
        first = listener.first_token_at or time.perf_counter()
        seconds = run.costs.seconds  # what a GPU still had to do at `ready` is charged to its stage
        seconds["first_token"] += max(0.0, min(first - ready, first - started - sum(seconds.values())))
        report = make_report(run, prepared, call.method.name, first - started)
        return run.plan, self._finish(ids, call, report, gone())

    def _prepare(self, make_plan: MakePlan, call: Call) -> tuple[Run, Prepared]:
        """Plan and prepare; an entry that proves unusable when read becomes a miss."""
        while True:
            start = time.perf_counter()
            plan = make_plan()
            check_fits(plan, call.options, self.adapter.config)
            room, least = call.options.max_new_tokens, self.min_kept_tokens
            run = Run(plan, self.adapter, self.store, room, least, self.library.model_fingerprint)
            run.costs.seconds["plan"] = time.perf_counter() - start
            try:
                return run, call.method.prepare(run) if plan.chunks else run.prefill()
            except BaseException as error:
                run.release()
                if not isinstance(error, EntryError) or error.key in self.library.unusable:
                    raise
                self.library.unusable.add(error.key)

    def _begin(self, prepared: Prepared, call: Call, listener: Listener, gone: Cancelled) -> Decoding:
        return prepared.begin(
            self.adapter.loop, listener, random_of(call.options.seed, self.adapter.device),
            **generation_kwargs(self.adapter.model, self.tokenizer, call.options, gone),
        )  # fmt: skip

    def _finish(self, ids: list[int], call: Call, report: Report, cancelled: bool) -> Answer:
        whole = self.tokenizer.decode(ids, skip_special_tokens=True)
        text, stops = cut_at_stop(whole, call.options.stop), stop_texts(self.adapter.model, call.options)
        ended = finished_by_model(self.adapter.model, ids) or any(stop in whole for stop in stops)
        full = len(ids) >= call.options.max_new_tokens and not ended
        reason: FinishReason = "length" if full else "cancelled" if cancelled else "stop"
        usage = Usage(report.prompt_tokens, len(ids), report.prompt_tokens - report.fresh_tokens)
        thought, text = split(text, self._reader(call))
        return Answer(text.strip() if call.strip else text, usage, report, tuple(ids), reason, thought)

    def _spoken(self, on_text: OnText | None, call: Call) -> Spoken | None:
        """A listener that passes on words but no thoughts, if there is an `on_text` and there may be thoughts."""
        reader = None if on_text is None else self._reader(call)
        return None if on_text is None or reader is None else Spoken(on_text, reader)

    def _reader(self, call: Call) -> ReasoningReader | None:
        """What separates thoughts from words in short answers (`strip`); other answers are what the model writes."""
        return reader_of(self.tokenizer, {THINKING: False, **self.library.template}) if call.strip else None


def _never() -> bool:
    return False
