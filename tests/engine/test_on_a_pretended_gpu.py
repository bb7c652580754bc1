"""The tests that need a GPU, on one that is pretended: a process of its own, because the whole of torch pretends.

All of them: `SAMKV_TEST_PRETEND=1 TRITON_INTERPRET=1 pytest -m gpu tests/engine tests/model` takes minutes.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
REFUSALS = """
import pytest, torch
from tests.pretended.device import Graph, install, pretending
from tests.pretended.tensors import Now, pin

install()
with pretending(), torch.inference_mode():
    there, here = torch.arange(4.0, device="cuda"), torch.arange(4.0)
    for mixed in (lambda: there + here, lambda: there[:0].index_select(0, here.long()), lambda: here[there.long()]):
        with pytest.raises(RuntimeError, match="one device"):
            mixed()
    assert (there + 1).sum().item() == 10 and (there + here[3]).tolist() == [3, 4, 5, 6]
    torch.cuda.set_sync_debug_mode("error")
    large = torch.zeros(1 << 20)
    for waiting in (
        lambda: there.cpu(), lambda: there.sum().item(), lambda: there[there > 1], lambda: there.nonzero(),
        lambda: here.to("cuda"), lambda: large.to("cuda", non_blocking=True), lambda: there[[1, 2]],
        lambda: torch.tensor([1.0], device="cuda"), torch.cuda.synchronize, lambda: there.tolist(),
    ):
        with pytest.raises(RuntimeError, match="the host waits"):
            waiting()
    pin(large).to("cuda", non_blocking=True), here.to("cuda", non_blocking=True), there[there.long()]
    torch.cuda.set_sync_debug_mode("default")
    graph, scale = Graph(), 2.0
    graph.capture_begin()
    doubled = there[1:] * scale
    with pytest.raises(RuntimeError, match="recorded"):
        doubled.tolist()
    graph.capture_end()
    there += 1
    scale = 3.0
    assert doubled.tolist() == [2, 4, 6], "not yet replayed"
    graph.replay()
    assert doubled.tolist() == [4, 6, 8] and Now.replayed == 1, "new memory is read, the host's number is not"
print("refused")
"""
QUICK = "not everything_recomputed and not parity_gate and not kernels_and_torch and not host_waits"
WAITS = "(host_waits and 0.5 and int4) or decoded_together"


def run(*args: str, **variables: str) -> str:
    environment = {name: text for name, text in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(
        [sys.executable, *args], cwd=ROOT, env=environment | variables, text=True, capture_output=True
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done.stdout


def test_it_refuses_what_a_gpu_refuses_and_replays_what_a_graph_replays() -> None:
    pytest.importorskip("triton")
    assert "refused" in run("-c", REFUSALS)


@pytest.mark.parametrize(("backend", "which", "least"), [("torch", QUICK, 40), ("triton", WAITS, 2)])
def test_what_needs_a_gpu_runs_on_it(backend: str, which: str, least: int) -> None:
    pytest.importorskip("triton")
    pretend = {"SAMKV_TEST_PRETEND": "1", "SAMKV_BACKEND": backend, "TRITON_INTERPRET": str(int(backend == "triton"))}
    options = ["-q", "-n", "0", "-p", "no:cacheprovider", "-m", "gpu", "-k", which]
    said = run("-m", "pytest", *options, "tests/engine/test_on_gpu.py", **pretend)
    passed = re.search(r"(\d+) passed", said)
    assert passed and int(passed[1]) >= least and "failed" not in said, said[-2000:]
    assert bool(re.search("[1-9][0-9]* graphs replayed", said)) == (backend == "triton"), said[-2000:]
