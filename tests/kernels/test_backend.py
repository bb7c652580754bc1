"""The backend is what was asked for, or an error that says how to get it."""

from __future__ import annotations

import importlib.util
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from samkv_kernels.backend import VARIABLE, BackendError, choose
from samkv_rag import SamKVError
from samkv_rag.model.adapter import ModelAdapter
from tests.cases import WIRINGS
from tests.models import build, tiny_engine

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Pretend that triton is installed or not, and how capable the GPU is."""

    def pretend(triton: bool = True, capability: tuple[int, int] = (9, 0)) -> None:
        spec = SimpleNamespace() if triton else None
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)

    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    return pretend


def test_auto_is_triton_where_it_can_run_and_torch_elsewhere(machine: Any) -> None:
    machine()
    assert choose(CUDA) == choose(CUDA, "auto") == "triton"
    assert choose(CPU) == "torch"
    machine(capability=(7, 5))
    assert choose(CUDA) == "torch"
    machine(triton=False)
    assert choose(CUDA) == "torch"


def test_torch_is_always_torch(machine: Any) -> None:
    machine()
    assert choose(CUDA, "torch") == choose(CPU, "torch") == "torch"


@pytest.mark.parametrize(
    ("device", "setting", "remedy"),
    [
        (CUDA, {"triton": False}, "pip install 'samkv-rag\\[triton\\]'"),
        (CPU, {}, "load it on a CUDA device"),
        (CUDA, {"capability": (7, 5)}, "choose the backend 'torch'"),
    ],
)
def test_triton_that_cannot_run_is_an_error_with_a_remedy(
    machine: Any, device: torch.device, setting: dict[str, Any], remedy: str
) -> None:
    machine(**setting)
    with pytest.raises(BackendError, match=remedy):
        choose(device, "triton")


def test_the_interpreter_runs_anywhere(machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    machine()
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert choose(CPU, "triton") == "triton"
    assert choose(CPU) == "torch", "but not by itself"


def test_the_variable_speaks_where_no_argument_does(machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    machine()
    monkeypatch.setenv(VARIABLE, "torch")
    assert choose(CUDA) == "torch"
    assert choose(CUDA, "triton") == "triton"
    monkeypatch.setenv(VARIABLE, "cuda")
    with pytest.raises(BackendError, match="'auto', 'torch' or 'triton'"):
        choose(CUDA)


def test_a_model_says_so_when_it_is_attached() -> None:
    with pytest.raises(SamKVError, match="CUDA device|samkv-rag\\[triton\\]"):
        ModelAdapter(build(WIRINGS["llama"]()), wanted="triton")


def test_the_report_names_the_backend() -> None:
    engine = tiny_engine("llama")
    engine.precompute(["one two three"])
    assert (
        engine.answer("What?", ["one two three"], max_new_tokens=1).report.backend == engine.adapter.backend == "torch"
    )
