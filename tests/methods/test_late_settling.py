"""What is kept is decided in the middle of the answer, by what its first tokens attend to, too: against stock forwards,
alone, in company, replayed, interrupted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from samkv_rag import SamKV, SamKVEngine, SamKVError
from samkv_rag.methods import Prepared
from samkv_rag.methods.picked import largest
from samkv_rag.methods.settling import LateSettling
from samkv_rag.model import loop
from samkv_rag.model.cache import SlotCache
from samkv_rag.model.decoding import Decoding
from samkv_rag.profiling.answers import forced_logits
from tests import oracles
from tests.cases import WIRINGS
from tests.methods.gates import TOLERANCE, VISIBLE, distance, dropping, prompted, whole_past
from tests.model import test_loop as loops
from tests.model.test_steps import recording
from tests.models import adapter, attentions, tiny_engine
from tests.oracles import Kept, Prompted, stock, stock_logits

ASKED = "Where is Lumen Labs based?"
CHUNKS = ("Lumen Labs was founded by Ada Brook in 1999.", "Its office is in Harrow Lane, above a bakery.") * 2
AT, COUNT = 3, 8
ANSWER = (9, 250, 77, 31, 12, 140)
LATE = dropping(keep=0.3, settle_at=AT)
DROPPED = (dropping(keep=0.3, settle_at=1), LATE, LATE, dropping(keep=0.4))
PACKED = (SamKV(keep=0.3, rest="int4"), replace(LATE, rest="int4"), LATE, dropping(keep=0.3, settle_at=99))
SOME = pytest.mark.parametrize("wiring", ["llama", "mistral-sliding", "gemma2", "gemma4-sharing", "cohere2"])


# -- against stock forwards ----------------------------------------------------------------------------------------


def by_hand(wiring: str, case: Prompted, prepared: Prepared, answer: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Logits by which each token of the answer is chosen, and the most that the question and the answer's first tokens
    attend to every chunk token `(T,)`. These tokens attend to all entries, those after them to what is kept."""
    model, at = stock(wiring), torch.arange(case.plan.n_tokens)
    following = case.plan.n_tokens + torch.arange(len(answer))
    oracles.stored_entries(wiring, case.plan)  # made now, so that this is not noted
    with noting(wiring, case) as maps:
        first, past = whole_past(
            wiring, case, prepared.selection.recomputed, narrow=case.adapter.shape.layers // 4, sees=0.3
        )
        asked = torch.stack(maps)[:, case.plan.question.start :]
        maps.clear()
        seen = stock_logits(model, answer[:AT], following[:AT], past, before=at)
        looks = torch.cat([asked, torch.stack(maps)[:, :, : len(at)]], 1)
    slots = torch.cat([Kept.of(case.plan, prepared.selection).positions, following[:AT]])
    rest = stock_logits(model, answer[AT:-1], following[AT:-1], oracles.thinned(past, slots), before=slots)
    chunks = torch.cat([torch.arange(chunk.start, chunk.stop) for chunk in case.plan.chunks])
    return torch.cat([first[None], seen, rest]), looks.amax((0, 1))[chunks]


