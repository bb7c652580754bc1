"""Parts of layers that torch compiles in place: on explicit request, with the same answers, undone where it fails."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import transformers as tf

from samkv_rag import ChunkKVStore, SamKV, SamKVError
from samkv_rag.model import compiling
from samkv_rag.model.adapter import ModelAdapter
from samkv_rag.parity import check_parity
from tests.cases import SIZES, WIRINGS
from tests.models import build
from tests.oracles import Prompted, stored_plan

SOME = ["llama", "qwen3", "gemma3"]


def parts(model: Any) -> list[Any]:
    return [module for module in model.modules() if type(module).__name__.endswith(compiling.KINDS)]


@pytest.mark.parametrize("wiring", SOME)
def test_parts_of_layers_are_compiled_where_it_is_asked_for(wiring: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = ModelAdapter(build(WIRINGS[wiring]()))
    monkeypatch.setenv(compiling.VARIABLE, "on")
    with torch.compiler.set_stance("force_eager"):  # without the compiler, which not every machine has
        asked = ModelAdapter(build(WIRINGS[wiring]()))
    assert len(parts(asked.model)) > 3 * asked.shape.layers
    assert all(part._compiled_call_impl is not None for part in parts(asked.model))
    assert all(part._compiled_call_impl is None for part in parts(plain.model))


@pytest.fixture
def counted() -> Iterator[Callable[[], int]]:
    """How many graphs torch has made since the test began; what it has set for the process is restored."""
    with torch._dynamo.config.patch(allow_unspec_int_on_nn_module=False):
        torch._dynamo.reset()
        before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        yield lambda: torch._dynamo.utils.counters["stats"]["unique_graphs"] - before
        torch._dynamo.reset()


def test_what_is_compiled_answers_as_before(counted: Callable[[], int]) -> None:
    """torch takes the parts to pieces and puts them back together, without a compiler for the pieces. Layers share
    them."""
    said = []
    for compiled in (False, True):
        model, store = build(tf.Qwen3Config(**{**SIZES, "num_hidden_layers": 16})), ChunkKVStore(":memory:")
        if compiled:
            compiling.compile_parts(model, "eager")
        adapter = ModelAdapter(model)
        case = Prompted(stored_plan(adapter, store), adapter, store)
        said.append(case.tokens(SamKV(keep=0.3, rest="drop"), 3))
        assert (counted() > 0) is compiled
    assert said[0] == said[1]
    assert counted() < 2 * adapter.shape.layers


def test_what_cannot_be_compiled_is_said_and_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(model: Any) -> None:
        raise RuntimeError("no compiler")

    model = build(WIRINGS["llama"]())
    monkeypatch.setenv(compiling.VARIABLE, "on")
    monkeypatch.setattr(compiling, "_try", fail)
    with pytest.raises(SamKVError, match=r"SAMKV_COMPILE=on.*no compiler"):
        ModelAdapter(model)
    assert all(part._compiled_call_impl is None for part in parts(model))


def test_anything_else_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(compiling.VARIABLE, "yes")
    with pytest.raises(SamKVError, match="SAMKV_COMPILE must be 'off' or 'on', not 'yes'"):
        ModelAdapter(build(WIRINGS["llama"]()))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("wiring", SOME)
def test_a_gpu_answers_as_without_compiling(wiring: str, monkeypatch: pytest.MonkeyPatch) -> None:
    said = []
    for choice in ("off", "on"):
        monkeypatch.setenv(compiling.VARIABLE, choice)
        adapter, store = ModelAdapter(build(WIRINGS[wiring]()).to("cuda")), ChunkKVStore(":memory:")
        case = Prompted(stored_plan(adapter, store), adapter, store)
        said.append([case.tokens(SamKV(keep=keep, rest="drop"), 6) for keep in (0.3, 1.0, 0.3)])
        assert check_parity(adapter).passed
    assert said[0] == said[1]
