"""Steps of fixed sizes give the tokens of plain ones, on every wiring, and so do replayed ones, whichever answers join
and leave.

Without a GPU, a recording is the function itself, run into the memory of its first result, as a graph does.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from samkv_kernels.rows_attention import packed_place, place
from samkv_rag.model import seats
from samkv_rag.model.cache import SlotCache
from samkv_rag.model.decoding import Decoding
from samkv_rag.model.seats import rounded
from samkv_rag.model.steps import LATER, PLAIN_STEPS, FixedPlan, FixedStep, Recorder
from tests.cases import WIRINGS
from tests.model.test_loop import COUNT, METHODS, SLIDING, alone, begin, prompted, staggered, together
from tests.models import adapter

every_wiring = pytest.mark.parametrize("wiring", [name for name in WIRINGS if not adapter(name).loop._apart])


def replayed(run: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """What `Graphs` does, without a GPU: what a recording reads from the host is read once."""
    run()
    out = run()
    return lambda: out.copy_(run())


def refused(run: Callable[[], Tensor]) -> Callable[[], Tensor]:
    raise RuntimeError("waits for the GPU")


def recording(
    monkeypatch: pytest.MonkeyPatch, wiring: str, capture: Any = replayed, empty: Any = None
) -> Recorder:  # fmt: skip
    """The recorder that takes the steps of a wiring from now on."""
    loop = adapter(wiring).loop
    recorder = Recorder(loop._side_by_side, "torch", capture, empty or loop._empty)
    monkeypatch.setattr(loop, "recorder", recorder)
    return recorder


def rows_of(wiring: str, count: int = 4) -> list[Decoding]:
    """Answers side by side, none of which has taken a step."""
    return [begin(*pair) for pair in list(zip(prompted(wiring), METHODS, strict=True))[:count]]


def step(rows: list[Decoding], wiring: str = "llama") -> None:
    adapter(wiring).loop.step(rows)


# -- the same tokens -----------------------------------------------------------------------------------------------


@every_wiring
@pytest.mark.parametrize("seeded", [False, True], ids=["greedy", "sampled"])
def test_fixed_steps_give_the_tokens_of_plain_ones(wiring: str, seeded: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if adapter(wiring).latents is not None:
        pytest.skip("steps over latents are not fixed")
    want = alone(wiring, seeded)
    recorder = recording(monkeypatch, wiring)
    rows = [begin(prompted(wiring)[0], METHODS[0], **_sampling(seeded))]
    together(wiring, rows)
    assert rows[0].result() == want[0] and recorder.recordings == 1
    assert staggered(wiring, seeded) == want, "rows join and leave"
    made = recorder.recordings
    assert staggered(wiring, seeded) == want, "what was recorded is played for others"
    assert recorder.recordings <= made + 1 and recorder.reason is None


def _sampling(seeded: bool) -> dict[str, Any]:
    return {"do_sample": True, "temperature": 1.2, "seed": 0} if seeded else {}


def test_caches_are_what_plain_steps_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    case = prompted("llama")[0]
    plain = begin(case, METHODS[0])
    together("llama", [plain])
    recording(monkeypatch, "llama")
    fixed = begin(case, METHODS[0])
    for layer in fixed.cache.slot_layers:
        layer._keys[:, :, layer.length :] = layer._values[:, :, layer.length :] = torch.nan
    together("llama", [fixed])
    for mine, theirs in zip(fixed.cache.slot_layers, plain.cache.slot_layers, strict=True):
        for got, want in zip(mine.snapshot(), theirs.snapshot(), strict=True):
            torch.testing.assert_close(got, want)


@pytest.mark.parametrize("slots", [1, 3])
def test_rows_in_which_nobody_sits_change_nothing(slots: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their cache is full of NaN, and so are they if it has slots that no step writes."""
    want = alone("llama")

    def poisoned(room: int) -> SlotCache:
        cache = adapter("llama").empty_cache(slots)
        for layer in cache.slot_layers:
            layer._keys[:], layer._values[:] = torch.nan, torch.nan
        return cache

    recorder = recording(monkeypatch, "llama", empty=poisoned)
    rows = rows_of("llama", 3)
    together("llama", rows)
    assert [row.result() for row in rows] == want[:3] and [sizes.rows for sizes in recorder._fixed] == [4]


# -- which row is whose --------------------------------------------------------------------------------------------


def test_who_joins_and_who_leaves_is_played_what_was_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three rows and four have the same sizes: one recording, made after they have been taken plainly."""
    recorder, want = recording(monkeypatch, "llama"), alone("llama")
    rows, made = rows_of("llama"), []
    late = rows.pop(1)
    for company in (rows, rows, [*rows[:1], late, *rows[1:]], [late, rows[1], rows[0]], [*rows, late]):
        step(company)
        made.append(recorder.recordings)
    together("llama", rows)
    together("llama", [late, *rows_of("llama", 3)])
    assert [row.result() for row in (rows[0], late, *rows[1:])] == want
    assert made == [0] * (PLAIN_STEPS - 1) + [1] * (len(made) - PLAIN_STEPS + 1)
    assert recorder.recordings == 1


def test_the_table_says_where_the_caches_lie_and_where_nobody_sits(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is all that a kernel reads, after every step; answers that stay are not moved."""
    recorder, rows = recording(monkeypatch, "llama"), rows_of("llama")
    for company in (rows, [rows[3], rows[1], rows[0]], [rows[1], rows[2], rows[3]], rows[::-1]):
        step(company)
        (fixed,), (spare, nobody) = recorder._fixed.values(), recorder._spare  # type: ignore[misc]
        assert sorted(fixed._order) == [0, 1, 2, 3] or fixed._seats.count(nobody) == 1
        caches = dict(zip(fixed._order, (row.cache for row in company), strict=True))
        for row in range(4):
            cache = caches.get(row, spare.cache)
            for layer, base, table in zip(cache.slot_layers, spare.cache.slot_layers, fixed._table, strict=True):
                assert table[row].tolist() == place(*layer.buffers, *base.buffers)