@contextmanager
def noting(wiring: str, case: Prompted) -> Iterator[list[Tensor]]:
    """Attention `(Q, T)` on the upper half of the layers, averaged over heads, of what runs within the block."""
    maps, n_layers = list[Tensor](), case.adapter.shape.layers

    def note(module: Any, args: Any, out: Any) -> None:
        maps.append(out[1][0].double().mean(0))

    hooks = [module.register_forward_hook(note) for module in attentions(stock(wiring))[n_layers // 2 :]]
    try:
        yield maps
    finally:
        for hook in hooks:
            hook.remove()


def best_by_hand(case: Prompted, most: Tensor, budget: int) -> list[list[int]]:
    """Every chunk's tokens among the best `budget`: by the `most` attention to it, or to one of the eight before it."""
    worth, start = list[Tensor](), 0
    for chunk in case.plan.chunks:
        own = most[start : (start := start + len(chunk.token_ids))]
        worth.append(torch.stack([own[max(0, at - 8) : at + 1].amax() for at in range(len(own))]))
    marks = largest(torch.cat(worth), budget).marks
    return [own.nonzero()[:, 0].tolist() for own in marks.split([len(chunk.token_ids) for chunk in case.plan.chunks])]


@SOME
def test_the_first_tokens_see_all_and_what_they_look_at_stays_for_the_others(wiring: str) -> None:
    case = prompted(wiring)
    prepared = case.prepare(LATE)
    got = forced_logits(case.adapter, prepared, ANSWER)
    want, looks = by_hand(wiring, case, prepared, ANSWER)
    assert distance(got, want) < TOLERANCE
    budget = int(0.3 * case.plan.chunk_tokens)
    assert [own.tolist() for own in prepared.selection.kept] == best_by_hand(case, looks, budget)
    everything = forced_logits(case.adapter, case.prepare(dropping(keep=0.3, settle_at=99)), ANSWER)
    assert distance(got[: AT + 1], everything[: AT + 1]) < TOLERANCE
    if wiring == "llama":  # a window of ten reaches no chunk from here
        assert distance(got[AT + 1 :], everything[AT + 1 :]) > VISIBLE, "what is dropped matters"


def test_answers_that_look_elsewhere_keep_other_tokens() -> None:
    case, kept = prompted("llama"), set[str]()
    for seed in range(5):
        prepared = case.prepare(dropping(keep=0.2, settle_at=6))
        forced_logits(case.adapter, prepared, oracles.random_ids(7, seed))
        kept.add(str([own.tolist() for own in prepared.selection.kept]))
    assert len(kept) > 1


@pytest.mark.parametrize("method", [LATE, PACKED[0]], ids=["dropped", "packed"])
@loops.every_wiring
def test_what_is_decoded_is_what_is_likeliest(wiring: str, method: SamKV) -> None:
    case = prompted(wiring)
    tokens = case.tokens(method, COUNT)
    logits = forced_logits(case.adapter, case.prepare(method), tokens)
    assert logits.argmax(-1).tolist() == tokens and len(tokens) == COUNT


def test_where_all_is_kept_there_is_nothing_to_settle() -> None:
    prepared = prompted("llama").prepare(dropping(keep=1.0, recompute=0.5, settle_at=AT))
    assert prepared.settling is None and not prepared.selection.notes


def test_where_keys_turn_with_the_texts_length_it_is_settled_with_the_first_token_and_said() -> None:
    case = prompted("llama-longrope-crossed")
    prepared = case.prepare(LATE)
    assert prepared.settling is None and "settle_at was ignored" in prepared.selection.notes[0]
    assert sum(map(len, prepared.selection.kept)) == int(0.3 * case.plan.chunk_tokens)


# -- in company ----------------------------------------------------------------------------------------------------


def begun(wiring: str, methods: Sequence[SamKV] = DROPPED) -> list[Decoding]:
    """Answers to four prompts, by default settled after 1, 3 and 3 tokens, and never."""
    return [loops.begin(*pair) for pair in zip(loops.prompted(wiring), methods, strict=True)]


def alone(wiring: str, methods: Sequence[SamKV] = DROPPED) -> list[list[int]]:
    return loops.one_by_one(wiring, begun(wiring, methods))


@pytest.mark.parametrize("methods", [DROPPED, PACKED], ids=["dropped", "packed"])
@loops.every_wiring
def test_in_company_the_tokens_are_those_of_each_alone(wiring: str, methods: Sequence[SamKV]) -> None:
    rows = begun(wiring, methods)
    adapter(wiring).loop.step(rows[1:3])
    loops.together(wiring, rows)
    assert [row.result() for row in rows] == alone(wiring, methods)


@pytest.mark.parametrize("methods", [DROPPED, PACKED], ids=["dropped", "packed"])
@pytest.mark.parametrize("wiring", [name for name in WIRINGS if not adapter(name).loop._apart])
def test_recorded_steps_go_on_with_what_stays(
    wiring: str, methods: Sequence[SamKV], monkeypatch: pytest.MonkeyPatch
) -> None:
    if adapter(wiring).latents is not None:
        pytest.skip("steps over latents are not fixed")
    want = alone(wiring, methods)
    recorder = recording(monkeypatch, wiring)
    for _ in range(2):
        rows = begun(wiring, methods)
        loops.together(wiring, rows)
        assert [row.result() for row in rows] == want and recorder.recordings > 0 and recorder.reason is None
    if methods is PACKED:
        assert {sizes.packed for sizes in recorder._fixed} == {0, 256}, "with packed entries and without"


# -- what goes wrong -----------------------------------------------------------------------------------------------


def failing(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> list[Decoding]:
    rows, right = begun("llama"), LateSettling.settle

    def settle(self: LateSettling, cache: Any, tokens: Any) -> Tensor:
        if cache is rows[1].cache:
            raise error
        return right(self, cache, tokens)

    monkeypatch.setattr(LateSettling, "settle", settle)
    return rows


def test_an_error_is_its_own_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    want = alone("llama")
    rows = failing(monkeypatch, RuntimeError("no memory"))
    loops.together("llama", rows)
    with pytest.raises(RuntimeError, match="no memory"):
        rows[1].result()
    assert [rows[row].result() for row in (0, 2, 3)] == [want[row] for row in (0, 2, 3)]


def on_a_gpu(*_: Any) -> None:
    raise torch.OutOfMemoryError


def on_the_host(*_: Any) -> None:
    torch.empty(1 << 62, dtype=torch.uint8)


@pytest.mark.parametrize("short", [on_a_gpu, on_the_host])
@pytest.mark.parametrize(("where", "method"), [("logits_of", LATE), ("keep", LATE), ("keep", PACKED[1])])
def test_without_the_memory_to_settle_all_is_kept(
    where: str, method: SamKV, short: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    case = prompted("llama")
    want = case.tokens(dropping(keep=0.3, settle_at=99), COUNT)
    prepared = case.prepare(method)
    row = prepared.begin(case.adapter.loop, max_new_tokens=COUNT, do_sample=False)

    with monkeypatch.context() as patch:
        patch.setattr(case.adapter if where == "logits_of" else SlotCache, where, short)
        loops.together("llama", [row])
    assert row.result() == want != case.tokens(LATE, COUNT)
    assert sum(map(len, prepared.selection.kept)) == case.plan.chunk_tokens
    assert "too little memory to decide what to keep" in prepared.selection.notes[0]


def test_who_interrupts_it_ends_that_answer_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    want = alone("llama")
    rows = failing(monkeypatch, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        loops.together("llama", rows)
    loops.together("llama", rows)
    with pytest.raises(SamKVError, match="interrupted while it was decided"):
        rows[1].result()
    assert [rows[row].result() for row in (0, 2, 3)] == [want[row] for row in (0, 2, 3)]


@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_step_that_is_broken_off_is_taken_again(at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before settling, or in the step that settles, once that is done but its token has not been heard."""
    want, right, steps = alone("llama"), loop.take, list[int]()

    def interrupted(decodings: Any, logits: Tensor) -> None:
        steps.append(len(decodings[0].tokens))
        if steps == list(range(1, at + 1)):
            raise KeyboardInterrupt
        right(decodings, logits)

    row = begun("llama")[1]
    monkeypatch.setattr(loop, "take", interrupted)
    with pytest.raises(KeyboardInterrupt):
        loops.together("llama", [row])
    loops.together("llama", [row])
    assert row.result() == want[1]


def test_what_says_nothing_beside_it_is_refused() -> None:
    with pytest.raises(SamKVError, match='settle_at .* needs settle="after"'):
        SamKV(settle="before", settle_at=4)
    with pytest.raises(SamKVError, match="counts once: leave out answer_weight"):
        dropping(settle_at=4, answer_weight=2)
    assert dropping(settle_at=4, answer_weight=1).settle_at == 4


# -- through the engine --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def engine() -> SamKVEngine:
    engine = tiny_engine()
    engine.precompute(CHUNKS)
    return engine


def test_a_report_says_what_is_kept_from_then_on_or_that_the_answer_was_too_short(engine: SamKVEngine) -> None:
    short, long = (engine.answer(ASKED, CHUNKS, method=LATE, max_new_tokens=count).report for count in (AT, AT + 1))
    assert short.kept_tokens == short.chunk_tokens and "ended before token 4" in short.notes[0]
    assert long.kept_tokens == int(0.3 * long.chunk_tokens) and not long.notes
    assert long.kv_bytes_resident < short.kv_bytes_resident == long.kv_bytes_peak
    spared = (
        long.kept_tokens * len(CHUNKS[0]) // long.chunk_tokens
    )  # of the first chunk, which is exact (a byte a token)
    assert 0 < spared < short.recomputed_tokens == long.recomputed_tokens == long.kept_tokens - spared


def test_streamed_it_is_the_same_answer(engine: SamKVEngine) -> None:
    want = engine.answer(ASKED, CHUNKS, method=LATE, max_new_tokens=COUNT)
    with engine.stream_answer(ASKED, CHUNKS, method=LATE, max_new_tokens=COUNT) as stream:
        assert "".join(stream) == want.text and stream.answer.report.kept_tokens == want.report.kept_tokens


@pytest.mark.parametrize("options", [{"repetition_penalty": 3.0}, {"min_new_tokens": COUNT}, {"do_sample": True}])
def test_rules_go_on_seeing_the_whole_prompt(options: dict[str, Any]) -> None:
    """A penalty also applies to what was dropped, and a length counts it."""
    case = prompted("llama")
    torch.manual_seed(0)
    decoding = loops.begin(case, LATE, **options)
    while not decoding.ended:
        assert decoding.ids[0].tolist() == [*case.plan.token_ids, *decoding.tokens]
        case.adapter.loop.step([decoding])
    assert len(decoding.result()) == COUNT and decoding.cache.get_seq_length() < case.plan.n_tokens
