"""Turn a run into its report. The counts come from the selection; tests compare them with what entered the model."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence

from samkv_rag.flops import answer_flops
from samkv_rag.methods import Prepared, Run
from samkv_rag.types import Report

_STAGES = ("plan", "load", "select", "recompute", "first_token")
_MISS_CHARS = 60


def make_report(run: Run, prepared: Prepared, method: str, ttft_seconds: float) -> Report:
    """Make the full report of one answer; see `Report` for what adds up to what."""
    plan, selection = run.plan, prepared.selection
    kept = sum(map(len, selection.kept))
    recomputed = sum(map(len, selection.recomputed))
    marks = [run.caches.ground.marked(tokens) for tokens in (selection.kept, selection.recomputed)]
    reused = kept - int((marks[0] & marks[1]).sum())
    glue = plan.n_tokens - plan.chunk_tokens
    head = run.caches.ground.uncomputed(recomputed)
    per_token, layers = run.adapter.shape.bytes_per_token, run.adapter.shape.cached().stop
    resident = (glue + kept - selection.packed_tokens) * per_token + selection.packed_bytes
    return Report(
        method=method,
        prompt_tokens=plan.n_tokens,
        glue_tokens=glue,
        chunk_tokens=plan.chunk_tokens,
        dropped_tokens=plan.chunk_tokens - kept,
        kept_tokens=kept,
        reused_tokens=reused,
        recomputed_tokens=recomputed,
        recomputed_dropped_tokens=recomputed + reused - kept,
        head_tokens=head,
        packed_tokens=selection.packed_tokens,
        fresh_tokens=glue - head + recomputed,
        question_pass_tokens=run.costs.question_pass_tokens,
        kept_ratio=_share(kept, plan.chunk_tokens, empty=1.0),
        recompute_ratio=_share(recomputed, kept),
        recomputed_layers_ratio=_share(run.costs.chunk_token_layers, plan.chunk_tokens * layers),
        kv_bytes_resident=resident,
        kv_bytes_peak=max(run.costs.kv_bytes_peak, resident),
        kv_bytes_full=plan.n_tokens * per_token,
        kv_bytes_read=run.entries.bytes_read,
        scored_bytes=run.costs.scored_bytes,
        flops=answer_flops(run),
        ttft_seconds=ttft_seconds,
        stage_seconds={stage: run.costs.seconds.get(stage, 0.0) for stage in _STAGES},
        backend=run.adapter.backend,
        misses=tuple(text[:_MISS_CHARS] for text in plan.misses),
        notes=(*run.notes, *selection.notes),
        prompt_digest=ids_digest(plan.token_ids),
    )


def ids_digest(ids: Sequence[int]) -> str:
    """Hex SHA-256 of token ids as 64-bit integers: equal digests mean equal prompts."""
    return hashlib.sha256(array("q", ids).tobytes()).hexdigest()


def _share(part: int, whole: int, empty: float = 0.0) -> float:
    return part / whole if whole else empty
