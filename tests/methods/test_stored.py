"""The accuracy gate of stored caches: how far each `kv_dtype` may move an answer, and that it moves no exact one."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor

from samkv_kernels import rope_gather
from samkv_kernels.cpu import gathering as kernel
from samkv_rag import ChunkKVStore, Reuse, SamKV
from samkv_rag.model.adapter import ModelAdapter
from samkv_rag.types import ChunkKV
from tests import cases, oracles
from tests.counting import counted
from tests.models import adapter, build
from tests.oracles import Prompted

TOLERANCE = {"bf16": 6e-3, "fp16": 1e-3, "int8": 2e-2, "fp8": 8e-2, "int4": 0.25}
"""Allowed RMS difference of the next-token logits from those of caches stored as the model computes them, relative to
their own RMS: about twice the worst of twelve wirings (3.2e-3, 4.6e-4, 9.2e-3, 4.5e-2; 0.13 of the four below), whose
sharpened attention magnifies errors."""

WIRINGS = ("llama", "llama-longrope-crossed", "qwen3", "gemma3")
THIRD = SamKV(keep=0.5, recompute=1 / 3, settle="before", look="mean")

stored = pytest.mark.parametrize("kv_dtype", TOLERANCE)
every_wiring = pytest.mark.parametrize("wiring", WIRINGS)


@cache
def prompted(wiring: str, kv_dtype: str = "model") -> Prompted:
    """The same prompt for every `kv_dtype`, with its chunks stored in that."""
    store = ChunkKVStore(":memory:")
    if kv_dtype == "model":
        plan = oracles.stored_plan(adapter(wiring), store, (37, 16, 30, 5))
        return Prompted(plan, adapter(wiring), store)
    plain = prompted(wiring)
    for key in (str(chunk.key) for chunk in plain.plan.chunks):
        store.put(key, oracles.stored_chunk(plain.store, key), kv_dtype=kv_dtype)
    return replace(plain, store=store)


def moved(got: Tensor, want: Tensor) -> float:
    return float((got - want).square().mean().sqrt() / want.square().mean().sqrt())


@stored
@every_wiring
@pytest.mark.parametrize("method", [Reuse(), THIRD], ids=["reuse", "samkv-third"])
def test_what_is_reused_moves_the_logits_within_the_tolerance(wiring: str, kv_dtype: str, method: Reuse) -> None:
    plain, other = prompted(wiring), prompted(wiring, kv_dtype)
    assert 0 < moved(other.logits(other.prepare(method)), plain.logits(plain.prepare(method))) < TOLERANCE[kv_dtype]


@stored
@pytest.mark.parametrize("wiring", [*WIRINGS, "gemma4-unlike-heads"])
def test_recomputing_all_that_is_kept_is_exact_however_it_is_stored(wiring: str, kv_dtype: str) -> None:
    """Selection reads summaries, which are stored the same way; what is kept is recomputed."""
    plain, other = prompted(wiring), prompted(wiring, kv_dtype)
    for method in (SamKV(keep=1.0), SamKV(keep=0.3, settle="before", look="mean")):
        assert torch.equal(other.logits(other.prepare(method)), plain.logits(plain.prepare(method)))


@pytest.mark.parametrize("kv_dtype", ["int8", "fp8", "int4"])
def test_the_tolerance_is_not_idle(kv_dtype: str) -> None:
    """The control: keys that are moved to the next channel are far outside it."""
    other = prompted("llama", kv_dtype)
    bent = replace(other, store=ChunkKVStore(":memory:"))
    for key in (str(chunk.key) for chunk in other.plan.chunks):
        kv = other.store.read_blocks(key)
        kv[:, :, 0] = kv[:, :, 0].roll(1, -1)
        bent.store.put(key, ChunkKV(other.store.summary(key), kv), kv_dtype=kv_dtype)
    plain = prompted("llama")
    assert moved(bent.logits(bent.prepare(Reuse())), plain.logits(plain.prepare(Reuse()))) > 2 * TOLERANCE[kv_dtype]


@pytest.mark.parametrize("backend", ["torch", "numba"])
def test_caches_are_filled_by_the_models_backend_and_are_the_same_by_either(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = counted(monkeypatch, kernel, "gather_into")
    monkeypatch.setattr(rope_gather, "THREADS", 1 << 10)
    own, plain = ModelAdapter(build(cases.WIRINGS["llama"]()), wanted=backend), prompted("llama")
    case = replace(plain, adapter=own)
    logits = case.logits(case.prepare(Reuse()))
    assert len(calls) == (len(plain.plan.chunks) if backend == "numba" else 0)
    assert moved(logits, plain.logits(plain.prepare(Reuse()))) < 1e-5
