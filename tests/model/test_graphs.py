"""Steps of fixed shapes give the tokens of plain ones, on every wiring, and so do those that are played again.

Without a GPU a recording is the function itself, run into the memory of its first result, as a graph does it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from samkv_rag.errors import SamKVError
from samkv_rag.model import graphs
from samkv_rag.model.adapter import ModelAdapter
from samkv_rag.model.attention import without_cudnn
from samkv_rag.model.graphs import PLAIN_STEPS, VARIABLE, FixedPlan, Graphs, Recorder
from tests.cases import WIRINGS
from tests.model.recording import on_gpu
from tests.model.test_loop import COUNT, METHODS, alone, begin, prompted, staggered, together
from tests.models import adapter, build

every_wiring = pytest.mark.parametrize("wiring", [name for name in WIRINGS if not adapter(name).loop._apart])


def replayed(run: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """What `Graphs` does, without a GPU: what a recording reads from the host is read once."""
    run()
    out = run()
    return lambda: out.copy_(run())


def refused(run: Callable[[], Tensor]) -> Callable[[], Tensor]:
    raise RuntimeError("waits for the GPU")


def recording(monkeypatch: pytest.MonkeyPatch, wiring: str, capture: Any = replayed) -> Recorder:
    """The recorder that from now on takes the steps of a wiring."""
    loop = adapter(wiring).loop
    monkeypatch.setattr(loop, "recorder", Recorder(loop._side_by_side, "torch", capture))
    assert loop.recorder is not None
    return loop.recorder


@every_wiring
@pytest.mark.parametrize("seeded", [False, True], ids=["greedy", "sampled"])
def test_fixed_steps_give_the_tokens_of_plain_ones(wiring: str, seeded: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    want = alone(wiring, seeded)
    recorder = recording(monkeypatch, wiring)
    rows = [begin(prompted(wiring)[0], METHODS[0], **_sampling(seeded))]
    together(wiring, rows)
    assert rows[0].result() == want[0] and recorder.recordings == 1
    assert staggered(wiring, seeded) == want, "rows join and leave"
    assert recorder.recordings > 1 and recorder.reason is None


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


def test_a_recording_is_made_once_for_a_company_that_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = recording(monkeypatch, "llama")
    rows = [begin(case, method) for case, method in zip(prompted("llama"), METHODS, strict=True)]
    made = []
    while not rows[0].ended:
        adapter("llama").loop.step(rows)
        made.append(recorder.recordings)
    assert made == [0] * (PLAIN_STEPS - 1) + [1] * (COUNT - PLAIN_STEPS)


def test_a_span_that_ends_elsewhere_would_be_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: the place of a token is not the one at which the recording was made."""
    want, frozen = alone("llama"), dict[int, Tensor]()
    right = FixedPlan._slot
    recording(monkeypatch, "llama")
    monkeypatch.setattr(FixedPlan, "_slot", lambda self, row: frozen.setdefault(row, right(self, row).clone()))
    row = begin(prompted("llama")[0], METHODS[0])
    together("llama", [row])
    assert row.tokens != want[0]


def test_what_cannot_be_recorded_is_said_once_and_done_plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    want = alone("llama")
    recorder = recording(monkeypatch, "llama", refused)
    with pytest.warns(RuntimeWarning, match="without CUDA graphs: .*waits for the GPU") as said:
        assert staggered("llama") == want
    assert len(said) == 1 and recorder.recordings == 0 and "waits for the GPU" in str(recorder.reason)


def test_a_full_cache_is_an_error_of_its_own_row(monkeypatch: pytest.MonkeyPatch) -> None:
    recording(monkeypatch, "llama")
    rows = [begin(case, method) for case, method in zip(prompted("llama"), METHODS, strict=True)]
    for layer in rows[2].cache.slot_layers:
        room = slice(layer.length + 3)
        layer._keys, layer._values = layer._keys[:, :, room], layer._values[:, :, room]
    together("llama", rows)
    with pytest.raises(ValueError, match="cache is full"):
        rows[2].result()
    assert [rows[row].result() for row in (0, 1, 3)] == [alone("llama")[row] for row in (0, 1, 3)]


