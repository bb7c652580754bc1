"""The kernels' own tests once more, on the CPU. Triton decides whether to interpret a function when it decorates it, so
this takes a process of its own."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ENGINE = """
from samkv_rag import SamKV, SamKVEngine
from samkv_rag.model.adapter import ModelAdapter
from tests.cases import WIRINGS
from tests.models import build, byte_tokenizer

def answers(wiring, wanted):
    adapter = ModelAdapter(build(WIRINGS[wiring]()), wanted=wanted)
    engine = SamKVEngine.from_pretrained(adapter.model, tokenizer=byte_tokenizer(), store=":memory:")
    engine.source.__dict__["adapter"] = adapter
    chunks = ["the first of two chunks", "and the second one"]
    engine.precompute(chunks)
    methods = [SamKV(recompute=1 / 3), SamKV(look="bound", keep=0.5, recompute=0.0), SamKV(look="pooled", keep=0.4)]
    found = [engine.answer("what?", chunks, method=method, max_new_tokens=2) for method in methods]
    assert {answer.report.backend for answer in found} == {wanted}
    return [answer.token_ids for answer in found]

for wiring in ("gemma2", "gemma4-unlike-heads", "glm4", "gpt-oss"):
    assert answers(wiring, "triton") == answers(wiring, "torch"), wiring
print("same answers")
"""

STEPS = """
from samkv_rag.model.steps import Recorder
from tests.methods import test_late_settling as late
from tests.model.test_loop import alone, staggered, together
from tests.models import adapter

def played(run):
    step = run.__self__
    run()
    out = run()
    def again():  # a graph sees nothing of the host: here it would find nobody
        seats, step._seats = step._seats, [step._nobody] * len(step._seats)
        out.copy_(run())
        step._seats = seats
        return out
    return again

def in_company(wiring):
    rows = late.begun(wiring, late.PACKED)
    together(wiring, rows)
    return [row.result() for row in rows]

for wiring in ("llama", "mistral-sliding"):
    loop, want, packed = adapter(wiring).loop, alone(wiring), late.alone(wiring, late.PACKED)
    loop.recorder = Recorder(loop._side_by_side, "triton", played, loop._empty)
    assert staggered(wiring) == staggered(wiring) == want, wiring
    made = loop.recorder.recordings
    assert in_company(wiring) == in_company(wiring) == packed, wiring
    assert loop.recorder.recordings > made > 0 and loop.recorder.reason is None
print("same tokens")
"""


def interpreted(*command: str) -> str:
    """What a Python that interprets Triton kernels prints."""
    roots = (str(ROOT), str(ROOT / "kernels"), *filter(None, [os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(roots)}
    done = subprocess.run([sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(autouse=True)
def triton_is_there() -> None:
    if importlib.util.find_spec("triton") is None:
        pytest.skip("triton is not installed: pip install 'samkv-rag[triton]'")


@pytest.mark.slow
def test_the_kernels_pass_in_the_interpreter() -> None:
    options = ["-q", "-p", "no:cacheprovider", "-p", "no:randomly", "-n", "0"]
    files = [str(ROOT / "tests" / "kernels" / name) for name in ("test_kernels.py", "test_rows_kernels.py")]
    printed = interpreted("-m", "pytest", *options, *files)
    summary = re.search(r"(\d+) passed, 1 skipped", printed)
    assert summary is not None and int(summary[1]) >= 20, printed  # pinned memory needs a GPU


@pytest.mark.slow
def test_the_engine_answers_alike_with_either_backend() -> None:
    """Soft caps, windows and rotated halves (Gemma 2); rotated neighbours in half a head (GLM-4); layers with
    unlike heads (Gemma 4)."""
    assert "same answers" in interpreted("-c", ENGINE)


@pytest.mark.slow
def test_steps_that_are_played_read_nothing_from_the_host() -> None:
    """Answers join and leave, with gaps and windows, some with packed entries; the kernels read tensors alone."""
    assert "same tokens" in interpreted("-c", STEPS)
