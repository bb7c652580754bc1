"""How kernels are compiled for the CPU: at import, and also where nothing can be kept on disk."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from samkv_kernels.backend import VARIABLE
from samkv_kernels.cpu import compiling, rounding

TOLD = "import torch; from samkv_kernels.backend import choose; print(choose(torch.device('cpu')))"


def doubled(numbers: Any, out: Any) -> None:
    for at in range(len(numbers)):
        out[at] = 2 * numbers[at]


def test_a_function_with_types_is_compiled_at_once() -> None:
    one = compiling.compiled("float32[::1]", "float32[::1]")(doubled)
    assert len(one.signatures) == 1
    out = np.empty(3, np.float32)
    one(np.arange(3, dtype=np.float32), out)
    assert out.tolist() == [0, 2, 4]


def test_where_nothing_can_be_kept_on_disk_it_is_compiled_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    real, tried = compiling.njit, list[bool]()

    def without_place(*args: Any, cache: bool = False, **options: Any) -> Any:
        tried.append(cache)
        if cache:
            raise RuntimeError("cannot cache function 'doubled': no locator available for file")
        return real(*args, **options)

    monkeypatch.setattr(compiling, "njit", without_place)
    out = np.empty(2, np.float32)
    compiling.compiled("float32[::1]", "float32[::1]")(doubled)(np.ones(2, np.float32), out)
    assert tried == [True, False] and out.tolist() == [2, 2]


def test_divisions_become_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    """By Numba's own rules every division would be tested for zero, one number at a time: five times as slow."""
    real = compiling.njit
    monkeypatch.setattr(compiling, "njit", lambda *args, cache=False, **options: real(*args, **options))  # to be read
    types = rounding._TABLE, rounding._PLACES, rounding._TABLE, rounding._TABLE, rounding._CODES
    for kernel in (rounding._codes_by_channel, rounding._codes_by_token):
        anew = compiling.compiled(*types, fastmath=rounding._AS_WRITTEN)(kernel.py_func)
        assert re.search(r"fdiv [a-z ]*<\d+ x float>", "".join(anew.inspect_llvm().values()))


@pytest.mark.parametrize(("setting", "backend"), [({}, "numba"), ({"NUMBA_DISABLE_JIT": "1"}, "torch")])
def test_where_numba_may_not_compile_torch_computes(
    setting: dict[str, str], backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    for name, value in setting.items():
        monkeypatch.setenv(name, value)
    done = subprocess.run([sys.executable, "-c", TOLD], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [backend]
