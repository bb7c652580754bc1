"""What the first look's best tokens attend to in turn: attention of one stock forward; nothing stored is changed."""

from __future__ import annotations

import pytest
import torch

from samkv_rag import SamKV, SamKVError
from samkv_rag.methods import Run
from samkv_rag.methods.picked import Picked
from samkv_rag.methods.scoring import followed_values
from samkv_rag.types import Selection
from tests import oracles
from tests.methods.gates import dropping, prompted, some_wirings
from tests.oracles import Kept

LAST = 2


def some_tokens(run: Run) -> tuple[torch.Tensor, ...]:
    return tuple(torch.arange(1, length, 7) for length in run.lengths)


@some_wirings
def test_witnesses_attend_as_in_one_forward_over_all_stored_entries(wiring: str) -> None:
    case = prompted(wiring)
    run = Run(case.plan, case.adapter, case.store, oracles.ROOM)
    witnesses = some_tokens(run)
    picked = run.caches.ground.picked(witnesses)
    seen = run.witnessed(picked, LAST)
    whole = Kept.of(case.plan, Selection(Selection.all_of(case.plan).kept, witnesses))
    maps = oracles.stock_attention(wiring, case.plan, whole, range(LAST + 1))[:, :, whole.owner >= 0]
    at = (whole.owner >= 0).nonzero()[:, 0][picked.at]
    assert torch.allclose(seen.double(), maps[:, at].mean(0), atol=2e-5)
    assert all(map(torch.equal, picked.by_chunk(run.lengths), witnesses))


@some_wirings
def test_witnesses_alone_attend_as_beside_the_whole_prompt(wiring: str) -> None:
    """With longrope a call's frequencies are those of its last position, which early witnesses do not reach."""
    case, found = prompted(wiring), []
    for looked_before in (False, True):
        run = Run(case.plan, case.adapter, case.store, oracles.ROOM)
        if looked_before:
            run.question_attention(Selection.all_of(case.plan).kept, [LAST])
        early = (torch.arange(1, 9), *(torch.arange(0) for _ in run.lengths[1:]))
        found.append(run.witnessed(run.caches.ground.picked(early), LAST))
    assert torch.allclose(*found, atol=2e-5)


@some_wirings
def test_what_is_stored_stays_as_it_was(wiring: str) -> None:
    """The next pass finds what the question's pass has left: the same entries, and nothing read again."""
    case = prompted(wiring)
    run = Run(case.plan, case.adapter, case.store, oracles.ROOM)
    everything = Selection.all_of(case.plan).kept
    run.question_attention(everything, (LAST,))
    layout = run.caches.layout(everything)
    before = run.caches.completed(everything, layout, None, range(LAST + 1))
    entries = [tuple(part.clone() for part in layer.snapshot()) for layer in before.slot_layers]
    run.caches.hold(layout, before)
    read = run.entries.bytes_read
    run.witnessed(run.caches.ground.picked(some_tokens(run)), LAST)
    after = run.caches.completed(everything, layout, None, range(LAST + 1))
    assert after is before and run.entries.bytes_read == read
    for layer, old in zip(after.slot_layers, entries, strict=True):
        assert all(torch.equal(new, part) for new, part in zip(layer.snapshot(), old, strict=True))


def test_a_look_at_second_hand_counts_by_the_better_way() -> None:
    direct = torch.tensor([-1.0, 3.0, -1.0, -1.0, 1.0])  # from -1, so that tokens 1 and 4 get attention of 4 and 2
    witnesses = torch.tensor([1, 4])
    witnessed = torch.tensor([[0.0, 0.9, 0.5, 0.0, 0.0], [0.0, 0.0, 0.5, 0.3, 0.9]])
    found = followed_values(direct, witnesses, witnessed, gain=2.0)
    assert torch.allclose(found, torch.tensor([0.0, 4.0, 4.0, 1.2, 2.0]))


def test_what_is_recomputed_follows_what_was_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    case = prompted("llama")
    plain = case.prepare(dropping(keep=0.4, followed=0)).selection.recomputed
    target = next((chunk, token) for chunk, tokens in enumerate(plain) for token in range(5) if token not in tokens)

    def witnessed(run: Run, witnesses: Picked, last_layer: int) -> torch.Tensor:
        attention = torch.zeros(witnesses.count, run.plan.chunk_tokens)
        attention[0, sum(run.lengths[: target[0]]) + target[1]] = 1.0
        return attention

    monkeypatch.setattr(Run, "witnessed", witnessed)
    followed = case.prepare(dropping(keep=0.4)).selection.recomputed
    assert target[1] in followed[target[0]].tolist()
    assert sum(map(len, followed)) == sum(map(len, plain))


def test_anchors_are_recomputed_whatever_is_followed() -> None:
    case = prompted("llama")
    recomputed = case.prepare(dropping(keep=0.4, initial=2, local=1)).selection.recomputed
    for chunk, tokens in zip(case.plan.chunks, recomputed, strict=True):
        last = len(chunk.token_ids) - 1
        assert {0, 1, last} <= set(tokens.tolist())


def test_less_than_none_is_refused() -> None:
    with pytest.raises(SamKVError, match="followed"):
        SamKV(followed=-1)
