"""How often an answer would make a GPU's host wait, and how many operations it takes beside the model's own.

Counted on a CPU, where reading numbers and indices off tensors takes the same calls. What the references of the
kernels do is left out: on a GPU each is one launch.
"""

from __future__ import annotations

import sys
from collections import Counter
from functools import cache
from typing import Any

import pytest
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig

from benchmarks.shapes import TINY_LLAMA, random_model, random_prompt
from samkv_rag.methods import CacheBlend, Method, Reuse, Run, SamKV
from samkv_rag.model.adapter import ModelAdapter
from samkv_rag.store import ChunkKVStore

WAITS = ("_local_scalar_dense", "is_nonzero", "equal", "nonzero")
SORTS = ("sort", "topk", "_unique2", "unique_consecutive", "isin")
METHODS: dict[str, Method] = {
    "samkv": SamKV(), "samkv 1/3": SamKV(recompute=1 / 3), "samkv 1/10": SamKV(recompute=1 / 10),
    "cacheblend": CacheBlend(), "reuse": Reuse(),
}  # fmt: skip
MOST = {"waits": 30, "sorts": 2, "operations": 1100}
"""At most, for 12 chunks on 4 layers."""
A_CHUNK, A_LAYER = 25, 30
"""Operations that one more chunk, and one more layer, may add."""


class Counted(TorchDispatchMode):
    """Counts the torch operations that we call, not those of transformers or of a kernel's reference."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        frame: Any = sys._getframe(1)
        while frame is not None:
            name = frame.f_code.co_filename
            if "/samkv_kernels/" in name or "/transformers/" in name:
                break
            if "/samkv_rag/" in name:
                self.calls[func.__name__.split(".")[0]] += 1
                break
            frame = frame.f_back
        return func(*args, **(kwargs or {}))

    def counts(self) -> dict[str, int]:
        waits, sorts = (sum(self.calls[name] for name in names) for names in (WAITS, SORTS))
        return {"waits": waits, "sorts": sorts, "operations": self.calls.total()}


@cache
def model_of(layers: int) -> ModelAdapter:
    return random_model(LlamaConfig(**TINY_LLAMA.to_diff_dict() | {"num_hidden_layers": layers}))


@cache
def counted(method: str, chunks: int, layers: int) -> dict[str, int]:
    adapter, store = model_of(layers), ChunkKVStore(":memory:")
    plan = random_prompt(adapter, store, chunks, 192)
    METHODS[method].prepare(Run(plan, adapter, store, room=1))  # angles are kept for the next prompt
    with pytest.MonkeyPatch.context() as patch, Counted() as seen:
        patch.setattr(adapter, "speaks_at_once", lambda rows: True)  # as on a GPU
        METHODS[method].prepare(Run(plan, adapter, store, room=1))
    found: dict[str, int] = seen.counts()
    return found


@pytest.mark.parametrize("method", METHODS)
def test_an_answer_makes_few_waits_and_operations(method: str) -> None:
    found = counted(method, 12, 4)
    assert all(found[what] <= most for what, most in MOST.items()), found


@pytest.mark.parametrize("method", METHODS)
def test_nobody_waits_or_sorts_chunk_by_chunk(method: str) -> None:
    few, many = counted(method, 4, 4), counted(method, 12, 4)
    assert many["waits"] <= few["waits"] and many["sorts"] <= few["sorts"]
    assert many["operations"] - few["operations"] <= 8 * A_CHUNK


@pytest.mark.parametrize("method", METHODS)
def test_nobody_waits_or_sorts_layer_by_layer(method: str) -> None:
    shallow, deep = counted(method, 4, 4), counted(method, 4, 8)
    assert deep["waits"] <= shallow["waits"] and deep["sorts"] <= shallow["sorts"]
    assert deep["operations"] - shallow["operations"] <= 4 * A_LAYER
