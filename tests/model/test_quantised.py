"""Models with weights of few bits: served if a token is computed alike in any batch, else refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchao.quantization import (
    Int8DynamicActivationInt8WeightConfig,
    Int8WeightOnlyConfig,
    PerTensor,
    quantize_,
)  # fmt: skip
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, TorchAoConfig

from samkv_rag import SamKV, SamKVEngine, SamKVError
from samkv_rag.errors import UnsupportedModel
from samkv_rag.model.adapter import ModelAdapter
from samkv_rag.model.digests import parameters_digest
from samkv_rag.model.loading import ModelSource
from samkv_rag.model.quantised import is_quantised, refuse_rows_that_mix
from samkv_rag.parity import check_parity
from tests.cases import WIRINGS
from tests.models import build, byte_tokenizer
from tests.test_readme import snippets

SERVED: dict[str, Callable[[], Any]] = {
    "4-bit NF4": lambda: BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4"),
    "8-bit weights": lambda: TorchAoConfig(Int8WeightOnlyConfig()),
    "8-bit weights, inputs per token": lambda: TorchAoConfig(Int8DynamicActivationInt8WeightConfig()),
    "LLM.int8 without exceptions": lambda: BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=0.0),
}
served = pytest.mark.parametrize("scheme", SERVED)
DTYPES = pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
CHUNKS = ["the grey heron stands in the shallow water", "a lighthouse keeper counts the ships at dusk"]
QUESTION = "who counts?"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model on disk, in full precision."""
    path = tmp_path_factory.mktemp("model")
    config = WIRINGS["llama"]()
    config.intermediate_size = 128  # 4-bit weights come in blocks of 64
    build(config).save_pretrained(path)
    byte_tokenizer().save_pretrained(path)
    return path


def opened(folder: Path, store: Any = ":memory:", **options: Any) -> SamKVEngine:
    return SamKVEngine.from_pretrained(str(folder), store=store, device_map="cpu", **options)


def loaded_as(scheme: str) -> dict[str, Any]:
    return {"quantization_config": SERVED[scheme]()}


@served
@DTYPES
def test_a_served_one_passes_the_parity_gate_and_answers_as_plain_generation(
    folder: Path, scheme: str, dtype: str
) -> None:
    with opened(folder, dtype=dtype, model_kwargs=loaded_as(scheme)) as engine:
        assert is_quantised(engine.adapter.model)
        assert engine.self_check().passed
        engine.precompute(CHUNKS)
        ours = engine.answer(QUESTION, CHUNKS, method=SamKV(keep=1.0), max_new_tokens=8)
        assert not ours.report.misses
        assert ours.token_ids == engine.answer(QUESTION, CHUNKS, method="full", max_new_tokens=8).token_ids


@served
def test_its_caches_are_no_other_models(folder: Path, tmp_path: Path, scheme: str) -> None:
    def hits(**options: Any) -> int:
        with opened(folder, tmp_path / "store", **options) as engine:
            return len(CHUNKS) - len(engine.answer(QUESTION, CHUNKS, max_new_tokens=2).report.misses)

    assert hits(model_kwargs=loaded_as(scheme)) == 0
    assert hits(model_kwargs=loaded_as(scheme)) == len(CHUNKS)
    assert hits() == 0, "the same files in full precision"
    assert hits(model_kwargs={"attn_implementation": "eager"}) == len(CHUNKS), "nothing that changes a number"


def test_one_that_was_saved_quantised_is_served_as_it_is(folder: Path, tmp_path: Path) -> None:
    with opened(folder, model_kwargs=loaded_as("4-bit NF4")) as engine:
        engine.adapter.model.save_pretrained(tmp_path / "nf4")
        byte_tokenizer().save_pretrained(tmp_path / "nf4")
        expected = engine.answer(QUESTION, CHUNKS, max_new_tokens=8).token_ids
    with opened(tmp_path / "nf4") as again:
        assert is_quantised(again.adapter.model)
        assert again.answer(QUESTION, CHUNKS, max_new_tokens=8).token_ids == expected


@served
def test_a_loaded_one_is_known_by_its_weights(folder: Path, scheme: str) -> None:
    def digest(**options: Any) -> str:
        return parameters_digest(opened(folder, **options).adapter.model)

    assert digest(model_kwargs=loaded_as(scheme)) == digest(model_kwargs=loaded_as(scheme)) != digest()


