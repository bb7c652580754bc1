"""Passes of fixed sizes on a CPU: a recording is the function itself, run into the memory of its first result, as a
graph does."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from samkv_rag import ChunkKVStore
from samkv_rag.methods import Prepared
from samkv_rag.model.adapter import ModelAdapter
from samkv_rag.model.buffers import Buffers
from samkv_rag.model.recorded import Found, Passes
from samkv_rag.model.workspace import Workspace
from tests import oracles
from tests.cases import WIRINGS
from tests.methods.gates import TOLERANCE, distance
from tests.models import adapter, build
from tests.oracles import Prompted

LENGTHS = ((37, 16, 30, 5), (36, 17, 30, 5), (64, 3), (38, 15, 31, 6))
"""Of chunks: those of three prompts of about the same size, and of one of another size."""


def replayed(run: Callable[[], Found]) -> Callable[[], Found]:
    """What `Graphs` does, without a GPU: what a recording reads from the host is read once."""
    run()
    out = run()
    weak = weakref.WeakMethod(run)  # type: ignore[type-var]  # a graph does not keep alive what was recorded

    def again() -> Found:
        run = weak()
        assert run is not None
        for old, new in zip(out, run(), strict=True):
            if old is not None and new is not None:
                old.copy_(new)
        return out

    return again


def refused(run: Callable[[], Found]) -> Callable[[], Found]:
    raise RuntimeError("waits for the GPU")


def on_gpu(wiring: str, dtype: torch.dtype = torch.float32) -> ModelAdapter:
    """A model on a GPU whose passes are not recorded yet."""
    model = ModelAdapter(build(WIRINGS[wiring](), dtype).to("cuda"), wanted="triton")
    model.passes = None
    return model


def passes_of(model: ModelAdapter, capture: Any = replayed) -> Passes:
    """Passes in a workspace that is filled with NaN whenever it grows."""

    def make(slots: int) -> list[Buffers]:
        made = model._buffers(slots, model.shape.cached())
        for part in made:
            part.keys[:], part.values[:] = torch.nan, torch.nan
        return made

    return Passes(Workspace(model.shape, make), model._carry_out, capture)


@contextmanager
def recording(model: ModelAdapter, capture: Any = replayed) -> Iterator[Passes]:
    """Within the block, the passes of a model have fixed sizes, in a workspace with room for 180 slots."""
    model.passes = passes_of(model, capture)
    assert model.passes.lend(model.shape.cached(), 180) is not None
    try:
        yield model.passes
    finally:
        model.passes = None


def prompts_of(model: ModelAdapter, all_lengths: Sequence[Sequence[int]] = LENGTHS) -> list[Prompted]:
    store = ChunkKVStore(":memory:")
    return [
        Prompted(oracles.stored_plan(model, store, tuple(lengths), seed=seed), model, store)
        for seed, lengths in enumerate(all_lengths)
    ]


def prompts(wiring: str) -> list[Prompted]:
    return prompts_of(adapter(wiring))


def entries(prepared: Prepared) -> list[Tensor]:
    assert prepared.cache is not None
    return [part for layer in prepared.cache.slot_layers for part in layer.snapshot()]


def assert_same(got: Prepared, want: Prepared) -> None:
    """The same tokens are kept, with the same entries and the same logits."""
    assert got.ids == want.ids
    for mine, theirs in zip(got.selection.kept, want.selection.kept, strict=True):
        assert torch.equal(mine, theirs)
    if want.cache is not None and want.logits is not None and got.logits is not None:
        assert distance(got.logits, want.logits) < TOLERANCE
        for mine, theirs in zip(entries(got), entries(want), strict=True):
            assert distance(mine, theirs) < TOLERANCE
