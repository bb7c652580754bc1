"""Machine code for GPUs that are not there: what the compiler made of every kernel, for compute capability 8.0 to 12.0.

That a kernel compiles says little. These tests read the machine code: registers spilled to memory, loads that wait for
each other instead of running ahead of the loop, and products that do not use the matrix unit are all slow and silent.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

if importlib.util.find_spec("triton") is None:
    pytest.skip("triton is not installed: pip install 'samkv-rag[triton]'", allow_module_level=True)

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]

# What is compiled: (kernel, variant), and the compute capability.
ATTENTION = [
    ("attend", "bf16", 90),
    ("attend", "bf16", 80),
    ("split", "bf16", 90),
    ("sinks", "bf16", 90),
    ("apart", "bf16", 90),
    ("normaliser", "bf16", 90),
    ("shares", "bf16", 90),
    ("packed", "bf16", 90),
    ("packed", "bf16", 80),
    ("packed", "bf16 64", 90),
    ("packed", "bf16 256", 90),
    ("attend", "bf16 256", 86),
    ("attend", "fp32", 86),
]
# The largest tiles there are, which only have to fit.
LARGEST = [
    (name, f"{kind} {dim}{rows}", sm)
    for name in ("attend", "normaliser", "shares")
    for kind, dim, rows in (
        ("fp32", 128, ""),
        ("fp32", 256, ""),
        ("fp32", 256, " 16"),
        ("bf16", 256, ""),
        ("fp32", 512, ""),
        ("fp32", 512, " 16"),
        ("bf16", 512, ""),
        ("bf16", 512, " 16"),
    )
    for sm in (80, 90)
]
LARGEST += [
    ("packed", f"{kind} {dim} {rows}", sm)
    for kind in ("fp32", "bf16")
    for dim, rows in ((128, 64), (256, 64), (512, 4), (512, 64))
    for sm in (80, 90)
]
# The same for GPUs for desks, in 99 KiB; packed heads of 512 numbers in float32 take 130.
LARGEST += [("attend", kind, 86) for kind in ("fp32 256", "fp32 512", "bf16", "bf16 512")]
LARGEST += [("attend", kind, 120) for kind in ("fp32 128", "bf16", "bf16 256")]
LARGEST += [("packed", kind, 86) for kind in ("fp32 256 64", "bf16 512 64")]
# Bytes of a thread's registers that may be in memory across its loops; none for what is not named here.
TRITON = tuple(map(int, version("triton").split(".")[:2]))
ACROSS = 64 if TRITON >= (3, 8) else 0
SPILLED = {
    **dict.fromkeys([(name, kind, sm) for name, kind, sm in ATTENTION if sm in (80, 86)], max(40, ACROSS)),
    **dict.fromkeys([case for case in ATTENTION if case[2] == 90], ACROSS),
    ("logits", "bound", 90): 24 if TRITON >= (3, 9) else 0,
}
SCORES = [("logits", "bound", 90)]
GATHER = [("gather", "int8", 80), ("gather", "fp8", 90), ("gather", "int4", 80)]


@pytest.fixture(scope="module")
def codes(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str, int], dict[str, Any]]:
    """Every case compiled in a process of its own, which does not interpret and shares no cache."""
    cases = [*ATTENTION, *LARGEST, *SCORES, *GATHER]
    command = [sys.executable, "-m", "tests.kernels.compiled", str(tmp_path_factory.mktemp("code")), json.dumps(cases)]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return dict(zip(cases, json.loads(done.stdout), strict=True))


def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}


def inner(code: dict[str, Any]) -> list[dict[str, int]]:
    """The loops in which products are computed."""
    return [loop for loop in code["loops"] if loop["products"]]


@pytest.mark.parametrize("case", [*ATTENTION, *SCORES])
def test_registers_suffice_in_every_loop(codes: dict[Any, dict[str, Any]], case: tuple[str, str, int]) -> None:
    """What the largest tile keeps across a loop, of its beginning and its end, may be in memory."""
    assert inner(codes[case]) and not any(loop["spilled"] for loop in inner(codes[case]))
    assert codes[case]["stack"] <= SPILLED.get(case, 0) and codes[case]["registers"] <= 255


@pytest.mark.parametrize("case", GATHER)
def test_registers_suffice_where_there_is_no_loop(codes: dict[Any, dict[str, Any]], case: tuple[str, str, int]) -> None:
    assert codes[case]["stack"] == 0 and not inner(codes[case]) and codes[case]["registers"] <= 255


@pytest.mark.parametrize("case", [*ATTENTION, *SCORES])
def test_loads_run_ahead_of_the_loop(codes: dict[Any, dict[str, Any]], case: tuple[str, str, int]) -> None:
    assert inner(codes[case]) and all(loop["ahead"] for loop in inner(codes[case]))


@pytest.mark.parametrize("case", [*ATTENTION, *SCORES])
def test_products_use_the_matrix_unit(codes: dict[Any, dict[str, Any]], case: tuple[str, str, int]) -> None:
    hopper = case[2] == 90 and case[0] not in ("logits", "packed")  # wgmma takes no tile of 32 rows or fewer
    assert codes[case]["HGMMA" if hopper else "HMMA"] > 0


@pytest.mark.parametrize("case", [*ATTENTION, *LARGEST, *SCORES, *GATHER])
def test_tiles_fit_the_shared_memory(codes: dict[Any, dict[str, Any]], case: tuple[str, str, int]) -> None:
    assert codes[case]["shared"] <= {80: 163, 86: 99, 90: 227, 120: 99}[case[2]] * 1024


@pytest.mark.parametrize("case", GATHER)
def test_the_gather_moves_sixteen_bytes_at_a_time(codes: dict[Any, dict[str, Any]], case: tuple[str, str, int]) -> None:
    assert codes[case]["wide_stores"] == codes[case]["STG"] > 0


def test_code_without_a_loop_has_no_loads_that_run_ahead(codes: dict[Any, dict[str, Any]]) -> None:
    """Negative control: the count above is not of all loads."""
    assert all(codes[case]["LDGSTS"] + codes[case]["UTMALDG"] == 0 for case in GATHER)
