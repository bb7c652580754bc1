"""What an engine cannot be made of, or asked once closed, is refused in a sentence that says what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf

from samkv_rag import ChunkKVStore, SamKV, SamKVEngine, SamKVError
from samkv_rag.model.loading import ModelSource
from samkv_rag.store import StoreError
from tests.cases import EYES, SIZES
from tests.models import adapter, byte_tokenizer, tiny_engine


def test_no_model_is_a_sentence() -> None:
    with pytest.raises(SamKVError, match="There is no model: pass 'bundled', a hub id"):
        SamKVEngine.from_pretrained(None)


@pytest.mark.parametrize("dtype", ["bf16", "int8", torch.int8, "nn", None])
def test_a_dtype_that_no_model_runs_in_is_a_sentence(dtype: Any) -> None:
    with pytest.raises(SamKVError, match="dtype is 'auto' or a floating type of torch, such as 'bfloat16', not"):
        SamKVEngine.from_pretrained("bundled", dtype=dtype)
    assert ModelSource("bundled", dtype="bfloat16").resolved_dtype == torch.bfloat16


def test_a_gpu_that_is_not_there_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SamKVError, match="sees no GPU here; pass 'cpu'"):
        _ = ModelSource("bundled", device_map="cuda").device
    assert ModelSource("bundled", device_map="cpu").device == "cpu"


def test_a_hub_id_is_downloaded_as_model_kwargs_say(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[tuple[str, dict[str, Any]]] = []

    def download(name: str, *, ignore_patterns: list[str], **kwargs: Any) -> str:
        asked.append((name, kwargs))
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    of_hub = {"revision": "v2", "token": "secret", "cache_dir": "there"}
    source = ModelSource("owner/model", model_kwargs={**of_hub, "attn_implementation": "eager"})
    assert source.folder == tmp_path and asked == [("owner/model", of_hub)]


def test_weights_cut_short_are_a_sentence(tmp_path: Path) -> None:
    adapter("llama").model.save_pretrained(tmp_path)
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    engine = SamKVEngine.from_pretrained(str(tmp_path), byte_tokenizer(), store=":memory:", device_map="cpu")
    with pytest.raises(SamKVError, match="could not be loaded: .*Are its files whole"):
        engine.load()


@pytest.mark.parametrize(
    ("model_kwargs", "said"),
    [
        ({"dtype": torch.bfloat16}, "dtype in model_kwargs would be passed over: pass dtype=... beside it"),
        ({"torch_dtype": "float16"}, "torch_dtype in model_kwargs would be passed over"),
        ({"quantization_config": "nf4"}, "could not be loaded: .* Does model_kwargs say what it should"),
        ({"no_such_option": True}, "could not be loaded: .*no_such_option.* Does model_kwargs say what it should"),
    ],
)
def test_model_kwargs_that_cannot_be_are_told_in_a_sentence(
    tmp_path: Path, model_kwargs: dict[str, Any], said: str
) -> None:
    adapter("llama").model.save_pretrained(tmp_path)
    with pytest.raises(SamKVError, match=said):
        SamKVEngine.from_pretrained(
            str(tmp_path), byte_tokenizer(), store=":memory:", device_map="cpu", model_kwargs=model_kwargs
        ).load()


def test_model_kwargs_that_change_no_number_change_no_fingerprint(tmp_path: Path) -> None:
    def of(**model_kwargs: Any) -> str:
        return ModelSource(str(tmp_path), byte_tokenizer(), device_map="cpu", model_kwargs=model_kwargs).fingerprint

    adapter("llama").model.save_pretrained(tmp_path)
    assert len({of(), of(weights_only=True), of(device_map={"": "cpu"}), of(attn_implementation="eager")}) == 1
    assert of(rope_parameters={"rope_type": "default", "rope_theta": 5.0}) != of()


def test_code_that_comes_with_a_model_is_part_of_the_fingerprint(tmp_path: Path) -> None:
    def of(**kwargs: Any) -> str:
        return ModelSource(str(tmp_path), byte_tokenizer(), device_map="cpu", model_kwargs=kwargs).fingerprint

    adapter("llama").model.save_pretrained(tmp_path)
    trusted, distrusted = of(trust_remote_code=True), of()
    assert trusted == distrusted, "there is none"
    (tmp_path / "modeling.py").write_text("ROTATIONS = 2")
    assert of(trust_remote_code=True) != trusted and of() == distrusted


def test_a_model_that_also_sees_is_loaded_as_one_and_answers_about_text(tmp_path: Path) -> None:
    config = tf.Mistral3Config(
        text_config={"model_type": "mistral", **SIZES}, vision_config={"model_type": "pixtral", **EYES}
    )
    tf.AutoModelForImageTextToText.from_config(config).save_pretrained(tmp_path)
    chunks = ["a grey heron stands in the water", "a keeper counts the ships at dusk"]
    with SamKVEngine.from_pretrained(str(tmp_path), byte_tokenizer(), store=":memory:", device_map="cpu") as engine:
        assert engine.self_check().passed
        engine.precompute(chunks)
        whole, reused = (engine.answer("who?", chunks, method=m, max_new_tokens=4) for m in ("full", SamKV(keep=1.0)))
        assert reused.token_ids == whole.token_ids and not reused.report.misses


def test_a_closed_engine_says_so() -> None:
    engine = tiny_engine()
    with engine:
        assert engine.answer("Who?", [], max_new_tokens=1).text is not None
    with pytest.raises(SamKVError, match="This engine is closed: make a new one"):
        engine.answer("Who?", [])


CHUNK = "Lumen Labs is a company in Oslo that makes solar lamps and kettles."


def test_an_engine_closes_only_the_store_that_it_opened(tmp_path: Path) -> None:
    shared = ChunkKVStore(tmp_path / "shared")
    one, other = tiny_engine(store=shared), tiny_engine(store=shared)
    other.precompute([CHUNK])
    one.close()
    assert other.answer("Where?", [CHUNK], max_new_tokens=1).report.misses == ()
    own = tiny_engine(store=tmp_path / "own")
    own.close()
    with pytest.raises(StoreError, match="store is closed"):
        own.store.stats()


@pytest.mark.parametrize("place", [":memory:", "disk"])
def test_a_store_that_was_closed_is_a_sentence_and_no_miss(place: str, tmp_path: Path) -> None:
    engine = tiny_engine(store=ChunkKVStore(tmp_path if place == "disk" else place))
    engine.precompute([CHUNK])
    engine.store.close()
    with pytest.raises(StoreError, match="store is closed"):
        engine.answer("Where?", [CHUNK])
    with pytest.raises(StoreError, match="store is closed"):
        engine.generate(f"{CHUNK}\nWhere?")


def test_the_name_of_the_engines_own_method_means_it_with_its_options() -> None:
    chunks = ["Lumen Labs is a company in Oslo that makes solar lamps. " * 8]
    engine = tiny_engine(method=SamKV(keep=0.5, rest="drop"))
    engine.precompute(chunks)
    own, named = (engine.answer("Where?", chunks, method=m, max_new_tokens=1).report for m in (None, "samkv"))
    assert named.kept_tokens == own.kept_tokens > 0
    less = engine.answer("Where?", chunks, method="samkv", keep=0.2, max_new_tokens=1).report
    assert less.kept_tokens < own.kept_tokens


def test_a_streamed_answer_takes_a_timeout() -> None:
    engine = tiny_engine()
    with pytest.raises(TimeoutError), engine.stream_answer("Who?", [], timeout=0.0, max_new_tokens=200) as stream:
        list(stream)


def test_a_store_whose_chunks_this_engine_cannot_use_is_told(caplog: pytest.LogCaptureFixture) -> None:
    store = ChunkKVStore(":memory:")
    tiny_engine(store=store).precompute([CHUNK])
    assert len(tiny_engine(store=store).plan(f"{CHUNK}\nWhere?").chunks) == 1 and not caplog.messages
    other = tiny_engine(store=store, kv_dtype="int8")
    assert other.plan(f"{CHUNK}\nWhere?").chunks == () and "1 chunks" in caplog.text and "Ingest again" in caplog.text
