"""The backend is what was asked for, or an error that says how to get it."""

from __future__ import annotations

import importlib.util
import sys
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
    """Pretend that triton and numba are installed or not, that numba compiles or not, and how capable the GPU is."""

    def pretend(
        triton: bool = True, numba: bool = True, compiles: bool = True, capability: tuple[int, int] = (9, 0),
        hip: str | None = None,
    ) -> None:  # fmt: skip
        installed = {"triton": triton, "numba": numba}
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: SimpleNamespace() if installed[name] else None)
        for name in ("samkv_kernels.cpu.packed", "samkv_kernels.cpu.rounding"):
            monkeypatch.setitem(sys.modules, name, SimpleNamespace() if compiles else None)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        monkeypatch.setattr(torch.version, "hip", hip)

    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    return pretend


def test_auto_is_what_can_run_on_the_device_and_torch_elsewhere(machine: Any) -> None:
    machine()
    assert choose(CUDA) == choose(CUDA, "auto") == "triton"
    assert choose(CPU) == choose(CPU, "auto") == "numba"
    assert choose(torch.device("mps")) == "torch"
    machine(capability=(7, 5))
    assert choose(CUDA) == "torch"
    machine(hip="6.4")
    assert choose(CUDA) == "torch"
    machine(triton=False, numba=False)
    assert choose(CUDA) == choose(CPU) == "torch"
    machine(compiles=False)
    assert choose(CPU) == "torch"


def test_torch_is_always_torch(machine: Any) -> None:
    machine()
    assert choose(CUDA, "torch") == choose(CPU, "torch") == "torch"


@pytest.mark.parametrize(
    ("wanted", "device", "setting", "remedy"),
    [
        ("triton", CUDA, {"triton": False}, "pip install 'samkv-rag\\[triton\\]'"),
        ("triton", CPU, {}, "load it on a CUDA device"),
        ("triton", CUDA, {"capability": (7, 5)}, "choose the backend 'torch'"),
        ("triton", CUDA, {"hip": "6.4"}, "for NVIDIA's GPUs alone: choose the backend 'torch'"),
        ("numba", CPU, {"numba": False}, "pip install 'samkv-rag\\[cpu\\]'"),
        ("numba", CUDA, {}, "compiles for the CPU: choose the backend 'auto'"),
        ("numba", CPU, {"compiles": False}, "numba cannot be used here \\(.+\\): choose the backend 'auto'"),
    ],
)
def test_what_was_asked_for_and_cannot_run_is_an_error_with_a_remedy(
    machine: Any, wanted: str, device: torch.device, setting: dict[str, Any], remedy: str
) -> None:
    machine(**setting)
    with pytest.raises(BackendError, match=remedy):
        choose(device, wanted)


def test_the_interpreter_runs_anywhere(machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    machine()
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert choose(CPU, "triton") == "triton"
    assert choose(CPU) == "numba", "but not by itself"


def test_the_variable_speaks_where_no_argument_does(machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    machine()
    monkeypatch.setenv(VARIABLE, "torch")
    assert choose(CUDA) == "torch"
    assert choose(CUDA, "triton") == "triton"
    monkeypatch.setenv(VARIABLE, "cuda")
    with pytest.raises(BackendError, match="'auto', 'torch', 'numba' or 'triton'"):
        choose(CUDA)


def test_a_model_says_so_when_it_is_attached() -> None:
    with pytest.raises(SamKVError, match="CUDA device|samkv-rag\\[triton\\]"):
        ModelAdapter(build(WIRINGS["llama"]()), wanted="triton")


def test_the_report_names_the_backend() -> None:
    engine = tiny_engine("llama")
    engine.precompute(["one two three"])
    found = engine.answer("What?", ["one two three"], max_new_tokens=1).report.backend
    assert found == engine.adapter.backend == choose(CPU)


def test_a_kernel_that_is_too_large_for_a_gpu_names_the_remedy() -> None:
    pytest.importorskip("triton")
    from triton.runtime.errors import OutOfResources

    from samkv_kernels.jit.launching import on_device

    with (
        pytest.raises(BackendError, match=r"takes 133120 .* which has 101376: SAMKV_BACKEND=torch"),
        on_device(torch.ones(1)),
    ):
        raise OutOfResources(133120, 101376, "shared memory")
    with pytest.raises(ValueError, match="other"), on_device(torch.ones(1)):
        raise ValueError("other")
