"""Which models can be attached, which are refused and why, and how their keys turn."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, Olmo3Config

from samkv_rag.errors import UnsupportedModel
from samkv_rag.model import rotary, supported
from samkv_rag.model.adapter import ModelAdapter
from samkv_rag.model.calling import handing
from samkv_rag.model.observers import Observation
from samkv_rag.model.rotation import rotation_of
from samkv_rag.parity import check_parity
from samkv_rag.types import BLOCK
from tests.cases import REFUSED, SIZES, WIRINGS
from tests.latents import held
from tests.models import adapter, build
from tests.oracles import random_ids, stock, unblocked

every_wiring = pytest.mark.parametrize("wiring", WIRINGS)


# -- refusals ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_exact_is_refused_with_its_reason_and_left_as_it_was(name: str) -> None:
    make, reason = REFUSED[name]
    model = build(make())
    with pytest.raises(UnsupportedModel, match=reason) as refusal:
        ModelAdapter(model)
    assert str(refusal.value).endswith(".")
    assert model.config._attn_implementation == "eager"


@pytest.mark.parametrize(
    ("mark", "remedy"),
    [
        ({"peft_config": {"default": object()}}, r"merge_and_unload\(\)"),
        ({"_hf_peft_config_loaded": True}, r"merge_and_unload\(\)"),
        ({"hf_device_map": {"model.layers.0": 0, "model.layers.1": "cpu"}}, "device_map='cuda:0'"),
    ],
)
def test_adapted_and_spread_models_are_refused_with_a_remedy(mark: dict[str, Any], remedy: str) -> None:
    model = build(WIRINGS["llama"]())
    for name, value in mark.items():
        object.__setattr__(model, name, value)
    with pytest.raises(UnsupportedModel, match=remedy):
        ModelAdapter(model)


def test_a_token_that_rounding_routes_elsewhere_does_not_refuse_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    right, model = rotary._entries_of_one_token, build(WIRINGS["gpt-oss"]())

    def flipped(model: Any, token: int, position: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        return right(model, 7 if token in wrong and position else token, position)

    monkeypatch.setattr(rotary, "_entries_of_one_token", flipped)
    wrong: tuple[int, ...] = rotary.PROBE_TOKENS[:2]
    assert ModelAdapter(model).rotary.kinds == adapter("gpt-oss").rotary.kinds
    wrong = rotary.PROBE_TOKENS
    with pytest.raises(UnsupportedModel, match="does not hold plain keys and values"):
        ModelAdapter(model)


class Unlike(LlamaForCausalLM):
    """A model that does something else where its attention is not ours."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        out = super().forward(*args, **kwargs)
        if self.config._attn_implementation == "eager":
            out.logits = out.logits + 0.02 * out.logits.flip(-1)
        return out


def test_a_model_that_is_another_one_with_our_attention_is_refused() -> None:
    model = Unlike(LlamaConfig(**SIZES))
    model.set_attn_implementation("eager")
    with pytest.raises(UnsupportedModel, match="Unlike attends in a way of its own.* off by 2%"):
        ModelAdapter(model)
    assert model.config._attn_implementation == "eager"


def test_a_window_that_no_layer_has_is_no_obstacle() -> None:
    model = build(Olmo3Config(**SIZES, sliding_window=64, layer_types=["full_attention"] * 4))
    assert check_parity(ModelAdapter(model)).passed


def test_a_refused_model_gets_the_attention_of_all_its_parts_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any) -> None:
        raise UnsupportedModel("No.")

    model = build(WIRINGS["gemma3-that-sees"]())
    model.set_attn_implementation({"": "eager", "text_config": "eager", "vision_config": "sdpa"})
    monkeypatch.setattr(supported, "refuse_other_attention", refuse)
    with pytest.raises(UnsupportedModel, match="No"):
        ModelAdapter(model)
    config = model.config
    attention = [part._attn_implementation for part in (config, config.text_config, config.vision_config)]
    assert attention == ["eager", "eager", "sdpa"]


