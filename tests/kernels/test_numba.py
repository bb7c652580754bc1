"""How kernels are compiled for the CPU: at import, and also where nothing can be kept on disk."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import Any

import pytest
import torch

from samkv_kernels.backend import VARIABLE
from samkv_kernels.cpu import compiling, rounding, threads

TOLD = "import torch; from samkv_kernels.backend import choose; print(choose(torch.device('cpu')))"
KINDS = "float32[::1], float32[::1]"


def doubled(job: Any) -> None:
    numbers, out = threads.opened(job, KINDS)
    for at in range(len(numbers)):
        out[at] = 2 * numbers[at]


def test_a_kernel_is_compiled_at_once() -> None:
    out = torch.empty(3)
    kernel = threads.shared(KINDS)(doubled)
    assert kernel._compiled.address
    kernel(1, 3, torch.arange(3.0), out)
    assert out.tolist() == [0, 2, 4]


def test_where_nothing_can_be_kept_on_disk_it_is_compiled_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    real, tried = compiling.cfunc, list[bool]()

    def without_place(*args: Any, cache: bool = False, **options: Any) -> Any:
        tried.append(cache)
        if cache:
            raise RuntimeError("cannot cache function 'doubled': no locator available for file")
        return real(*args, **options)

    monkeypatch.setattr(compiling, "cfunc", without_place)
    threads.shared(KINDS)(doubled)(1, 2, torch.ones(2), out := torch.empty(2))
    assert tried == [True, False] and out.tolist() == [2, 2]


def test_divisions_become_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    """By Numba's own rules every division would be tested for zero, one number at a time: five times as slow."""
    real = compiling.cfunc
    monkeypatch.setattr(compiling, "cfunc", lambda *args, cache=False, **options: real(*args, **options))  # to be read
    for kernel in (rounding._codes_by_channel, rounding._codes_by_token):
        anew = threads.shared(rounding._CODES, fastmath=rounding._AS_WRITTEN)(kernel._compiled.__wrapped__)
        assert re.search(r"fdiv [a-z ]*<\d+ x float>", anew._compiled.inspect_llvm())


@pytest.mark.parametrize(("setting", "backend"), [({}, "numba"), ({"NUMBA_DISABLE_JIT": "1"}, "torch")])
def test_where_numba_may_not_compile_torch_computes(
    setting: dict[str, str], backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    for name, value in setting.items():
        monkeypatch.setenv(name, value)
    done = subprocess.run([sys.executable, "-c", TOLD], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [backend]
