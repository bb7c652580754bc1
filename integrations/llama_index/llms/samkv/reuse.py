"""What was reused: an event per answer, running totals, and a preview of a prompt before it is answered."""

from __future__ import annotations

import threading
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from llama_index.core.instrumentation.events import BaseEvent

from samkv_rag import Answer, PromptPlan

PREVIEW_CHARS = 60


class SamKVReuseEvent(BaseEvent):
    """Sent on the dispatcher after every answer: its token counts, and the engine's full report."""

    usage: dict[str, int]
    report: dict[str, Any]

    @classmethod
    def class_name(cls) -> str:
        return "SamKVReuseEvent"


def usage_of(answer: Answer) -> dict[str, int]:
    """Token counts under the names that `TokenCountingHandler` reads."""
    usage = answer.usage
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
        "cache_read": usage.cache_read,
    }


def raw_of(answer: Answer) -> dict[str, Any]:
    """The `raw` of a response: `usage`, the engine's report under `samkv`, and why the answer ended."""
    return {"usage": usage_of(answer), "samkv": answer.report.as_dict(), "finish_reason": answer.finish_reason}


@dataclass(frozen=True, slots=True)
class ReuseStats:
    """Running totals over all answers of one LLM. Tokens add up as in one report.

    prompt = glue + chunk; chunk = dropped + kept; kept = reused + recomputed, less what was recomputed and dropped.
    `cache_read` counts prompt tokens that an ordinary call would have computed and these did not; `misses` counts
    chunks whose caches were gone.
    """

    answers: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    glue_tokens: int = 0
    chunk_tokens: int = 0
    dropped_tokens: int = 0
    kept_tokens: int = 0
    reused_tokens: int = 0
    recomputed_tokens: int = 0
    cache_read: int = 0
    misses: int = 0

    @property
    def cache_read_share(self) -> float:
        """`cache_read` over all prompt tokens; 0.0 before the first answer."""
        return self.cache_read / self.prompt_tokens if self.prompt_tokens else 0.0

    def as_dict(self) -> dict[str, float]:
        """The totals and `cache_read_share` as plain types, ready for JSON."""
        return {**asdict(self), "cache_read_share": self.cache_read_share}

    def plus(self, answer: Answer) -> ReuseStats:
        """These totals and one more answer."""
        report = answer.report
        return replace(
            self,
            answers=self.answers + 1,
            prompt_tokens=self.prompt_tokens + report.prompt_tokens,
            completion_tokens=self.completion_tokens + answer.usage.completion_tokens,
            glue_tokens=self.glue_tokens + report.glue_tokens,
            chunk_tokens=self.chunk_tokens + report.chunk_tokens,
            dropped_tokens=self.dropped_tokens + report.dropped_tokens,
            kept_tokens=self.kept_tokens + report.kept_tokens,
            reused_tokens=self.reused_tokens + report.reused_tokens,
            recomputed_tokens=self.recomputed_tokens + report.recomputed_tokens,
            cache_read=self.cache_read + answer.usage.cache_read,
            misses=self.misses + len(report.misses),
        )

    def __str__(self) -> str:
        return (
            f"{self.answers} answers, {self.prompt_tokens} prompt tokens: {self.chunk_tokens} of cached chunks "
            f"({self.kept_tokens} kept, {self.recomputed_tokens} recomputed, {self.misses} misses), "
            f"{self.cache_read_share:.0%} not computed again"
        )


@dataclass(slots=True)
class Tally:
    """The totals, which many threads update."""

    stats: ReuseStats = field(default_factory=ReuseStats)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, answer: Answer) -> None:
        with self._lock:
            self.stats = self.stats.plus(answer)


@dataclass(frozen=True, slots=True)
class ExplainedSegment:
    """A run of the prompt: `glue` is computed afresh, a `chunk` is served from the entry `key`."""

    kind: str
    tokens: int
    text: str
    key: str | None

    def __str__(self) -> str:
        preview = " ".join(self.text.split())
        shown = preview if len(preview) <= PREVIEW_CHARS else preview[: PREVIEW_CHARS - 3] + "..."
        return f"{self.kind:5} {self.tokens:6}  {self.key[:12] if self.key else '-':12}  {shown}"


@dataclass(frozen=True, slots=True)
class Explanation:
    """What would be reused in a prompt: its segments in order, the question used for selection, and the misses."""

    segments: tuple[ExplainedSegment, ...]
    question: str
    misses: tuple[str, ...]

    @classmethod
    def of(cls, plan: PromptPlan) -> Explanation:
        segments = tuple(ExplainedSegment(s.kind, len(s.token_ids), s.text, s.key) for s in plan.segments)
        return cls(segments, plan.question.text, plan.misses)

    @property
    def keys(self) -> tuple[str, ...]:
        """The store entries that would be read, in prompt order."""
        return tuple(segment.key for segment in self.segments if segment.key is not None)

    @property
    def prompt_tokens(self) -> int:
        return sum(segment.tokens for segment in self.segments)

    @property
    def chunk_tokens(self) -> int:
        return sum(segment.tokens for segment in self.segments if segment.key is not None)

    def __str__(self) -> str:
        share = self.chunk_tokens / self.prompt_tokens if self.prompt_tokens else 0.0
        head = f"{self.chunk_tokens} of {self.prompt_tokens} prompt tokens ({share:.0%}) are cached chunks"
        lost = f", {len(self.misses)} known chunks are gone and will be stored again" if self.misses else ""
        return "\n".join([head + lost, *map(str, self.segments)])
