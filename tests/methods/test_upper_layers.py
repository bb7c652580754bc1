"""On a GPU the layers above a look are filled while it goes on: the same answers, the same counts."""

from __future__ import annotations

import pytest
import torch

from samkv_rag import SamKV
from samkv_rag.methods import Prepared, Run
from samkv_rag.methods.assembly import Assembly
from tests import oracles
from tests.methods.gates import every_wiring, prompted


def prepared(wiring: str) -> Prepared:
    case = prompted(wiring)
    return SamKV().prepare(Run(case.plan, case.adapter, case.store, oracles.ROOM))


@pytest.mark.parametrize("ahead", [True, False])
def test_the_upper_layers_are_filled_while_a_gpu_looks(ahead: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Assembly, "_runs_apart", lambda self: ahead)
    case = prompted("llama")
    run = Run(case.plan, case.adapter, case.store, oracles.ROOM)
    run.read_ahead(1)
    run.question_attention(run.caches.everything, [1])
    held, layers = run.caches._held, case.adapter.shape.layers
    assert held is not None and len(held.cache.slot_layers) == (layers if ahead else 2)
    assert run.costs.scored_bytes == run.entries.bytes_used // (layers // 2 if ahead else 1), "it looked at two of four"


@every_wiring
def test_answers_are_the_same_where_upper_layers_come_earlier(wiring: str, monkeypatch: pytest.MonkeyPatch) -> None:
    want = prepared(wiring)
    monkeypatch.setattr(Assembly, "_runs_apart", lambda self: True)
    got = prepared(wiring)
    assert got.ids == want.ids and got.logits is not None and want.logits is not None
    assert torch.equal(got.logits, want.logits)
