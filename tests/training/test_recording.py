"""Levelled batches teach what they taught before, and a recording computes the gradients that it recorded."""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from torch import Tensor

from samkv_rag.model.rounding import apart
from training.data import Batch, make_batch
from training.export import WEIGHTS
from training.large import CONFIG, Run, exact_sizes
from training.passages import Encoder
from training.recording import SPOTS, TARGETS, Recorder, level
from training.train import read_config

NAMED = {stage["name"]: stage for stage in read_config(CONFIG)["stages"]}


@pytest.fixture(scope="module")
def encode() -> Encoder:
    return Encoder(Tokenizer.from_file(str(WEIGHTS / "tokenizer.json")))


def a_run(encode: Encoder, device: str, tmp_path: Path) -> Run:
    config = read_config(CONFIG) | {"folder": str(tmp_path), "vocab": 3072}
    config["shape"] |= {"hidden": 192, "head_dim": 32, "mlp": 64}
    return Run(config, encode, torch.device(device))


def batches(encode: Encoder, names: list[str], rows: int = 4) -> Iterator[Batch]:
    for number, name in enumerate(names):
        yield make_batch(random.Random(number), encode, replace(exact_sizes(NAMED[name]), rows=rows))


def flat(grads: Sequence[Tensor]) -> Tensor:
    return torch.cat([grad.flatten() for grad in grads])


def played(run: Callable[[], tuple[Tensor, ...]]) -> Callable[[], object]:
    """Stand in for a graph without a GPU: what ran is run again."""
    run()
    return run


def test_a_level_batch_teaches_what_it_taught_before(
    encode: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float32: how products in bfloat16 are rounded depends on their sizes, and on the processor."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    run = a_run(encode, "cpu", tmp_path)
    for batch in batches(encode, ["alike", "mixed"]):
        levelled = level(batch)
        assert len(levelled.where) % TARGETS == 0 and len(levelled.where) > len(batch.where)
        assert {points.spots.shape[1] for points in levelled.points.values()} == {SPOTS}
        (found, grads), (again, others) = (run.gradients(one, 0.3) for one in (batch, levelled))
        assert torch.allclose(found.first, again.first) and torch.allclose(found.plain, again.plain)
        assert all(torch.allclose(loss, again.points[name]) for name, loss in found.points.items())
        assert apart(flat(others), flat(grads)) < 1e-6


def test_batches_of_a_stage_are_of_one_shape(encode: Encoder) -> None:
    made = [level(batch) for batch in batches(encode, ["alike", "alike"])]
    assert len({tuple(part.shape for part in vars(one).values() if isinstance(part, Tensor)) for one in made}) == 1
    pointless = level(
        make_batch(random.Random(0), encode, replace(exact_sizes(NAMED["alike"]), rows=2), pointing=False)
    )
    assert not pointless.points and not pointless.pointed


def test_what_is_played_again_reads_the_batch_that_comes(encode: Encoder, tmp_path: Path) -> None:
    run = a_run(encode, "cpu", tmp_path)
    recorder = Recorder(run.weights, run.gradients, played)
    for batch in map(level, batches(encode, ["alike", "mixed", "alike", "mixed"], rows=2)):
        _, grads = run.gradients(batch, 0.3)
        recorder(batch, 0.3)
        assert apart(flat(recorder.grads), flat(grads)) < 1e-5
    assert len(recorder.recordings) == 2


@pytest.mark.gpu
def test_a_recording_computes_the_gradients_of_every_batch(encode: Encoder, tmp_path: Path) -> None:
    run = a_run(encode, "cuda", tmp_path)
    assert run.recorder is not None
    for batch in map(level, batches(encode, ["alike", "mixed", "alike", "mixed"])):
        held = batch.to(run.device)
        found, grads = run.gradients(held, 0.3)
        again = run.recorder(held, 0.3)
        assert torch.allclose(found.first, again.first, rtol=1e-3) and torch.allclose(
            found.plain, again.plain, rtol=1e-3
        )
        assert apart(flat(run.recorder.grads), flat(grads)) < 1e-2
    assert len(run.recorder.recordings) == 2
