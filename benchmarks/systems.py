"""The systems that are compared, and how a question goes through one of them to its first token, and the next."""

from __future__ import annotations

import time
from dataclasses import replace

from samkv_rag.accounting import make_report
from samkv_rag.methods import CacheBlend, Full, Method, Reuse, Run, SamKV
from samkv_rag.model.adapter import ModelAdapter
from samkv_rag.store import ChunkKVStore
from samkv_rag.types import PromptPlan, Report

METHODS: dict[str, Method] = {
    "full": Full(),
    "reuse": Reuse(),
    "samkv": SamKV(),
    "samkv 1/3": SamKV(recompute=1 / 3),
    "samkv 1/10": SamKV(recompute=1 / 10),
    "samkv half": SamKV(hold=0.5),
    "samkv drop": SamKV(rest="drop"),
    "samkv before": SamKV(settle="before"),
    "cacheblend": CacheBlend(),
}


def first_token(adapter: ModelAdapter, store: ChunkKVStore, plan: PromptPlan, method: Method) -> Report:
    """Prepare an answer and produce its first token: both together are the report's `ttft_seconds`. With the next one,
    which is the report's stage "second_token", it is decided what is kept."""
    start = time.perf_counter()
    run = Run(plan, adapter, store, room=2)
    prepared = method.prepare(run)
    with run.stage("first_token"):
        begun = prepared.begin(adapter.loop, max_new_tokens=2, min_new_tokens=2, do_sample=False)
    first = time.perf_counter()
    adapter.loop.finish(begun)
    second = time.perf_counter() - first
    report = make_report(run, prepared, method.name, first - start)
    return replace(report, stage_seconds={**report.stage_seconds, "second_token": second})
