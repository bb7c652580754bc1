"""A model in a GGUF file is the model that was written to it; its caches are keyed by its file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
import transformers as tf
from torch import Tensor

from samkv_rag import SamKVEngine, SamKVError
from samkv_rag.cli.engine import model_name
from samkv_rag.model.loading import ModelSource
from tests.models import adapter, byte_tokenizer

CHUNKS = ["a grey heron stands in the water", "a keeper counts the ships at dusk"]


def turned(weight: Tensor, heads: int) -> Tensor:
    """Rows of queries or keys in llama.cpp's order, in which the two parts of a rotated pair are adjacent."""
    return weight.unflatten(0, (heads, 2, -1)).transpose(1, 2).reshape(weight.shape)


def written(path: Path, model: Any, tokenizer: Any, kind: Any = gguf.GGMLQuantizationType.F32) -> Path:
    """A Llama as a GGUF file, its matrices in the bits of `kind`."""
    config, to = model.config, gguf.GGUFWriter(path, "llama")
    to.add_block_count(config.num_hidden_layers)
    to.add_context_length(config.max_position_embeddings)
    to.add_embedding_length(config.hidden_size)
    to.add_feed_forward_length(config.intermediate_size)
    to.add_head_count(config.num_attention_heads)
    to.add_head_count_kv(config.num_key_value_heads)
    to.add_key_length(config.head_dim)
    to.add_value_length(config.head_dim)
    to.add_layer_norm_rms_eps(config.rms_norm_eps)
    to.add_rope_freq_base(config.rope_parameters["rope_theta"])
    to.add_vocab_size(config.vocab_size)
    add_tokens(to, tokenizer, config.vocab_size)
    for name, weight in tensors(model).items():
        numbers = weight.detach().float().numpy()
        to.add_tensor(
            name,
            gguf.quantize(numbers, kind) if numbers.ndim == 2 else numbers,
            raw_dtype=kind if numbers.ndim == 2 else None,
        )
    to.write_header_to_file()
    to.write_kv_data_to_file()
    to.write_tensors_to_file()
    to.close()
    return path


def add_tokens(to: gguf.GGUFWriter, tokenizer: Any, size: int) -> None:
    """A byte-level tokenizer with two merges, filled up with tokens that no text is encoded to."""
    by_id = {index: token for token, index in tokenizer.get_vocab().items()}
    by_id |= {len(by_id): "th", len(by_id) + 1: "he"}
    special = set(tokenizer.all_special_ids)
    to.add_tokenizer_model("gpt2")
    to.add_token_list([by_id.get(index, f"<unused{index}>") for index in range(size)])
    to.add_token_types([3 if index in special else 1 if index in by_id else 5 for index in range(size)])
    to.add_token_merges(["t h", "h e"])
    to.add_bos_token_id(tokenizer.bos_token_id)
    to.add_eos_token_id(tokenizer.eos_token_id)
    to.add_chat_template(tokenizer.chat_template)


PARTS = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip


def tensors(model: Any) -> dict[str, Tensor]:
    """The weights by llama.cpp's names."""
    config, weights = model.config, model.state_dict()
    found = {
        "token_embd.weight": weights["model.embed_tokens.weight"],
        "output_norm.weight": weights["model.norm.weight"],
        "output.weight": weights["lm_head.weight"],
    }
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    for layer in range(config.num_hidden_layers):
        for theirs, ours in PARTS.items():
            weight = weights[f"model.layers.{layer}.{theirs}.weight"]
            found[f"blk.{layer}.{ours}.weight"] = turned(weight, heads[ours]) if ours in heads else weight
    return found


@pytest.fixture(scope="module")
def model() -> Any:
    return adapter("llama").model


@pytest.fixture
def file(tmp_path: Path, model: Any) -> Path:
    return written(tmp_path / "model.gguf", model, byte_tokenizer(chat=True))


def source(of: Path | str, **model_kwargs: Any) -> ModelSource:
    return ModelSource(str(of), device_map="cpu", model_kwargs=model_kwargs)


def test_its_weights_config_and_tokenizer_are_those_that_were_written(file: Path, model: Any) -> None:
    read = source(file)
    weights = read.adapter.model.state_dict()
    assert all(torch.equal(weights[name], weight) for name, weight in model.state_dict().items())
    text = "a grey crane, <eos> and déjà vu"
    assert read.loaded_tokenizer(text)["input_ids"] == byte_tokenizer()(text)["input_ids"]
    assert read.loaded_tokenizer("the")["input_ids"] == [len(byte_tokenizer()), *byte_tokenizer()("e")["input_ids"]]
    assert read.loaded_tokenizer.chat_template == byte_tokenizer(chat=True).chat_template


