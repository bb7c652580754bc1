"""The systems that are compared, and the way of one question through one of them up to its first token."""

from __future__ import annotations

import time

from samkv_rag.accounting import make_report
from samkv_rag.methods import CacheBlend, Full, Method, Reuse, Run, SamKV
from samkv_rag.model.adapter import ModelAdapter
from samkv_rag.store import ChunkKVStore
from samkv_rag.types import PromptPlan, Report

METHODS: dict[str, Method] = {
    "full": Full(),
    "reuse": Reuse(),
    "samkv": SamKV(rest="drop"),
    "samkv 1/3": SamKV(rest="drop", recompute=1 / 3),
    "samkv 1/10": SamKV(rest="drop", recompute=1 / 10),
    "samkv wide 1/2": SamKV(rest="drop", wide=0.5, sees=0),
    "samkv wide 1/4": SamKV(rest="drop", wide=0.25, sees=0),
    "samkv before": SamKV(settle="before"),
    "samkv int4": SamKV(),
    "cacheblend": CacheBlend(),
}
"""Until the first token is said nothing is packed: "samkv" drops the rest, which takes its time before that."""


def first_token(adapter: ModelAdapter, store: ChunkKVStore, plan: PromptPlan, method: Method) -> Report:
    """Prepare and generate one token; the report's `ttft_seconds` is the whole of it."""
    start = time.perf_counter()
    run = Run(plan, adapter, store, room=1)
    prepared = method.prepare(run)
    with run.stage("first_token"):
        prepared.generate(adapter.loop, max_new_tokens=1, do_sample=False)
    return make_report(run, prepared, method.name, time.perf_counter() - start)
