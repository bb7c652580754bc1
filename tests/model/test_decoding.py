"""Tokens of several answers are chosen together; each keeps rules, draws and errors of its own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList
from transformers.generation.stopping_criteria import EosTokenCriteria, MaxLengthCriteria

from samkv_rag.model import decoding
from samkv_rag.model.decoding import Decoding, Written
from samkv_rag.model.rules import Rules, Signal
from tests.model.test_loop import COUNT, METHODS, alone, begin, prompted, together
from tests.models import adapter


class Refuses(LogitsProcessor):
    """A processor that fails at its third token."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.calls += 1
        if self.calls == 3:
            raise RuntimeError("no token will do")
        return scores


class Never(StoppingCriteria):
    """A criterion that notes what it is shown."""

    def __init__(self) -> None:
        self.shown = list[list[int]]()

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        self.shown.append(input_ids[0].tolist())
        return torch.zeros(len(input_ids), dtype=torch.bool)


def four(**own: Any) -> list[Decoding]:
    """Answers side by side, the second one with rules of its `own`."""
    cases = prompted("llama")
    return [
        begin(case, method, **(own if case is cases[1] else {})) for case, method in zip(cases, METHODS, strict=True)
    ]


def test_answers_that_cannot_share_a_forward_are_decoded_alone_with_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, want = four(), alone("llama")

    def fails(*given: Any) -> None:
        raise RuntimeError("no such rows")

    monkeypatch.setattr(adapter("llama").loop, "_side_by_side", fails)
    with pytest.warns(RuntimeWarning, match=r"could not be decoded together \(no such rows\)"):
        together("llama", rows)
    assert [row.result() for row in rows] == want


def test_a_processor_that_fails_ends_its_own_answer() -> None:
    rows, want = four(logits_processor=LogitsProcessorList([Refuses()])), alone("llama")
    together("llama", rows)
    with pytest.raises(RuntimeError, match="no token"):
        rows[1].result()
    assert rows[1].tokens == want[1][:2]
    assert [rows[row].result() for row in (0, 2, 3)] == [want[row] for row in (0, 2, 3)]


def test_a_device_that_fails_ends_all(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> Tensor:
        raise RuntimeError("an illegal memory access")

    rows = four()
    monkeypatch.setattr(decoding, "_chosen", fails)
    adapter("llama").loop.step(rows)
    for row in rows:
        with pytest.raises(RuntimeError, match="illegal"):
            row.result()


@pytest.mark.parametrize("seeded", [True, False], ids=["sampled", "greedy"])
def test_what_was_drawn_before_an_interrupt_is_drawn_once(seeded: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C while the host waits for the tokens: the step is taken again, with the same draws."""
    options = {"do_sample": True, "temperature": 1.2} if seeded else {}
    pairs = list(zip(prompted("llama"), METHODS, strict=True))
    rows = [begin(*pair, seed=seed if seeded else None, **options) for seed, pair in enumerate(pairs)]
    right = decoding._chosen

    def interrupted(*arguments: Any) -> Tensor:
        right(*arguments)
        raise KeyboardInterrupt

    for _ in range(2):
        adapter("llama").loop.step(rows)
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(decoding, "_chosen", interrupted)
            adapter("llama").loop.step(rows)
    together("llama", rows)
    assert [row.result() for row in rows] == alone("llama", seeded)


def test_the_usual_criteria_are_numbers_and_others_see_all_tokens() -> None:
    looks, want = Never(), alone("llama")[1]
    rows = four(stopping_criteria=StoppingCriteriaList([looks]), eos_token_id=[want[3], 1], pad_token_id=0)
    together("llama", rows)
    said = want[: want.index(want[3]) + 1]
    prompt = rows[1].ids[0, : -len(said)].tolist()
    assert rows[1].result() == said and rows[1].ids[0].tolist() == prompt + said
    assert looks.shown == [prompt + said[:count] for count in range(1, len(said) + 1)]


def test_a_signal_ends_an_answer_behind_the_token_at_which_it_is_given() -> None:
    asked = list[int]()

    def given() -> bool:
        asked.append(1)
        return len(asked) == 3

    rows, want = four(stopping_criteria=StoppingCriteriaList([Signal(given)])), alone("llama")
    together("llama", rows)
    assert rows[1].result() == want[1][:3] and [rows[row].result() for row in (0, 2, 3)] == [want[0], *want[2:]]
    assert Signal(lambda: True)(rows[0].ids, None).tolist() == [True]


def test_criteria_that_do_more_than_compare_are_asked() -> None:
    """One that ends before the answer must, one of a class of its own, and one that would warn."""
    model, tokens = adapter("llama").model, torch.ones(1, 4, dtype=torch.long)

    class Own(EosTokenCriteria):
        pass

    more = [MaxLengthCriteria(6), Own([3])]
    rules = Rules.of(model, tokens, max_new_tokens=COUNT, stopping_criteria=StoppingCriteriaList(more))
    assert list(rules.criteria) == more and rules.max_length == 4 + COUNT
    long = Rules.of(model, tokens, max_new_tokens=model.config.max_position_embeddings)
    assert [type(one) for one in long.criteria] == [MaxLengthCriteria]


def test_tokens_are_written_down_when_they_are_asked_for() -> None:
    written, tokens = Written(torch.tensor([[7, 8]]), room=4), list[int]()
    for new in ([], [1], [2, 3], [], [4]):
        tokens += new
        assert written.upto(tokens)[0].tolist() == [7, 8, *tokens]