def test_it_passes_the_gate_and_answers_from_its_caches(file: Path) -> None:
    with SamKVEngine.from_pretrained(str(file), store=":memory:", device_map="cpu") as engine:
        assert engine.self_check().passed
        engine.precompute(CHUNKS)
        answers = [engine.answer("who?", CHUNKS, method=method, max_new_tokens=4) for method in ("full", "samkv")]
        assert [answer.report.misses for answer in answers] == [(), ()]
        assert 0 < answers[1].report.packed_tokens < answers[1].report.kept_tokens == answers[1].report.chunk_tokens


def test_weights_of_few_bits_are_unpacked_unless_the_caller_says_otherwise(tmp_path: Path, model: Any) -> None:
    file = written(tmp_path / "q8.gguf", model, byte_tokenizer(chat=True), gguf.GGMLQuantizationType.Q8_0)
    read = source(file)
    made, whole = read.adapter.model.lm_head.weight, model.lm_head.weight
    assert type(read.adapter.model.lm_head) is torch.nn.Linear and made.dtype == torch.float32
    assert 0 < (made - whole).abs().max() < whole.abs().max() / 127


def test_a_file_and_its_name_in_a_folder_are_one_model_and_other_weights_another(file: Path, model: Any) -> None:
    first = source(file).fingerprint
    assert source(file.parent, gguf_file=file.name).fingerprint == first
    (file.parent / "model.safetensors").write_bytes(b"of another model")
    assert source(file).fingerprint == first
    before = file.stat()
    with file.open("r+b") as weights:
        weights.seek(-5, os.SEEK_END)
        weights.write(b"other")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))  # as when it is unpacked from an archive
    assert source(file).fingerprint != first


def test_a_file_may_be_called_anything(file: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    link = tmp_path / "elsewhere" / "current.gguf"
    link.symlink_to(file)
    assert source(link).fingerprint == source(file).fingerprint


def test_a_file_of_the_hub_is_downloaded_alone(monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    asked: list[dict[str, Any]] = []

    def download(name: str, **kwargs: Any) -> str:
        asked.append(kwargs)
        return str(file.parent)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert source("owner/model-GGUF", gguf_file=file.name).fingerprint == source(file).fingerprint
    assert asked == [{"allow_patterns": [file.name]}]


def test_its_tokenizer_can_be_another_models(file: Path, tmp_path: Path) -> None:
    for given in (file, str(file)):
        assert ModelSource(Path(file), given, device_map="cpu").loaded_tokenizer.chat_template
    byte_tokenizer().save_pretrained(tmp_path / "other")
    assert len(ModelSource(str(file), str(tmp_path / "other")).loaded_tokenizer("th")["input_ids"]) == 2
    assert len(ModelSource(adapter("llama").model, file).loaded_tokenizer("th")["input_ids"]) == 1


def test_a_folder_may_have_the_name_of_a_file(tmp_path: Path, model: Any) -> None:
    model.save_pretrained(tmp_path / "folder.gguf")
    assert ModelSource(str(tmp_path / "folder.gguf"), byte_tokenizer()).adapter.shape.layers == 4


def test_a_link_is_found_by_the_name_it_has(file: Path, tmp_path: Path) -> None:
    """The hub's cache links names to digests."""
    (tmp_path / "blob").write_bytes(file.read_bytes())
    (tmp_path / "link.gguf").symlink_to(tmp_path / "blob")
    assert model_name(str(tmp_path / "link.gguf")) == str(tmp_path / "link.gguf")
    assert source(tmp_path / "link.gguf").adapter.shape.layers == 4
    assert model_name("blob") == "blob", "no name of a model's file"


def test_what_is_no_such_file_is_a_sentence(tmp_path: Path, file: Path) -> None:
    for nothing in (source(tmp_path / "nothing.gguf"), source(tmp_path, gguf_file="nothing.gguf")):
        with pytest.raises(SamKVError, match="There is no file .*nothing.gguf. For one on the hub, pass the hub id"):
            _ = nothing.fingerprint
    with pytest.raises(SamKVError, match="one GGUF file and gguf_file in model_kwargs another"):
        source(file, gguf_file="other.gguf")
    with pytest.raises(SamKVError, match="does model_kwargs say what it should"):
        _ = source(file, nonsense=1).adapter
    for size in (0, 100, 5000, file.stat().st_size - 1000):
        (tmp_path / "cut.gguf").write_bytes(file.read_bytes()[:size])
        with pytest.raises(SamKVError, match=r"cut.gguf could not be loaded: .*Is it whole, and a model's\?"):
            _ = source(tmp_path / "cut.gguf").adapter


def test_without_the_package_that_reads_it_the_remedy_is_named(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: Any, **__: Any) -> None:
        raise ImportError("gguf is not there")

    monkeypatch.setattr(tf.AutoConfig, "from_pretrained", missing)
    with pytest.raises(SamKVError, match=r"gguf is not there. pip install 'samkv-rag\[gguf\]'"):
        _ = source(file).config