def test_a_second_table_says_what_caches_hold_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of which answers, and at which positions, after every step; rows of zeros have nothing."""
    recorder, rows = recording(monkeypatch, "llama"), rows_of("llama")
    here, packed = torch.arange(rows[1].cache.get_seq_length()), torch.tensor([1, 2, 5])
    rows[1].cache.keep(here[~torch.isin(here, packed)], packed)
    rows[1]._dropped = 3
    for company in (rows, [rows[3], rows[1], rows[0]], [rows[1], rows[2], rows[3]], rows[::-1]):
        step(company)
    (fixed,), (spare, _) = recorder._fixed.values(), recorder._spare  # type: ignore[misc]
    packing, packed = fixed._packed, rows[1].cache.packed
    assert packing is not None and packed is not None and fixed._order == [3, 0, 1, 2]
    for table, layer in zip(packing.table, packed.layers, strict=True):
        assert table[1].tolist() == packed_place(layer, spare.codes, spare.steps) and table[1, 4] == 3
        assert not table[[0, 2, 3]].any()
    assert (packing.positions[1, :3].tolist(), int(packing.positions[1, 3])) == ([1, 2, 5], LATER)
    assert bool((packing.positions[[0, 2, 3]] == LATER).all())


@pytest.mark.parametrize("window", [None, 1, 7, 30])
def test_spans_are_those_of_each_caches_own_positions(window: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gaps included; a row that an answer has left attends to its first slot."""
    recorder, rows = recording(monkeypatch, "llama"), rows_of("llama")
    step(rows)
    step(rows[1:])
    (fixed,) = recorder._fixed.values()
    plan = FixedPlan([], [], fixed._positions, fixed._coming[1], "torch")
    spans, gaps = plan._seen(window), 0
    for row, decoding in enumerate(rows[1:], 1):
        at, slot = decoding.cache.positions.tolist(), decoding.cache.get_seq_length() - 1
        seen = [index for index in range(slot + 1) if window is None or at[slot] - at[index] < window]
        assert (int(spans.first[row, 0]), int(spans.last[row, 0])) == (seen[0], slot) and int(plan.here()[row]) == at[
            slot
        ]
        gaps += at[slot] - slot
    assert gaps and int(spans.first[0, 0]) == int(spans.last[0, 0]) == 0


def test_a_cache_that_moves_is_found_again(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder, rows = recording(monkeypatch, "llama"), rows_of("llama", 2)
    for _ in range(COUNT // 2):
        step(rows)
        old = [x for one in rows[0].cache._buffers for x in one.both]
        rows[0].cache.move()
        for x in old:
            x.fill_(torch.nan)
    together("llama", rows)
    assert [row.result() for row in rows] == alone("llama")[:2] and recorder.recordings == 1


def test_a_longer_cache_takes_a_recording_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seats, "FEWEST_SLOTS", 1)
    recorder, rows = recording(monkeypatch, "llama"), rows_of("llama")
    for row in rows:
        step([row])
    slots = [row.cache.slot_layers[0].place[1] for row in rows]
    assert {sizes.slots for sizes in recorder._fixed} == {1 << (count - 1).bit_length() for count in slots}
    together("llama", rows)
    assert [row.result() for row in rows] == alone("llama")


def test_what_answers_held_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder, rows = recording(monkeypatch, "llama"), rows_of("llama")
    together("llama", rows)
    caches = [weakref.ref(row.cache) for row in rows]
    rows.clear()
    gc.collect()
    assert [cache() for cache in caches] == [None] * 4 and recorder.recordings and not recorder._seats


def test_tokens_are_rounded_up_to_few_numbers() -> None:
    """Packed ones to fewer: answers of which some are packed and some not yet have many combinations of sizes."""
    sizes = [[seats._power(count, bits) for count in (1, 256, 257, 3000, 4096, 4097, 50_000)] for bits in (1, 2)]
    assert sizes == [[256, 256, 512, 4096, 4096, 8192, 65536], [256, 256, 1024, 4096, 4096, 16384, 65536]]


def test_rows_are_rounded_up_to_few_numbers() -> None:
    sizes = [rounded(count) for count in range(1, 65)]
    assert sorted(set(sizes)) == [1, 2, 4, 8, 12, 16, 24, 32, 48, 64]
    assert all(count <= size for count, size in enumerate(sizes, 1)) and sizes == sorted(sizes)


# -- controls: what would be visible -------------------------------------------------------------------------------


def test_a_token_that_goes_elsewhere_would_be_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here a recording reads what was sent at the step at which it was made."""
    want, right = alone("llama"), FixedStep._send
    recording(monkeypatch, "llama")

    def late(self: FixedStep, rows: Any) -> None:
        if not self.recorded:
            right(self, rows)

    monkeypatch.setattr(FixedStep, "_send", late)
    row = begin(prompted("llama")[0], METHODS[0])
    together("llama", [row])
    assert row.tokens[: PLAIN_STEPS + 1] == want[0][: PLAIN_STEPS + 1] and row.tokens != want[0]


@pytest.mark.parametrize("wiring", [name for name in SLIDING if not adapter(name).loop._apart])
def test_steps_without_the_window_would_be_visible(wiring: str, monkeypatch: pytest.MonkeyPatch) -> None:
    want, right = alone(wiring), FixedPlan._seen
    recording(monkeypatch, wiring)
    monkeypatch.setattr(FixedPlan, "_seen", lambda self, window: right(self, None))
    assert staggered(wiring) != want
