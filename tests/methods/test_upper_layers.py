"""On a GPU everything is filled, whatever was picked there, so that the host need not wait: the same answers."""

from __future__ import annotations

import pytest
import torch

from samkv_rag.methods import Prepared, Run
from samkv_rag.methods.assembly import Assembly
from samkv_rag.methods.layout import Ground
from tests import oracles
from tests.methods.gates import dropping, every_wiring, prompted


def prepared(wiring: str) -> Prepared:
    case = prompted(wiring)
    return dropping().prepare(Run(case.plan, case.adapter, case.store, oracles.ROOM))


@pytest.mark.parametrize("apart", [True, False])
def test_the_host_asks_for_what_was_picked_only_where_that_saves_a_read(
    apart: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, found = [], Ground.found
    monkeypatch.setattr(Assembly, "_runs_apart", lambda self: apart)
    monkeypatch.setattr(Ground, "found", lambda self, picked: asked.append(picked) or found(self, picked))
    prepared("llama")
    assert len(asked) == (0 if apart else 1)


@every_wiring
def test_answers_are_the_same_where_what_is_replaced_is_filled(wiring: str, monkeypatch: pytest.MonkeyPatch) -> None:
    want = prepared(wiring)
    monkeypatch.setattr(Assembly, "_runs_apart", lambda self: True)
    got = prepared(wiring)
    assert got.ids == want.ids and got.logits is not None and want.logits is not None
    assert torch.equal(got.logits, want.logits)