def test_steps_are_recorded_where_they_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    def wanted(backend: Any = "triton", device: str = "cuda", apart: bool = False) -> bool:
        return graphs.wanted(backend, torch.device(device), apart)

    for choice, there, elsewhere in (
        ("", True, False),
        ("auto", True, False),
        ("off", False, False),
        ("on", True, True),
    ):
        monkeypatch.setenv(VARIABLE, choice)
        assert wanted() == there
        assert wanted("torch") == wanted(device="cpu") == wanted(apart=True) == elsewhere
    with pytest.warns(RuntimeWarning, match="on cpu"):
        assert ModelAdapter(build(WIRINGS["llama"]())).loop.recorder is None
    monkeypatch.setenv(VARIABLE, "perhaps")
    with pytest.raises(SamKVError, match="none of"):
        wanted()


def test_what_is_in_the_way_is_said() -> None:
    def recorder(backend: Any = "triton", device: str = "cuda", apart: bool = False) -> Recorder | None:
        return graphs.recorder_of(lambda *_: torch.empty(0), backend, torch.device(device), apart)

    assert recorder() is not None
    for why, said in (({"device": "cpu"}, "on cpu"), ({"backend": "torch"}, "torch"), ({"apart": True}, "length")):
        with pytest.warns(RuntimeWarning, match=said):
            assert recorder(**why) is None


def test_steps_of_one_token_do_without_cudnn_and_leave_the_setting_as_it_was() -> None:
    seen = list[tuple[int, bool]]()

    def look(module: Any, inputs: Any, output: Any) -> None:
        with without_cudnn:
            pass  # another thread's step, over before this one
        seen.append((inputs[0].numel(), torch.backends.cuda.cudnn_sdp_enabled()))

    handle = adapter("llama").model.get_input_embeddings().register_forward_hook(look)
    try:
        case = prompted("llama")[1]
        together("llama", [case.adapter.loop.begin(case.plan.token_ids, None, max_new_tokens=2, do_sample=False)])
    finally:
        handle.remove()
    assert [enabled for _, enabled in seen] == [True, False] and seen[0][0] > seen[1][0] == 1
    assert torch.backends.cuda.cudnn_sdp_enabled()


def test_what_differs_by_more_than_rounding_is_told() -> None:
    there = torch.tensor([[1.0, -2.0, -torch.inf]])
    alike = (there.clone(), there * 1.001, (there, None), torch.empty(0))
    assert not any(map(graphs.differ, (there, there, (there, None), torch.empty(0)), alike))
    for other in (there * 2, there.flip(1), torch.full_like(there, torch.nan), None):
        assert graphs.differ(there, other) and graphs.differ((None, there), (None, other))


@pytest.mark.gpu
def test_what_depends_on_the_host_is_not_recorded() -> None:
    """It ran with 1, and would be played with 2 for ever."""
    numbers = iter((1.0, 2.0))
    with pytest.raises(RuntimeError, match="differs"):
        Graphs(torch.device("cuda"))(lambda: torch.full((2,), next(numbers), device="cuda"))


@pytest.mark.gpu
@pytest.mark.parametrize("wiring", ["llama", "mistral-sliding", "gemma2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_graph_plays_the_steps_that_were_recorded(
    wiring: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Token by token the same steps, one answer alone and two together; in float32 those of plain steps, too."""
    model, said = on_gpu(wiring, dtype), {}
    for name, capture in {"plain": None, "fixed": lambda run: run, "played": Graphs(model.device)}.items():
        recorder = None if capture is None else Recorder(model.loop._side_by_side, "triton", capture)
        monkeypatch.setattr(model.loop, "recorder", recorder)
        rows = [model.loop.begin(range(3, 3 + n), None, max_new_tokens=24, do_sample=False) for n in (40, 70)]
        for _ in range(8):
            model.loop.step(rows)
        while not rows[0].ended:
            model.loop.step(rows[:1])
        assert recorder is None or (recorder.recordings, recorder.reason) == (2, None)
        said[name] = [row.tokens for row in rows]
    assert said["played"] == said["fixed"]
    assert dtype != torch.float32 or said["played"] == said["plain"]
