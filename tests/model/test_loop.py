"""Answers decoded side by side are, token by token, the answers decoded alone: on every wiring, whichever join when.

What is decoded alone is compared with plain `generate()` in `tests/methods/test_gates.py`, through the same loop.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList

from samkv_rag import ChunkKVStore, Full, Reuse, SamKV
from samkv_rag.methods import Method
from samkv_rag.model.attention import AttentionPlan
from samkv_rag.model.decoding import Decoding
from samkv_rag.model.loop import RowsPlan
from tests import oracles
from tests.cases import WIRINGS
from tests.models import adapter
from tests.oracles import Prompted

COUNT = 8
LENGTHS = ((37, 16, 30, 5), (9,), (21, 40), (64, 3))
METHODS: tuple[Method, ...] = (
    SamKV(keep=0.4, rest="drop"),
    Full(),
    Reuse(),
    SamKV(keep=0.2, recompute=1 / 3, rest="drop"),
)
SLIDING = [name for name in WIRINGS if "sliding" in name or name in ("gemma2", "gemma3", "gemma4", "cohere2")]

every_wiring = pytest.mark.parametrize("wiring", WIRINGS)


@cache
def prompted(wiring: str) -> tuple[Prompted, ...]:
    """Prompts of different lengths; with the methods above, caches of different lengths and gaps."""
    store = ChunkKVStore(":memory:")
    return tuple(
        Prompted(oracles.stored_plan(adapter(wiring), store, lengths, seed=seed), adapter(wiring), store)
        for seed, lengths in enumerate(LENGTHS)
    )


def begin(case: Prompted, method: Method, seed: int | None = None, **generation: Any) -> Decoding:
    random = None if seed is None else torch.Generator().manual_seed(seed)
    options = {"max_new_tokens": COUNT, "do_sample": False} | generation
    return case.prepare(method).begin(case.adapter.loop, random=random, **options)


@cache
def alone(wiring: str, seeded: bool = False) -> list[list[int]]:
    """Every prompt's tokens, decoded with nothing else in the model; sampled ones with a seed of their own."""
    rows = [
        begin(*pair, **sampling(seeded, seed)) for seed, pair in enumerate(zip(prompted(wiring), METHODS, strict=True))
    ]
    return one_by_one(wiring, rows)


def one_by_one(wiring: str, rows: Sequence[Decoding]) -> list[list[int]]:
    for row in rows:
        together(wiring, [row])
    return [row.result() for row in rows]


def sampling(seeded: bool, seed: int) -> dict[str, Any]:
    return {"do_sample": True, "temperature": 1.2, "seed": seed} if seeded else {}


def together(wiring: str, rows: Sequence[Decoding]) -> None:
    while going := [row for row in rows if not row.ended]:
        adapter(wiring).loop.step(going)


def staggered(wiring: str, seeded: bool = False) -> list[list[int]]:
    """The same prompts: one joins at every step, so that they also leave one after another."""
    loop, rows = adapter(wiring).loop, list[Decoding]()
    for seed, pair in enumerate(zip(prompted(wiring), METHODS, strict=True)):
        rows.append(begin(*pair, **sampling(seeded, seed)))
        loop.step(rows)
    together(wiring, rows)
    return [row.result() for row in rows]


# -- equality ------------------------------------------------------------------------------------------------------


@every_wiring
@pytest.mark.parametrize("seeded", [False, True], ids=["greedy", "sampled"])
def test_side_by_side_the_tokens_are_those_of_each_alone(wiring: str, seeded: bool) -> None:
    assert staggered(wiring, seeded) == alone(wiring, seeded)
    assert all(len(tokens) == COUNT for tokens in alone(wiring, seeded))


@every_wiring
def test_the_whole_of_full_is_plain_generate_in_company_too(wiring: str) -> None:
    plan = prompted(wiring)[1].plan
    ids = torch.tensor([plan.token_ids])
    want = oracles.stock(wiring, "sdpa").generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=COUNT
    )
    assert staggered(wiring)[1] == want[0, ids.shape[1] :].tolist()


def test_torch_s_own_random_state_is_used_without_a_seed_and_left_alone_with_one() -> None:
    case, state = prompted("llama")[0], torch.random.get_rng_state()
    options = {"do_sample": True, "temperature": 1.2}
    row = begin(case, Full(), seed=5, **options)
    together("llama", [row])
    assert torch.equal(torch.random.get_rng_state(), state)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        other = begin(case, Full(), **options)
        together("llama", [other])
    assert other.result() == row.result()


def test_each_row_goes_by_its_own_rules() -> None:
    """A penalty, an end token and a length of one row are not those of its neighbours."""
    cases, plain = prompted("llama"), alone("llama")
    end = plain[1][1]  # ends that row early, wherever else it occurs
    rules: list[dict[str, Any]] = [
        {"repetition_penalty": 1.7}, {"eos_token_id": end, "pad_token_id": 0}, {"max_new_tokens": 3}, {},
    ]  # fmt: skip
    rows = [begin(case, method, **rule) for case, method, rule in zip(cases, METHODS, rules, strict=True)]
    together("llama", rows)
    got = [row.result() for row in rows]
    assert got[0] == cases[0].tokens(METHODS[0], COUNT, repetition_penalty=1.7) != plain[0]
    assert got[1] == plain[1][: plain[1].index(end) + 1]
    assert got[2] == plain[2][:3]
    assert got[3] == plain[3]


