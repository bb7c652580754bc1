"""The parity gate: green on every model that is served, in every dtype, and red where something is wrong."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from samkv_kernels.packed import packed_attention
from samkv_rag import parity
from samkv_rag.errors import ParityError
from samkv_rag.model import attention
from samkv_rag.model.adapter import ModelAdapter
from samkv_rag.model.beginnings import Beginnings
from samkv_rag.model.buffers import Buffers
from samkv_rag.model.cache import SlotCache
from samkv_rag.model.loop import RowsPlan
from samkv_rag.model.rounding import worst
from samkv_rag.parity import check_parity
from tests.cases import VOCAB, WIRINGS
from tests.models import adapter, build


@pytest.mark.parametrize("wiring", WIRINGS)
def test_a_supported_wiring_passes_the_parity_gate(wiring: str) -> None:
    report = check_parity(adapter(wiring))
    assert report.passed
    assert report.control_error > 100 * max(report.recompute_error, report.reuse_error)
    assert 0 < report.decode_error < 1e-5


@pytest.mark.parametrize("wiring", WIRINGS)
def test_what_a_text_is_depends_on_its_place_only_where_frequencies_do(wiring: str) -> None:
    error = check_parity(adapter(wiring)).place_error
    assert (error > 0.01) == (wiring == "llama-longrope-within") and (error > 0.01 or error < 1e-3)


def test_queries_that_are_scaled_from_some_position_on_show() -> None:
    """Ministral 3 and Mistral 4 scale them up beyond the first positions they were trained on, here 256."""
    config = WIRINGS["mistral4"]()
    config.rope_parameters["original_max_position_embeddings"] = 256
    report = check_parity(ModelAdapter(build(config)))
    assert report.passed and report.place_error > 0.01


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("wiring", ["llama", "llama-yarn", "gemma2", "glm4", "smollm3", "gpt-oss"])
def test_half_precision_passes_the_parity_gate_of_its_dtype(wiring: str, dtype: torch.dtype) -> None:
    attached = ModelAdapter(build(WIRINGS[wiring](), dtype))
    assert attached.dtype == dtype
    assert attached.shape.itemsize == 2
    assert check_parity(attached).passed


def test_a_red_gate_in_half_precision_says_how_to_be_sure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parity, "TOLERANCE", {})
    with pytest.raises(ParityError, match="failed the parity gate: .* dtype='float32' shows what is wrong"):
        check_parity(ModelAdapter(build(WIRINGS["llama"](), torch.bfloat16)))


def test_a_red_gate_says_how_to_do_without_our_kernels() -> None:
    assert parity.doubts(torch.float32, "torch") == ""
    for backend in ("numba", "triton"):
        assert parity.doubts(torch.float32, backend).endswith("SAMKV_BACKEND=torch does without them.")
    assert parity.doubts(torch.bfloat16, "triton") == parity.HALF + parity.KERNELS


def test_sixteen_bits_pass_the_parity_gate_where_layers_share_keys() -> None:
    """In bfloat16, transformers' own sdpa and eager are further apart on a random Gemma 4 than the gate allows: Gemma 4
    does not scale its scores."""
    assert check_parity(ModelAdapter(build(WIRINGS["gemma4-sharing"](), torch.float16))).passed


def test_the_parity_gate_holds_behind_a_sink_prefix() -> None:
    """Chunks are then cached after a BOS, so the gate must put one before its prompt."""
    assert check_parity(ModelAdapter(build(WIRINGS["llama"]()), sink_prefix=(1,))).passed


def test_the_parity_gate_sees_wrong_entries_of_what_prompts_begin_with(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gate also keeps its own random prompts out of what the model has seen before."""
    attached, copied = ModelAdapter(build(WIRINGS["llama"]())), Beginnings._copied
    met = attached.beginnings
    assert check_parity(attached).passed and attached.beginnings is met and not met._kept

    def wrong(self: Beginnings, cache: SlotCache, count: int) -> list[Buffers]:
        (one,) = copied(self, cache, count)
        one.values.mul_(-1)
        return [one]

    monkeypatch.setattr(Beginnings, "_copied", wrong)
    with pytest.raises(ParityError, match="reuse by"):
        check_parity(attached)
    assert attached.beginnings is met


@pytest.mark.parametrize("wiring", ["llama", "gemma2", "gpt-oss"])
def test_the_parity_gate_sees_wrong_attention_to_what_is_packed(wiring: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(query: torch.Tensor, *others: Any) -> torch.Tensor:
        return packed_attention(query, *others).roll(1, 1)

    monkeypatch.setattr(attention, "packed_attention", wrong)
    with pytest.raises(ParityError, match="decoding by"):
        check_parity(ModelAdapter(build(WIRINGS[wiring]())))


@pytest.mark.parametrize("step", ["_forward", "_side_by_side"])
def test_the_parity_gate_sees_wrong_steps(step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Decoding step by step has kernels of its own where steps are recorded, and several answers share a step."""
    attached = ModelAdapter(build(WIRINGS["llama"]()))
    right = getattr(attached.loop, step)
    monkeypatch.setattr(attached.loop, step, lambda *given: right(*given).roll(1, -1))
    with pytest.raises(ParityError, match="decoding by"):
        check_parity(attached)


def test_the_parity_gate_sees_numbers_that_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """NaN is neither below a tolerance nor above it."""

    def none(query: torch.Tensor, *others: Any) -> torch.Tensor:
        return packed_attention(query, *others) * torch.nan

    monkeypatch.setattr(attention, "packed_attention", none)
    with pytest.raises(ParityError, match="decoding by nan"):
        check_parity(ModelAdapter(build(WIRINGS["llama"]())))
    report = parity.ParityReport("", "", 1e-4, 0.0, float("nan"), 0.0, 1.0, 0.0)
    assert not report.passed and worst((0.0, float("nan"), 1.0)) != worst((0.0, float("nan"), 1.0))


def test_the_parity_gate_sees_answers_that_are_mixed_up(monkeypatch: pytest.MonkeyPatch) -> None:
    right = RowsPlan.attend
    monkeypatch.setattr(RowsPlan, "attend", lambda plan, *given: right(RowsPlan(plan.rows[::-1]), *given))
    with pytest.raises(ParityError, match="decoding by"):
        check_parity(ModelAdapter(build(WIRINGS["llama"]())))


def test_the_parity_gate_says_when_answers_cannot_be_decoded_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the engine each of them is decoded alone, with a warning."""
    attached = ModelAdapter(build(WIRINGS["llama"]()))

    def fails(*given: Any) -> None:
        raise RuntimeError("no such rows")

    monkeypatch.setattr(attached.loop, "_side_by_side", fails)
    with pytest.raises(ParityError, match=r"cannot be decoded together \(no such rows\)"):
        check_parity(attached)


@pytest.mark.parametrize(
    "option",
    [
        {"remove_invalid_values": True, "eos_token_id": 2},
        {"renormalize_logits": True},
        {"num_return_sequences": 2},
        {"max_time": 1e-9},
        {"repetition_penalty": 1.3, "eos_token_id": list(range(VOCAB))},
    ],
    ids=lambda option: next(iter(option)),
)
def test_the_parity_gate_does_not_depend_on_how_a_model_likes_to_generate(
    option: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    attached = ModelAdapter(build(WIRINGS["llama"]()))
    for name, value in option.items():
        setattr(attached.model.generation_config, name, value)
    assert check_parity(attached).decode_error < 1e-5
    monkeypatch.setattr(attention, "packed_attention", lambda query, *others: packed_attention(query, *others) * 2)
    with pytest.raises(ParityError, match="decoding by"):
        check_parity(attached)
