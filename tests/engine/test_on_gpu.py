"""The gates on a GPU: exact there too, with the kernels and without them, from caches on the host and on the device.

With SAMKV_TEST_DEVICE=cpu they run on a CPU, to see that the tests themselves are sound.
"""

from __future__ import annotations

import os
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from samkv_rag import ChunkKVStore, SamKV, SamKVEngine
from samkv_rag.methods import Reuse, Run
from samkv_rag.model.adapter import ModelAdapter
from samkv_rag.model.beginnings import LEAST
from samkv_rag.parity import check_parity
from samkv_rag.profiling.answers import forced_logits
from tests.cases import METHODS, WIRINGS
from tests.models import build, byte_tokenizer
from tests.oracles import Prompted, random_ids, stored_plan

DEVICE = os.environ.get("SAMKV_TEST_DEVICE", "cuda")
pytestmark = [pytest.mark.gpu] if DEVICE == "cuda" else []

EVERYTHING = SamKV(keep=1.0)
DTYPES = [torch.float32, torch.bfloat16, torch.float16][: 3 if DEVICE == "cuda" else 2]
CHUNKS = [
    "Lumen Labs is a company in Oslo that was founded in 1987 by Ana Petrov. It makes solar lamps and kettles.",
    "Ana Petrov studied chemistry in Bergen before she moved to the coast, where she lives now.",
]
ASKED = "Where is Lumen Labs based?"


@cache
def attached(
    wiring: str = "llama", device: str = DEVICE, dtype: torch.dtype = torch.float32, wanted: str | None = None
) -> ModelAdapter:
    return ModelAdapter(build(WIRINGS[wiring](), dtype).to(device), wanted=wanted)


def prompted(adapter: ModelAdapter, glue: int = 3, **options: Any) -> Prompted:
    store = ChunkKVStore(":memory:", **options)
    return Prompted(stored_plan(adapter, store, glue=glue), adapter, store)


def differ(got: Tensor, want: Tensor) -> float:
    return float((got.cpu() - want.cpu()).abs().max() / want.abs().max())


@pytest.mark.parametrize("wiring", ["llama", "gemma3", "deepseek-v3"])
def test_what_is_held_in_four_bits_gives_the_logits_of_a_cpu(wiring: str) -> None:
    method, answer = SamKV(keep=0.3, rest="int4"), random_ids(6, 1)
    there, here = (prompted(attached(wiring, device)) for device in (DEVICE, "cpu"))
    prepared = there.prepare(method)
    got, want = (
        forced_logits(case.adapter, one, answer) for case, one in ((there, prepared), (here, here.prepare(method)))
    )
    assert prepared.cache is not None and prepared.cache.packed is not None
    assert differ(got, want) < 1e-2, "a number in the middle of two may be rounded either way"
    exact = forced_logits(here.adapter, here.prepare(SamKV(keep=0.3, settle_at=9)), answer)
    assert differ(want, exact) > 2 * differ(got, want), "and what is packed can be told from what is not"


@pytest.mark.parametrize("wiring", WIRINGS)
def test_everything_recomputed_is_a_plain_generate(wiring: str) -> None:
    case = prompted(attached(wiring))
    plain = build(WIRINGS[wiring]()).to(DEVICE)
    tokens = torch.tensor([case.plan.token_ids], device=DEVICE)
    said = plain.generate(tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=8, do_sample=False)
    assert case.tokens(EVERYTHING, 8) == said[0, tokens.shape[1] :].tolist()


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_parity_gate_is_green(dtype: torch.dtype) -> None:
    assert check_parity(attached(dtype=dtype)).passed


@pytest.mark.parametrize("name", METHODS)
def test_every_method_says_what_it_says_on_a_cpu(name: str) -> None:
    method = METHODS[name]
    if isinstance(method, SamKV):  # what is packed may be rounded either way
        method = replace(method, rest="drop", hold=1.0)
    here, there = (prompted(attached(device=device)) for device in (DEVICE, "cpu"))
    got, want = (case.prepare(method) for case in (here, there))
    assert [kept.tolist() for kept in got.selection.kept] == [kept.tolist() for kept in want.selection.kept]
    assert differ(here.logits(got), there.logits(want)) < 1e-3
    assert here.tokens(method, 6) == there.tokens(method, 6)


@pytest.mark.parametrize("method", ["samkv", "samkv-third", "samkv-means", "samkv-bounds", "cacheblend", "reuse"])
@pytest.mark.parametrize("wiring", ["llama", "gemma2"])
def test_the_kernels_and_torch_agree(wiring: str, method: str) -> None:
    cases = [prompted(attached(wiring, wanted=wanted)) for wanted in (None, "torch")]
    if DEVICE == "cuda":
        assert [case.adapter.backend for case in cases] == ["triton", "torch"]
    assert differ(*(case.logits(case.prepare(METHODS[method])) for case in cases)) < 1e-3