def test_one_forward_serves_all_rows_and_longrope_takes_one_each(monkeypatch: pytest.MonkeyPatch) -> None:
    for wiring, sizes in {"llama": [4], "deepseek-v3": [4], "llama-longrope-crossed": [1, 1, 1, 1]}.items():
        passes: list[int] = []
        rows = [begin(case, method) for case, method in zip(prompted(wiring), METHODS, strict=True)]
        handle = (
            adapter(wiring)
            .model.get_input_embeddings()
            .register_forward_hook(lambda module, inputs, output, passes=passes: passes.append(inputs[0].numel()))
        )
        try:
            adapter(wiring).loop.step(rows)
        finally:
            handle.remove()
        assert passes == sizes


# -- controls: what a wrong row, position or mask would do -----------------------------------------------------------


def test_a_neighbours_cache_would_be_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    right = RowsPlan.attend

    def turned(self: RowsPlan, *args: Any) -> Tensor:
        return right(RowsPlan([*self.rows[1:], self.rows[0]]), *args)

    want = alone("llama")
    monkeypatch.setattr(RowsPlan, "attend", turned)
    assert staggered("llama") != want


def test_positions_that_count_slots_would_be_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    def counted(self: Decoding) -> tuple[Tensor, Tensor]:
        start = self.cache.get_seq_length()
        return self.ids[:, start:], torch.arange(start, self.ids.shape[1])[None]

    want = alone("llama")
    monkeypatch.setattr(Decoding, "next", property(counted))
    assert staggered("llama") != want


@pytest.mark.parametrize("wiring", SLIDING)
def test_a_mask_without_the_window_would_be_visible(wiring: str, monkeypatch: pytest.MonkeyPatch) -> None:
    want, right = alone(wiring), AttentionPlan.sight

    def boundless(self: AttentionPlan, n_query: int, n_key: int, window: int | None) -> Any:
        return right(self, n_query, n_key, window if n_query > 1 else None)

    monkeypatch.setattr(AttentionPlan, "sight", boundless)
    assert staggered(wiring) != want


# -- errors and interrupts -----------------------------------------------------------------------------------------


class Breaks(StoppingCriteria):
    """A rule that fails at the third token."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        self.calls += 1
        if self.calls == 3:
            raise RuntimeError("out of luck")
        return torch.zeros(1, dtype=torch.bool)


class Hearer:
    """A listener that notes what it hears, and fails at token `fails`."""

    def __init__(self, fails: int | None = None) -> None:
        self.heard, self.ends, self._fails = list[int](), 0, fails

    def put(self, value: Tensor) -> None:
        self.heard += value.tolist()
        if len(self.heard) == self._fails:
            raise OSError("hung up")

    def end(self) -> None:
        self.ends += 1


def test_an_error_in_a_rows_rules_or_listener_is_its_own() -> None:
    cases, want = prompted("llama"), alone("llama")
    listening = Hearer()
    rows = [
        begin(cases[0], METHODS[0], stopping_criteria=StoppingCriteriaList([Breaks()])),
        begin(cases[1], METHODS[1], hearer=Hearer(fails=2)),
        begin(cases[2], METHODS[2], hearer=listening),
    ]
    together("llama", rows)
    for row, error in zip(rows, (RuntimeError, OSError), strict=False):
        with pytest.raises(error):
            row.result()
    assert rows[2].result() == listening.heard == want[2]
    assert listening.ends == 1


class LastHearer(Hearer):
    """A listener that notes whether the answer had ended before `end` was called, and may fail then."""

    def __init__(self, error: Exception | None) -> None:
        super().__init__()
        self.decoding: Decoding | None = None
        self.late: bool | None = None
        self._error = error

    def end(self) -> None:
        assert self.decoding is not None
        self.late = self.decoding.ended
        if self._error is not None:
            raise self._error


@pytest.mark.parametrize("error", [None, OSError("hung up")], ids=["hears", "fails"])
def test_an_answer_ends_when_its_listener_has_heard_all_of_it(error: Exception | None) -> None:
    hearer = LastHearer(error)
    row = hearer.decoding = begin(prompted("llama")[0], METHODS[0], hearer=hearer)
    together("llama", [row])
    assert hearer.late is False and row.ended and row.error is error


def test_an_error_in_the_forward_is_the_error_of_the_row_that_causes_it() -> None:
    """A cache without room fails in the middle of a forward for four: the others take the step again without it."""
    cases, want = prompted("llama"), alone("llama")
    rows = [begin(case, method) for case, method in zip(cases, METHODS, strict=True)]
    for layer in rows[2].cache.slot_layers[2:]:  # two layers have been written when the third refuses
        layer._keys = layer._keys[:, :, : layer.length + 3]
    together("llama", rows)
    with pytest.raises(ValueError, match="cache is full"):
        rows[2].result()
    assert len(rows[2].tokens) == 4
    assert [rows[row].result() for row in (0, 1, 3)] == [want[row] for row in (0, 1, 3)]


@pytest.mark.parametrize("wiring", ["llama", "mistral-sliding", "phi3-longrope"])
def test_a_step_that_is_interrupted_can_be_taken_again(wiring: str) -> None:
    rows = [begin(case, method) for case, method in zip(prompted(wiring), METHODS, strict=True)]
    left = [2]

    def interrupt(*_: Any) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt

    handle = adapter(wiring).decoder.layers[2].register_forward_hook(interrupt)
    try:
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                while True:
                    adapter(wiring).loop.step(rows)
            left[0] = 3
    finally:
        handle.remove()
    together(wiring, rows)
    assert [row.result() for row in rows] == alone(wiring)
