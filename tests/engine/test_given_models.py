"""A model that the caller has loaded: what it must be, what may be given beside it, and that it stays the caller's."""

from __future__ import annotations

import logging
import threading
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers as tf

from samkv_rag import SamKV, SamKVEngine, SamKVError
from samkv_rag.errors import UnsupportedModel
from samkv_rag.model.alone import alone, rotary_of
from samkv_rag.model.calling import cache_name
from samkv_rag.model.loading import ModelSource
from tests.cases import SIZES, WIRINGS
from tests.engine.given import ASKED, CHUNKS, engine_of
from tests.models import adapter, build, byte_tokenizer
from tests.waiting import SOON

# -- what stays the caller's ---------------------------------------------------------------------------------------


def test_a_refused_model_stays_in_training() -> None:
    model = build(tf.GPT2Config(vocab_size=320, n_embd=64, n_layer=2, n_head=4)).train()
    model.transformer.h[1].eval()
    before = [module.training for module in model.modules()]
    with pytest.raises(UnsupportedModel):
        engine_of(model).load()
    assert [module.training for module in model.modules()] == before and {*before} == {True, False}


class Watched(tf.GenerationConfig):
    """A generation config that nobody may write to."""

    _closed = False

    def __setattr__(self, name: str, value: Any) -> None:
        assert not self._closed, f"{name} was set"
        super().__setattr__(name, value)

    def __deepcopy__(self, memo: Any) -> tf.GenerationConfig:
        return tf.GenerationConfig(**{key: value for key, value in self.to_dict().items() if key[0] != "_"})


def test_the_models_own_generation_config_is_read_only() -> None:
    model = build(WIRINGS["llama"]())
    engine = engine_of(model)
    plain = engine.generate("Hello there", max_new_tokens=12)
    ending = plain.text[6:8]
    own = Watched(stop_strings=[ending], cache_implementation="static")
    own._closed = True
    model.generation_config = own
    ended = engine_of(model).generate("Hello there", max_new_tokens=12)
    assert len(ended.token_ids) == 8 and ended.text.endswith(ending) and ended.finish_reason == "stop"
    exactly = engine_of(model).generate("Hello there", max_new_tokens=8)
    assert exactly.token_ids == ended.token_ids and exactly.finish_reason == "stop"
    assert own.cache_implementation == "static" and own.stop_strings == [ending]


def test_end_tokens_may_be_a_tensor() -> None:
    model = build(WIRINGS["llama"]())
    token = engine_of(model).generate(CHUNKS[0], max_new_tokens=3).token_ids[2]
    model.generation_config.eos_token_id = torch.tensor([token, 3])
    ended = engine_of(model).generate(CHUNKS[0], max_new_tokens=12)
    assert len(ended.token_ids) <= 3 and ended.finish_reason == "stop"