def test_the_readme_says_how(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [code] = snippets("tests/model/test_quantised.py")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(code.replace("Qwen/Qwen2.5-7B-Instruct", str(folder)), names)
    with names["engine"] as engine:
        assert is_quantised(engine.adapter.model)


def test_one_quantised_by_hand_is_found_out_too() -> None:
    model = build(WIRINGS["llama"]())
    assert not is_quantised(model)
    quantize_(model, Int8WeightOnlyConfig())
    assert is_quantised(model)
    assert ModelAdapter(model).shape.layers == 4


def test_rounded_inputs_are_no_other_attention() -> None:
    """Rounding to 8 bits turns differences in the last digits, of eager attention and ours, into whole steps."""
    model = build(WIRINGS["llama"]())
    quantize_(model, Int8DynamicActivationInt8WeightConfig())
    assert model.config._attn_implementation == "eager"
    assert check_parity(ModelAdapter(model)).passed


def test_how_inputs_are_rounded_is_part_of_the_fingerprint() -> None:
    def of(*configs: Any) -> str:
        model = build(WIRINGS["llama"](), sharpen=1.0)
        for config in configs:
            quantize_(model, config)
        return ModelSource(model, byte_tokenizer()).fingerprint

    weights, inputs = Int8WeightOnlyConfig(), Int8DynamicActivationInt8WeightConfig()
    assert of(weights) == of(weights) and of(inputs) == of(inputs)
    assert len({of(), of(weights), of(inputs)}) == 3


def test_a_loaded_one_that_packs_its_weights_when_it_runs_keeps_its_caches(folder: Path) -> None:
    config = loaded_as("4-bit NF4")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, device_map="cpu", **config)
    ids = torch.arange(5, 40)[None]
    with torch.no_grad():
        before = model(ids).logits
    first = ModelSource(model, byte_tokenizer()).fingerprint
    assert ModelSource(model, byte_tokenizer()).fingerprint == first
    with torch.no_grad():
        after = model(ids).logits
    assert (after - before).norm() < 0.02 * before.norm(), "asking for it changes nothing"


# -- refusals ------------------------------------------------------------------------------------------------------


class ScaledByThePass(nn.Module):
    """A linear layer that rounds its inputs to 8 bits, scaled by the largest of all tokens."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features, self.linear = linear.in_features, linear.out_features, linear

    def forward(self, x: Tensor) -> Tensor:
        scale = x.abs().amax() / 127
        return self.linear((x / scale).round() * scale)  # type: ignore[no-any-return]


@DTYPES
def test_columns_that_other_tokens_make_exceptions_of_are_refused_with_the_remedy(folder: Path, dtype: str) -> None:
    engine = opened(folder, dtype=dtype, model_kwargs={"quantization_config": BitsAndBytesConfig(load_in_8bit=True)})
    with pytest.raises(UnsupportedModel, match=r"depend on what other tokens.*Linear8bitLt.*llm_int8_threshold=0\.0"):
        engine.load()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_scale_taken_over_all_tokens_is_refused(dtype: torch.dtype) -> None:
    model = build(WIRINGS["llama"](), dtype)
    mlp = model.get_decoder().layers[2].mlp
    mlp.down_proj = ScaledByThePass(mlp.down_proj)
    with pytest.raises(UnsupportedModel, match=r"in model\.layers\.2\.mlp\.down_proj, a ScaledByThePass"):
        ModelAdapter(model)


def test_one_layer_among_many_is_enough() -> None:
    model = build(WIRINGS["llama"]())
    *others, last = model.get_decoder().layers
    for layer in others:
        quantize_(layer, Int8WeightOnlyConfig())
    quantize_(last, Int8DynamicActivationInt8WeightConfig(granularity=PerTensor()))
    with pytest.raises(UnsupportedModel, match=r"in model\.layers\.3\."):
        ModelAdapter(model)


def test_a_linear_layer_with_a_forward_of_its_own_is_tried() -> None:
    class Scaled(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            scale = x.abs().amax() / 127
            return super().forward((x / scale).round() * scale)

    model = build(WIRINGS["llama"]())
    model.get_decoder().layers[1].mlp.down_proj.__class__ = Scaled
    with pytest.raises(UnsupportedModel, match=r"layers\.1\.mlp\.down_proj, a Scaled"):
        ModelAdapter(model)


def test_a_layer_that_only_looks_linear_is_left_alone() -> None:
    """DeepSeek-V4 has one that takes its input in groups: rows come out in other places."""

    class Grouped(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).view(len(x), -1, 2 * x.shape[1])

    model = build(WIRINGS["llama"]())
    model.aside = Grouped(64, 64)
    refuse_rows_that_mix(model)
    model.aside.weight = nn.Parameter(torch.zeros(64, 64, dtype=torch.int8), requires_grad=False)
    with pytest.raises(UnsupportedModel, match="Grouped could not be tried"):
        refuse_rows_that_mix(model)


def test_a_package_that_is_missing_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*args: Any, **kwargs: Any) -> None:
        raise ImportError("Using 4-bit quantization requires bitsandbytes: `pip install bitsandbytes`")

    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", missing)
    with pytest.raises(SamKVError, match="could not be loaded: .* requires bitsandbytes"):
        opened(folder, model_kwargs=loaded_as("4-bit NF4")).load()