def test_a_layer_that_attends_to_what_no_cache_holds_is_refused() -> None:
    keys, queries = [torch.zeros(1, 2, 1, 8) for _ in range(2)], torch.zeros(1, 4, 1, 8)

    def met(layer: int, key: torch.Tensor, query: torch.Tensor = queries) -> Observation:
        return Observation(layer, query, key, None, None, "torch")  # type: ignore[arg-type]

    found = {0: met(0, keys[0]), 1: met(1, keys[1]), 2: met(2, keys[1]), 3: met(3, keys[1].clone())}
    model = adapter("llama").model
    assert supported.source_of(model, found, keys, 2) == 1
    for layer in (3, 4):
        with pytest.raises(UnsupportedModel, match=f"layer {layer} has no cache, and attends to keys that are in none"):
            supported.source_of(model, found, keys, layer)
    found[2] = met(2, keys[1], queries[:, :2])
    with pytest.raises(UnsupportedModel, match="layer 2 has no cache"):
        supported.source_of(model, found, keys, 2)


def test_a_memory_that_is_full_is_no_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any) -> None:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(supported, "refuse_other_attention", full)
    with pytest.raises(torch.OutOfMemoryError):
        ModelAdapter(build(WIRINGS["llama"]()))


def test_a_model_on_one_device_by_a_device_map_is_accepted() -> None:
    model = build(WIRINGS["llama"]())
    object.__setattr__(model, "hf_device_map", {"": "cpu"})
    assert ModelAdapter(model).shape.layers == 4