@pytest.mark.parametrize(("settings", "told"), [({"num_beams": 4}, "beam search"), ({"dola_layers": "low"}, "dola")])
def test_a_warning_says_which_of_the_models_own_settings_are_not_followed(
    settings: dict[str, Any], told: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = build(WIRINGS["llama"]())
    with caplog.at_level(logging.WARNING, "samkv_rag"):
        want = engine_of(model).generate(CHUNKS[0], max_new_tokens=4)
        assert not caplog.records
        model.generation_config.update(**settings)
        assert engine_of(model).generate(CHUNKS[0], max_new_tokens=4).token_ids == want.token_ids
    assert len(caplog.records) == 1 and told in caplog.text and "LlamaForCausalLM" in caplog.text


def test_a_compiled_model_takes_its_cache_by_the_name_of_what_was_compiled() -> None:
    model = adapter("llama").model
    assert cache_name(torch.compile(model)) == cache_name(model)


# -- models whose frequencies are swapped while they run -----------------------------------------------------------


@pytest.mark.parametrize(("wiring", "waits"), [("phi3-longrope", True), ("llama", False)])
def test_engines_over_one_model_take_turns_where_its_frequencies_are_swapped(wiring: str, waits: bool) -> None:
    model = build(WIRINGS[wiring]())
    engine = engine_of(model).load()
    engine.precompute(CHUNKS[:1])
    for use in (
        lambda: engine.generate("Hello there", max_new_tokens=2),  # decoding
        lambda: engine.precompute(CHUNKS[1:]),  # a pass that fills caches
        lambda: engine.adapter.table(torch.arange(3)),  # angles
        lambda: engine_of(model).load(),  # attaching
    ):
        done = threading.Event()
        thread = threading.Thread(target=lambda use=use, done=done: (use(), done.set()))
        with alone(rotary_of(model)):
            thread.start()
            assert done.wait(0.5 if waits else SOON) is not waits
        thread.join(SOON)
        assert done.is_set()


# -- what may be given ---------------------------------------------------------------------------------------------

UNUSED: list[tuple[dict[str, Any], str]] = [
    ({"dtype": "bfloat16"}, "in torch.float32: dtype=torch.bfloat16 would be passed over"),
    ({"device_map": "meta"}, "on cpu: device_map='meta' would be passed over"),
    ({"device_map": {"": "meta"}}, "would be passed over"),
    ({"device_map": "nonsense"}, "device_map='nonsense' is no device"),
    (
        {"model_kwargs": {"revision": "a", "load_in_4bit": True}},
        "load_in_4bit, revision in model_kwargs would be passed",
    ),
]


@pytest.mark.parametrize(("given", "words"), UNUSED, ids=lambda value: str(value)[:30])
def test_what_a_loaded_model_cannot_follow_is_refused(given: dict[str, Any], words: str) -> None:
    with pytest.raises(SamKVError) as refusal:
        engine_of(adapter("llama").model, **given)
    assert words in str(refusal.value)


def test_what_a_loaded_model_follows_already_is_accepted() -> None:
    for device in ("cpu", "auto", "balanced"):
        given = {"dtype": "float32", "device_map": device, "model_kwargs": {"trust_remote_code": True}}
        assert engine_of(adapter("llama").model, **given).answer(ASKED, CHUNKS, max_new_tokens=1).token_ids


def no_models() -> list[tuple[Any, str]]:
    llama = adapter("llama").model
    judge = tf.LlamaForSequenceClassification(tf.LlamaConfig(**SIZES))
    return [
        (SimpleNamespace(model=llama), r"is no transformers model: pass its \.model"),
        (torch.nn.DataParallel(llama), r"DataParallel is no transformers model: pass its \.module"),
        (123, "int is no transformers model: pass a hub id"),
        (torch.nn.Linear(2, 2), "Linear is no transformers model"),
        (judge, "cannot write text: load it with AutoModelForCausalLM"),
        (llama.model, "LlamaModel cannot write text"),
        ("", "There is no model"),
    ]


def test_what_is_no_model_that_writes_is_refused() -> None:
    for model, words in no_models():
        with pytest.raises(SamKVError, match=words):
            engine_of(model)


@pytest.mark.parametrize("tokenizer", [123, False, object()])
def test_what_is_no_tokenizer_is_refused(tokenizer: Any) -> None:
    with pytest.raises(SamKVError, match="tokenizer is a name, a folder, or one of transformers' tokenizers"):
        SamKVEngine.from_pretrained(adapter("llama").model, tokenizer, ":memory:").load()


def test_a_model_that_does_not_run_by_itself_is_refused_for_that() -> None:
    unnamed = build(WIRINGS["llama"]())
    unnamed.config.return_dict = False
    with pytest.raises(UnsupportedModel, match=r"does not run by itself .* return its logits by name"):
        engine_of(unnamed).load()
    with torch.device("meta"):
        absent = tf.LlamaForCausalLM(tf.LlamaConfig(**SIZES))
    with pytest.raises(UnsupportedModel, match="weights that are not in memory"):
        engine_of(absent).load()


def test_a_text_with_a_token_that_the_model_lacks_is_refused() -> None:
    space = byte_tokenizer().convert_tokens_to_ids("Ġ")  # the bytes of most other letters come later
    engine = engine_of(build(tf.LlamaConfig(**SIZES | {"vocab_size": space + 1})), method=SamKV(keep=0.5))
    assert engine.answer(ASKED, CHUNKS, max_new_tokens=2).token_ids
    other = f"{CHUNKS[0]} It is in Āsgarðr."
    for use in (
        lambda: engine.precompute([other]), lambda: engine.answer(ASKED, [other], max_new_tokens=2),
        lambda: engine.generate("Ā?", max_new_tokens=2),
    ):  # fmt: skip
        with pytest.raises(SamKVError, match=rf"made token \d+ of a text, but the model knows only 0 to {space}"):
            use()


@pytest.mark.parametrize(
    ("device", "words"),
    [
        ("nonsense", "is no device"), (1.5, "is no device"), ("mps", "sees no GPU here"), (0, "is no device"),
        ("balanced_low_1", "is no device"),
    ],
)  # fmt: skip
@pytest.mark.skipif(
    torch.cuda.is_available() or torch.backends.mps.is_available(), reason="needs a machine without GPU"
)
def test_a_device_that_is_not_there_is_refused(device: Any, words: str) -> None:
    with pytest.raises(SamKVError, match=words):
        _ = ModelSource("bundled", device_map=device).device


@pytest.mark.parametrize("placed", ["auto", "balanced", "balanced_low_0", "sequential", {"": "cpu"}])
def test_where_transformers_places_a_model_no_device_is_chosen(placed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    assert ModelSource("bundled", device_map=placed).device is None
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SamKVError, match="needs accelerate"):
        _ = ModelSource("bundled", device_map=placed).device
