"""Which steps are recorded, what goes wrong, and what a GPU replays; see `test_steps`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from samkv_rag.model import steps
from samkv_rag.model.adapter import ModelAdapter
from samkv_rag.model.cache import SlotCache
from samkv_rag.model.graphs import Graphs
from samkv_rag.model.steps import PLAIN_STEPS, FixedStep, Recorder
from tests.model.recording import on_gpu
from tests.model.test_loop import alone, staggered, together
from tests.model.test_steps import recording, refused, replayed, rows_of, step

# -- what is recorded ----------------------------------------------------------------------------------------------


def test_what_cannot_be_recorded_is_said_once_and_done_plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    want = alone("llama")
    recorder = recording(monkeypatch, "llama", refused)
    with pytest.warns(RuntimeWarning, match="without CUDA graphs: .*waits for the GPU") as said:
        assert staggered("llama") == want
    assert len(said) == 1 and recorder.recordings == 0 and "waits for the GPU" in str(recorder.reason)


def test_memory_that_is_short_drops_what_was_recorded_and_is_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    tries = []

    def short(run: Callable[[], Tensor]) -> Callable[[], Tensor]:
        tries.append(run)
        if len(tries) == 2:
            raise torch.OutOfMemoryError
        return replayed(run)

    monkeypatch.setattr(steps, "REST", 2)
    recorder, rows = recording(monkeypatch, "llama", short), rows_of("llama", 3)
    for _ in range(PLAIN_STEPS):
        step(rows[:1])
    for _ in range(PLAIN_STEPS):
        step(rows[1:])
    assert recorder.recordings == 1 and [sizes.rows for sizes in recorder._fixed] == [2]
    together("llama", rows[1:])
    together("llama", rows)
    assert [row.result() for row in rows] == alone("llama")[:3]
    assert len(tries) >= 3 and recorder.reason is None


def test_few_recordings_are_kept_those_used_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "MOST", 2)
    recorder, rows = recording(monkeypatch, "llama"), rows_of("llama")
    for count in (1, 2, 4, 2):
        step(rows[:count])
    assert [sizes.rows for sizes in recorder._fixed] == [4, 2]


# -- errors and interrupts -----------------------------------------------------------------------------------------


def test_a_full_cache_is_an_error_of_its_own_row(monkeypatch: pytest.MonkeyPatch) -> None:
    recording(monkeypatch, "llama")
    rows = rows_of("llama")
    for layer in rows[2].cache.slot_layers:
        room = slice(layer.length + 3)
        layer._keys, layer._values = layer._keys[:, :, room], layer._values[:, :, room]
    together("llama", rows)
    with pytest.raises(ValueError, match="cache is full"):
        rows[2].result()
    assert [rows[row].result() for row in (0, 1, 3)] == [alone("llama")[row] for row in (0, 1, 3)]


@pytest.mark.parametrize("at", [1, 2, 4])
@pytest.mark.parametrize("where", ["_sit", "_send", "_run"])
def test_a_fixed_step_that_is_interrupted_can_be_taken_again(
    where: str, at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While rows are assigned, before and after the forward, and while it is recorded."""
    recorder, right, calls = recording(monkeypatch, "llama"), getattr(FixedStep, where), [0]

    def interrupted(self: FixedStep, *arguments: Any) -> Any:
        calls[0] += 1
        out = right(self, *arguments)
        if calls[0] == at:
            raise KeyboardInterrupt
        return out

    monkeypatch.setattr(FixedStep, where, interrupted)
    rows = rows_of("llama")
    with pytest.raises(KeyboardInterrupt):
        together("llama", rows)
    together("llama", rows[1:])
    together("llama", rows)
    assert [row.result() for row in rows] == alone("llama") and recorder.recordings == 2


# -- on a GPU ------------------------------------------------------------------------------------------------------


@dataclass
class PackedAt:
    """Decides that some tokens of a prompt are held packed, once there are `after` new ones."""

    model: ModelAdapter
    after: int

    def settle(self, cache: SlotCache, tokens: Sequence[int]) -> Tensor:
        logits = self.model.logits_of(tokens[-1:], cache)
        here = torch.arange(cache.get_seq_length(), device=self.model.device)
        cache.keep(torch.cat([here[:2], here[7:]]), here[2:7])
        return logits[-1]


@pytest.mark.gpu
@pytest.mark.parametrize("packed", [False, True], ids=["", "packed"])
@pytest.mark.parametrize("wiring", ["llama", "mistral-sliding", "gemma2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_graph_plays_the_steps_that_were_recorded(
    wiring: str, dtype: torch.dtype, packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Token by token what the unrecorded steps give, while answers join and leave, and some of them are partly packed;
    in float32 what plain steps give, too."""
    model, said = on_gpu(wiring, dtype), {}
    settling = [PackedAt(model, after) if packed and after else None for after in (2, 0, 4, 1)]
    prompts, options = [range(3, 3 + n) for n in (40, 70, 9, 30)], {"max_new_tokens": 24, "do_sample": False}
    for name, capture in {"plain": None, "fixed": lambda run: run, "played": Graphs(model.device)}.items():
        recorder = None if capture is None else Recorder(model.loop._side_by_side, "triton", capture, model.empty_cache)
        monkeypatch.setattr(model.loop, "recorder", recorder)
        pairs = zip(prompts, settling, strict=True)
        rows = [model.loop.begin(prompt, None, settling=when, **options) for prompt, when in pairs]
        for company in (rows[:3], rows[:3], rows[:3], rows, rows[1:], rows[:1], rows[::-1]):
            for _ in range(3):
                model.loop.step([row for row in company if not row.ended])
        while going := [row for row in rows if not row.ended]:
            model.loop.step(going)
        assert recorder is None or (recorder.reason is None and 2 <= recorder.recordings <= (8 if packed else 3))
        said[name] = [row.tokens for row in rows]
    assert said["played"] == said["fixed"]
    assert dtype != torch.float32 or said["played"] == said["plain"]
