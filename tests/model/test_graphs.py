"""Where work is recorded as CUDA graphs, and where it is not."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from samkv_rag.errors import SamKVError
from samkv_rag.model import graphs, steps
from samkv_rag.model.adapter import ModelAdapter
from samkv_rag.model.attention import without_cudnn
from samkv_rag.model.graphs import VARIABLE, Graphs
from samkv_rag.model.steps import Recorder
from tests.cases import WIRINGS
from tests.model.test_loop import prompted, together
from tests.models import adapter, build


def test_steps_are_recorded_where_they_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    def wanted(backend: Any = "triton", device: str = "cuda", unfit: str | None = None) -> bool:
        return graphs.wanted(backend, torch.device(device), unfit)

    for choice, there, elsewhere in (
        ("", True, False),
        ("auto", True, False),
        ("off", False, False),
        ("on", True, True),
    ):
        monkeypatch.setenv(VARIABLE, choice)
        assert wanted() == there
        assert wanted("torch") == wanted(device="cpu") == wanted(unfit="latents") == elsewhere
    with pytest.warns(RuntimeWarning, match="on cpu"):
        assert ModelAdapter(build(WIRINGS["llama"]())).loop.recorder is None
    monkeypatch.setenv(VARIABLE, "perhaps")
    with pytest.raises(SamKVError, match="must be 'auto' or 'on' or 'off', not 'perhaps'"):
        wanted()


def test_what_is_in_the_way_is_said() -> None:
    def recorder(backend: Any = "triton", device: str = "cuda", unfit: str | None = None) -> Recorder | None:
        return steps.recorder_of(
            lambda *_: torch.empty(0), adapter("llama").empty_cache, backend, torch.device(device), unfit
        )

    assert recorder() is not None
    for why, said in (({"device": "cpu"}, "on cpu"), ({"backend": "torch"}, "torch"), ({"unfit": "length"}, "length")):
        with pytest.warns(RuntimeWarning, match=said):
            assert recorder(**why) is None
    assert adapter("llama").loop.unfit is None
    length = "length of the text"
    for wiring, said in (("llama-longrope-crossed", length), ("llama-dynamic", length), ("deepseek-v3", "latents")):
        assert said in str(adapter(wiring).loop.unfit)


def test_steps_of_one_token_do_without_cudnn_and_leave_the_setting_as_it_was() -> None:
    seen, case = list[tuple[int, bool]](), prompted("llama")[1]

    def look(module: Any, inputs: Any, output: Any) -> None:
        with without_cudnn:
            pass  # another thread's step, over before this one
        seen.append((inputs[0].numel(), torch.backends.cuda.cudnn_sdp_enabled()))

    handle = adapter("llama").model.get_input_embeddings().register_forward_hook(look)
    try:
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
    """It ran with 1, and would be replayed with 2 for ever."""
    numbers = iter((1.0, 2.0))
    with pytest.raises(RuntimeError, match="differs"):
        Graphs(torch.device("cuda"))(lambda: torch.full((2,), next(numbers), device="cuda"))