@pytest.mark.parametrize("kv_dtype", ["model", "bf16", "int8", "fp8", "int4"])
def test_caches_on_the_host_and_on_the_device_are_the_same(kv_dtype: str) -> None:
    cases = [prompted(attached()), prompted(attached(), device=DEVICE)]
    for case in cases:
        for chunk in case.plan.chunks:
            kv = case.adapter.ingest([""], [chunk.token_ids])[0]
            case.store.put(str(chunk.key), kv, kv_dtype=kv_dtype)
    for method in (Reuse(), METHODS["samkv-before-third"]):
        assert torch.equal(*(case.logits(case.prepare(method)) for case in cases))
    key = str(cases[0].plan.chunks[0].key)
    assert cases[0].store.read_stored(key).data.device.type == "cpu"
    assert cases[0].store.read_stored(key).data.is_pinned() == (DEVICE == "cuda"), "a GPU reads it by itself"
    assert cases[1].store.read_stored(key).data.device.type == torch.device(DEVICE).type
    assert torch.equal(*(case.store.read_blocks(key).cpu() for case in cases))


@pytest.mark.parametrize("kv_dtype", ["model", "int8"])
def test_caches_on_a_disk_and_in_memory_are_the_same(kv_dtype: str, tmp_path: Path) -> None:
    near = prompted(attached())
    with ChunkKVStore(tmp_path) as folder:
        for chunk in near.plan.chunks:
            kv = near.adapter.ingest([""], [chunk.token_ids])[0]
            for store in (near.store, folder):
                store.put(str(chunk.key), kv, kv_dtype=kv_dtype)
        far = Prompted(near.plan, near.adapter, folder)
        for method in (Reuse(), METHODS["samkv"], METHODS["samkv-before-third"]):
            assert torch.equal(*(case.logits(case.prepare(method)) for case in (near, far)))
        read = folder.read_stored(str(near.plan.chunks[0].key), pinned=True)
        assert read.data.is_pinned() == (DEVICE == "cuda"), "a GPU reads it by itself"


@pytest.mark.parametrize("wiring", ["llama", "gemma2"])
def test_behind_what_prompts_begin_with_all_is_as_on_a_cpu(wiring: str) -> None:
    """Chunks of a batch, for which it is read once, and a prompt, for which it is known after the first time."""
    here, there = (ModelAdapter(attached(wiring, device).model, random_ids(3, 1)) for device in (DEVICE, "cpu"))
    chunks = [random_ids(length, length) for length in (5, 40, 17)]
    for mine, theirs in zip(here.ingest([""] * 3, chunks), there.ingest([""] * 3, chunks), strict=True):
        assert differ(mine.kv, theirs.kv) < 1e-3
    cases = [prompted(adapter, LEAST) for adapter in (here, there)]
    for known in (0, LEAST):
        assert all(Run(case.plan, case.adapter, case.store).caches.ground.head == known for case in cases)
        assert differ(*(case.logits(case.prepare(SamKV(keep=0.4))) for case in cases)) < 1e-3


def test_answers_decoded_together_are_those_decoded_alone() -> None:
    case = prompted(attached())
    names, how = ("samkv", "full", "samkv-late"), {"max_new_tokens": 6, "do_sample": False}
    alone = [case.tokens(METHODS[name], 6) for name in names]
    begun = [case.prepare(METHODS[name]).begin(case.adapter.loop, **how) for name in names]
    while going := [one for one in begun if not one.ended]:
        case.adapter.loop.step(going)
    assert [one.result() for one in begun] == alone


def engine(device: str) -> SamKVEngine:
    return SamKVEngine.from_pretrained(
        build(WIRINGS["llama"]()).to(device), byte_tokenizer(), ":memory:", device_map=device
    )  # fmt: skip


def test_an_engine_answers_as_on_a_cpu() -> None:
    both = [engine(device) for device in (DEVICE, "cpu")]
    assert both[0].fingerprint == both[1].fingerprint, "caches may be made on one and used on the other"
    dropping = SamKV(rest="drop")
    answers = [each.answer(ASKED, CHUNKS, method=dropping, max_new_tokens=6) for each in both]
    assert answers[0].token_ids == answers[1].token_ids
    drawn = [both[0].answer(ASKED, CHUNKS, max_new_tokens=6, temperature=1.0, seed=3).token_ids for _ in range(2)]
    assert drawn[0] == drawn[1]


@pytest.mark.skipif(DEVICE != "cuda", reason="only of a GPU can be told who waits for it")
@pytest.mark.parametrize("rest", ["drop", "int4"])
@pytest.mark.parametrize(("recompute", "sees"), [(1, 0.0), (1 / 3, 0.0), (1 / 3, 0.5)])
def test_the_host_waits_for_nothing_before_the_first_token(recompute: float, sees: float, rest: Any) -> None:
    case = prompted(attached(), LEAST, device=DEVICE)
    method = SamKV(keep=0.5, recompute=recompute, sees=sees, rest=rest)
    want = [case.prepare(method).ids for _ in range(3)]  # what is recorded is compared once, on the host
    torch.cuda.set_sync_debug_mode("error")
    try:
        prepared = case.prepare(method)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert [prepared.ids] * 3 == want
