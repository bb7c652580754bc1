"""Full prefill's own answer, and what a method leaves of it: against stock forwards and real decoding."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from samkv_rag import Full, SamKV, SamKVEngine
from samkv_rag.methods import Method
from samkv_rag.profiling.answers import ANSWER_TOKENS, WORST, OwnAnswer, forced_logits, left_of, own_answer
from tests.methods.gates import TOLERANCE, VISIBLE, distance, prompted, settled_past, some_wirings
from tests.models import tiny_engine
from tests.oracles import Prompted, stock, stock_logits
from tests.profiling.questions import ITEMS, planned

ANSWER = (9, 250, 77, 31, 12)
METHODS = [SamKV(keep=keep, layers=layers, rest="drop") for keep in (0.1, 0.5, 0.9) for layers in ((0,), (1, 2), (3,))]


@pytest.fixture(scope="module")
def engine() -> SamKVEngine:
    return tiny_engine()


def spoken_by_stock(wiring: str, ids: Sequence[int], answer: Sequence[int]) -> Tensor:
    """Logits `(len(answer), vocab)` of a stock forward over prompt and answer, those by which each token is chosen."""
    with torch.no_grad():
        logits = stock(wiring)(torch.tensor([[*ids, *answer]])).logits[0].float()
    return logits[len(ids) - 1 : -1]


def by_hand(answer: Sequence[int], logits: Tensor) -> float:
    """Log-likelihood of the answer in nats."""
    return sum(float(row[token] - row.logsumexp(0)) for row, token in zip(logits, answer, strict=True))


# -- the forward over the answer -----------------------------------------------------------------------------------


@some_wirings
@pytest.mark.parametrize("method", [Full(), SamKV(keep=1)], ids=["full", "everything-kept"])
@pytest.mark.parametrize("answer", [ANSWER, ANSWER[:1]], ids=["answer", "one-token"])
def test_with_everything_kept_the_answer_is_as_likely_as_to_a_stock_model(
    wiring: str, method: Method, answer: tuple[int, ...]
) -> None:
    case = prompted(wiring)
    got = forced_logits(case.adapter, case.prepare(method), answer)
    assert distance(got, spoken_by_stock(wiring, case.plan.token_ids, answer)) < TOLERANCE


def settled_by_stock(wiring: str, case: Prompted, method: Method, answer: Sequence[int]) -> Tensor:
    """The same for a stock model that has the entries kept after the method's second look."""
    first, positions, past = settled_past(wiring, case, case.prepare(method))
    following = positions[-1] + 1 + torch.arange(len(answer) - 1)
    rest = stock_logits(stock(wiring), answer[:-1], following, past, before=positions)
    return torch.cat([first[None], rest])


@pytest.mark.parametrize("wiring", ["llama", "mistral-sliding", "gemma2"])
def test_with_little_kept_it_is_as_likely_as_to_a_stock_model_with_the_entries_that_stay(wiring: str) -> None:
    case, method = prompted(wiring), SamKV(keep=0.3, rest="drop")
    got = forced_logits(case.adapter, case.prepare(method), ANSWER)
    assert distance(got, settled_by_stock(wiring, case, method, ANSWER)) < TOLERANCE
    if wiring == "llama":  # a window of ten attends to no chunk from here
        assert distance(got, spoken_by_stock(wiring, case.plan.token_ids, ANSWER)) > VISIBLE, "what is dropped matters"


# -- the own answer ------------------------------------------------------------------------------------------------


def test_the_own_answer_is_a_stock_models_with_its_likelihood(engine: SamKVEngine) -> None:
    plan = planned(engine)
    ids = torch.tensor([plan.token_ids])
    want = stock("llama").generate(ids, do_sample=False, max_new_tokens=ANSWER_TOKENS, attention_mask=ids > -1)
    answer = want[0, plan.n_tokens :].tolist()
    own = own_answer(engine, plan)
    assert list(own.ids) == answer
    logits = spoken_by_stock("llama", plan.token_ids, answer)
    assert own.likelihood == pytest.approx(by_hand(answer, logits), abs=1e-3)


def test_an_answer_ends_with_the_models_end_token(engine: SamKVEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = planned(engine)
    whole = own_answer(engine, plan).ids
    monkeypatch.setattr(engine.adapter.model.generation_config, "eos_token_id", whole[2])
    assert own_answer(engine, plan).ids == whole[: whole.index(whole[2]) + 1] != whole


def test_rules_that_look_at_the_length_read_an_answer_as_they_made_it(
    engine: SamKVEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = planned(engine, ITEMS[0])
    third = own_answer(engine, plan).ids[2]
    monkeypatch.setattr(engine.adapter.model.generation_config, "eos_token_id", [third, 299])
    monkeypatch.setattr(engine.adapter.model.generation_config, "forced_eos_token_id", 299)
    own = own_answer(engine, plan, 6)
    assert len(own.ids) <= 3 < own.most == 6 and left_of(own, engine, plan, Full()).same


# -- what is left of it --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("penalty", [None, 1.3])
def test_the_same_answer_is_the_one_that_decoding_gives(
    engine: SamKVEngine, monkeypatch: pytest.MonkeyPatch, penalty: float | None
) -> None:
    monkeypatch.setattr(engine.adapter.model.generation_config, "repetition_penalty", penalty)
    found = []
    for item in ITEMS:
        plan = planned(engine, item)
        own = own_answer(engine, plan)
        for method in (*METHODS, SamKV(keep=1), Full()):
            answer = engine.answer(item.question, item.chunks, method=method, max_new_tokens=ANSWER_TOKENS)
            same = left_of(own, engine, plan, method).same
            assert same == (answer.token_ids == own.ids), method
            found.append(same)
    assert {True, False} == set(found), "both must occur for this to prove anything"


def test_with_everything_kept_nothing_is_lost(engine: SamKVEngine) -> None:
    plan = planned(engine)
    assert left_of(own_answer(engine, plan), engine, plan, SamKV(keep=1)).loss == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize(("gap", "loss"), [(2.5, 2.5), (WORST + 1, WORST), (-1, 0)])
def test_the_loss_is_what_the_answer_loses_of_its_likelihood_at_most_the_worst_and_no_gain(
    gap: float, loss: float
) -> None:
    engine, method = tiny_engine(sink_prefix="none"), SamKV(keep=0.3, rest="drop")
    plan = planned(engine)
    ids = own_answer(engine, plan).ids
    with_little = by_hand(ids, settled_by_stock("llama", Prompted(plan, engine.adapter, engine.store), method, ids))
    own = OwnAnswer(ids, with_little + gap)
    assert left_of(own, engine, plan, method).loss == pytest.approx(loss, abs=1e-3)


def test_another_answer_is_not_the_same_and_less_likely(engine: SamKVEngine) -> None:
    """Negative control: the answer counts, not only the prompt."""
    plan = planned(engine)
    own = own_answer(engine, plan)
    other = OwnAnswer((*own.ids[:-1], (own.ids[-1] + 1) % 200), own.likelihood)
    assert left_of(own, engine, plan, Full()).same and not left_of(other, engine, plan, Full()).same
    assert left_of(other, engine, plan, Full()).loss > 0.01