@pytest.mark.parametrize("function", [None, lambda x: x, lambda x, cos, sin: x[..., :2]], ids=["none", "one", "less"])
def test_a_model_whose_rotation_is_unknown_is_refused(function: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A function that turns one tensor at a time is recognised only if it returns one of the same shape."""
    monkeypatch.setattr(sys.modules[__name__], "apply_rotary_pos_emb", function, raising=False)
    with pytest.raises(UnsupportedModel, match="Unlike has no apply_rotary_pos_emb for queries and keys"):
        rotation_of(Unlike(LlamaConfig(**SIZES)))


# -- how keys turn -------------------------------------------------------------------------------------------------


@every_wiring
@pytest.mark.parametrize("longest", [40, 200], ids=["short", "long"])
def test_rotate_undoes_unrotate(wiring: str, longest: int) -> None:
    attached = adapter(wiring)
    positions = torch.tensor([0, 3, 17, longest])
    table = attached.table(positions)
    for stack in attached.shape.stacks:
        x = torch.randn(len(stack.layers), stack.kv_heads, len(positions), stack.head_dim)
        assert torch.allclose(table.rotate(table.unrotate(x, stack.layers), stack.layers), x, atol=1e-5)
        assert torch.allclose(table.unrotate(table.rotate(x, stack.layers), stack.layers), x, atol=1e-5)


@every_wiring
@pytest.mark.parametrize("length", [40, 70], ids=["below-the-threshold", "above-the-threshold"])
def test_stored_keys_turned_to_their_own_positions_are_the_models_cached_keys(wiring: str, length: int) -> None:
    """70 tokens are beyond the threshold of the crossed longrope wirings, 40 are not."""
    attached, ids = adapter(wiring), random_ids(length, 1)
    cached, seen = attached.ingest([""], [ids])[0], set()
    cache: Any = DynamicCache()
    with torch.no_grad():
        stock(wiring).get_decoder()(torch.tensor([ids]), **handing(stock(wiring), cache), use_cache=True)
    for stack, own in zip(attached.shape.stacks, cached.stacks, strict=True):
        keys, values = unblocked(own.kv)
        turned = attached.table(torch.arange(length)).rotate(keys[:, :, :length], stack.layers)
        for layer, key, value in zip(stack.layers, turned, values, strict=True):
            there = held(stock(wiring), cache.layers[layer].keys[0], cache.layers[layer].values[0])
            assert torch.allclose(key, there[0], atol=2e-5)
            assert torch.allclose(value[:, :length], there[1], atol=2e-5)
            seen.add(layer)
    assert seen == set(range(len(cache.layers)))


@pytest.mark.parametrize("wiring", ["smollm3", "cohere2"])
def test_layers_without_positions_are_found_and_left_alone(wiring: str) -> None:
    attached = adapter(wiring)
    fixed = [layer for layer, kind in enumerate(attached.rotary.kinds) if kind == "fixed"]
    assert fixed == [3], "by default every fourth layer of these models has no rotary positions"
    (stack,) = attached.shape.stacks
    x = torch.randn(len(stack.layers), stack.kv_heads, 2, stack.head_dim)
    turned = attached.table(torch.tensor([5, 90])).rotate(x)
    assert torch.equal(turned[3], x[3])
    assert not torch.allclose(turned[0], x[0])


def test_layers_are_stacked_by_the_shape_of_their_caches() -> None:
    stacks = {wiring: [stack.layers for stack in adapter(wiring).shape.stacks] for wiring in WIRINGS}
    unlike = {wiring: layers for wiring, layers in stacks.items() if layers != [(0, 1, 2, 3)]}
    assert unlike == {
        "gemma4": [(0, 2), (1, 3)], "gemma4-unlike-heads": [(0, 2), (1, 3)], "gemma4-sharing": [(0, 2), (1,)],
        "gemma4-that-sees": [(0, 2), (1,)], "gemma3n": [(0, 1)],
        "laguna-unlike-parts": [(0, 2), (1, 3)],
    }, "what is on disk depends on it"  # fmt: skip
    sizes = [(stack.heads, stack.kv_heads, stack.head_dim) for stack in adapter("gemma4-unlike-heads").shape.stacks]
    assert sizes == [(4, 2, 16), (4, 1, 32)]
    assert adapter("gemma4-unlike-heads").shape.bytes_per_token == 2 * 4 * (2 * 2 * 16 + 2 * 1 * 32)


def test_layers_without_a_cache_attend_to_the_last_of_their_kind_that_has_one() -> None:
    shape = adapter("gemma4-sharing").shape
    assert shape.sources == (0, 1, 2, 1, 2, 1)
    assert [stack.readers for stack in shape.stacks] == [(0, 2, 4), (1, 3, 5)]
    assert shape.layers == 6 and shape.bytes_per_token == 2 * 4 * 2 * (2 * 16 + 32)


# -- ingestion -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sink", [0, 7], ids=["behind nothing", "behind a head"])
@pytest.mark.parametrize("wiring", [name for name in WIRINGS if "longrope" not in name])
def test_a_chunks_cache_does_not_depend_on_its_batch(
    wiring: str, sink: int, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    """What precedes several chunks is run once for all of them; what precedes a single one, together with it."""
    attached, chunks = adapter(wiring), [random_ids(length, length) for length in (1, 16, 17, 45)]
    monkeypatch.setattr(attached, "sink_prefix", tuple(random_ids(sink, 3)))
    together = attached.ingest([""] * 4, chunks)
    for cached, ids in zip(together, chunks, strict=True):
        alone = attached.ingest([""], [ids])[0]
        for one, other in zip(cached.stacks, alone.stacks, strict=True):
            assert torch.allclose(one.kv, other.kv, atol=2e-5)
            assert torch.allclose(one.summary.local_query, other.summary.local_query, atol=2e-5)
            assert torch.allclose(one.summary.mean, other.summary.mean, atol=2e-5)


@pytest.mark.parametrize("wiring", ["llama", "phi3-longrope"])
def test_what_chunks_stand_behind_is_read_once_where_that_is_exact(
    wiring: str, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    attached, read = adapter(wiring), list[tuple[int, ...]]()
    forward = attached.forward
    monkeypatch.setattr(attached, "sink_prefix", tuple(random_ids(7, 3)))
    monkeypatch.setattr(attached, "forward", lambda ids, *how: (read.append(tuple(ids.shape)), forward(ids, *how)))
    attached.ingest([""] * 3, [random_ids(length, length) for length in (4, 9, 20)])
    attached.ingest([""], [random_ids(20, 20)])
    whole = attached.rotary.depends_on_length
    assert read == ([(3, 27)] if whole else [(1, 7), (3, 20)]) + [(1, 27)]


@every_wiring
def test_summaries_are_of_the_keys_in_the_chunks_own_frame(wiring: str) -> None:
    attached, length = adapter(wiring), 2 * BLOCK + 3
    cached = attached.ingest(["text"], [random_ids(length, 2)])[0]
    for stack, chunk in zip(attached.shape.stacks, cached.stacks, strict=True):
        keys, _ = unblocked(chunk.kv)
        own = attached.table(torch.arange(length)).rotate(keys[:, :, :length], stack.layers)
        for block in range(3):
            part = own[:, :, block * BLOCK : (block + 1) * BLOCK]
            assert torch.allclose(chunk.summary.mean[:, block], part.mean(2), atol=2e-5)
            assert torch.allclose(chunk.summary.low[:, block], part.amin(2), atol=2e-5)
            assert torch.allclose(chunk.summary.high[:, block], part.amax(2), atol=2e-5)
        assert not keys[:, :, length:].any(), "the last block is padded with zeros"
