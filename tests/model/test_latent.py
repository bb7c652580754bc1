"""Models that cache latents: what they cache is held joined, decoded absorbed, and told apart by what it does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import MiniCPM3Config, Mistral4Config

from samkv_rag import ChunkKVStore, SamKV
from samkv_rag.errors import UnsupportedModel
from samkv_rag.methods import MultiInfLLM, Reuse
from samkv_rag.model.absorbed import AbsorbedRows, Making
from samkv_rag.model.adapter import ModelAdapter
from samkv_rag.model.attention import AttentionPlan
from samkv_rag.model.latent import can_be_joined, joined, parted, side_by_side, whole
from samkv_rag.parity import check_parity
from tests.cases import LATENT as LATENT_SIZES
from tests.cases import ROUTED, SIZES, WIRINGS, YARN, longrope
from tests.methods import test_stored as stored
from tests.methods.gates import prompted
from tests.model import test_loop as loops
from tests.models import adapter, build
from tests.oracles import Prompted, stored_chunk, stored_plan

LATENT = ["deepseek-v3", "deepseek-v2", "minicpm3", "mistral4", "longcat"]
every_latent_wiring = pytest.mark.parametrize("wiring", LATENT)


def test_the_wirings_that_cache_latents_are_these() -> None:
    assert [wiring for wiring in WIRINGS if adapter(wiring).latents is not None] == LATENT
    assert all(adapter(wiring).rotary.latent == (wiring in LATENT) for wiring in WIRINGS)


# -- what is held --------------------------------------------------------------------------------------------------


@given(st.integers(1, 6), st.integers(0, 5), st.integers(1, 3))
def test_what_is_joined_comes_apart_again(turning: int, more: int, tokens: int) -> None:
    latent, turns = torch.randn(1, 1, tokens, turning + 2 * more), torch.randn(1, 1, tokens, turning)
    assert can_be_joined(latent, turns)
    keys, values = joined(latent, turns)
    assert keys.shape == values.shape and torch.equal(keys[..., :turning], turns)
    assert all(map(torch.equal, parted(keys, values, turning), (latent, turns)))


def test_what_has_several_heads_or_turns_mostly_or_is_odd_is_not_joined() -> None:
    one = torch.randn(1, 1, 2, 8)
    assert can_be_joined(one, one)
    assert not can_be_joined(one, one[..., :3]) and not can_be_joined(one[..., :4], one)
    assert not can_be_joined(one.expand(1, 2, 2, 8), one)


def test_halves_that_lie_side_by_side_are_whole_without_a_copy() -> None:
    entries = torch.randn(2, 3, 5, 8)
    halves = entries.chunk(2, -1)
    for keys, values in (halves, [half[:, :, 1:4] for half in halves], [half[1:, :, :1] for half in halves]):
        assert side_by_side(keys, values) and whole(keys, values).data_ptr() == keys.data_ptr()
        assert torch.equal(whole(keys, values), torch.cat([keys, values], -1))
    same = torch.randn(2, 5, 4)
    for keys, values in (halves[::-1], [half.clone() for half in halves], same[:, :4].chunk(2, 1), (same, same)):
        assert not side_by_side(keys, values)
        assert torch.equal(whole(keys, values), torch.cat([keys, values], -1))


def test_caches_of_latents_stay_whole_when_they_are_thinned_or_moved() -> None:
    for wiring, joins in (("deepseek-v3", True), ("llama", False)):
        cache, slots = adapter(wiring).empty_cache(9), torch.tensor([0, 2, 3])
        for one in cache._buffers:
            for buffer in one.both:
                buffer.copy_(torch.randn(buffer.shape))
            for copy, want in ((one.at(slots), [x[:, :, slots] for x in one.both]), (one.copied(), one.both)):
                assert side_by_side(*copy.both) == side_by_side(*one.both) == joins
                assert all(map(torch.equal, copy.both, want)) and copy.keys.data_ptr() != one.keys.data_ptr()


@every_latent_wiring
def test_a_token_takes_what_the_model_itself_caches_of_it(wiring: str) -> None:
    shape, config = adapter(wiring).shape, adapter(wiring).config
    assert shape.bytes_per_token == 4 * 4 * (config.kv_lora_rank + config.qk_rope_head_dim)


@pytest.mark.parametrize("wiring", LATENT[:2])
@stored.stored
def test_latents_are_stored_in_fewer_bits_like_keys_and_values(wiring: str, kv_dtype: str) -> None:
    """Not MiniCPM3's: sharpened, that model magnifies any error by more than those for which the tolerances were set,
    that of bfloat16 to 1 %."""
    plain = prompted(wiring)
    store = type(plain.store)(":memory:")
    for key in (str(chunk.key) for chunk in plain.plan.chunks):
        store.put(key, stored_chunk(plain.store, key), kv_dtype=kv_dtype)
    other = replace(plain, store=store)
    moved = stored.moved(other.logits(other.prepare(Reuse())), plain.logits(plain.prepare(Reuse())))
    assert 0 < moved < stored.TOLERANCE[kv_dtype]


# -- looks ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "method", [SamKV(look="pooled"), SamKV(look="two_stage", keep=0.4), SamKV.paper(), MultiInfLLM()]
)
def test_looks_at_summaries_are_refused_with_the_remedy(method: Any) -> None:
    with pytest.raises(UnsupportedModel, match=r'Use SamKV\(\) with look="keys", its default'):
        prompted("deepseek-v3").prepare(method)


# -- recomputing -------------------------------------------------------------------------------------------------


@every_latent_wiring
def test_narrowed_layers_make_keys_and_values_of_what_narrowed_tokens_attend_to(
    wiring: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case, method = prompted(wiring), SamKV(keep=0.3, wide=0.5, sees=0.3)
    with rows_made(case.adapter.model) as made:
        prepared = case.prepare(method)
    total = case.plan.n_tokens
    own = int(0.3 * case.plan.chunk_tokens) + total - case.plan.chunk_tokens - 6  # what follows the chunks sees all
    assert made[-4:] == [total] * 2 + [own + int(0.3 * (total - own))] * 2
    monkeypatch.setattr(case.adapter.latents, "pays", lambda *_: False)
    with rows_made(case.adapter.model) as made:
        again = case.prepare(method)
    assert made[-4:] == [total] * 4 and torch.allclose(case.logits(again), case.logits(prepared), atol=1e-5)


# -- decoding ------------------------------------------------------------------------------------------------------


@contextmanager
def rows_made(model: Any) -> Iterator[list[int]]:
    """How many tokens the layers make keys and values of, call by call."""
    heard = list[int]()
    makers = [module.kv_b_proj for module in model.modules() if hasattr(module, "kv_b_proj")]
    hooks = [maker.register_forward_hook(lambda _, given, __: heard.append(given[0].shape[-2])) for maker in makers]
    try:
        yield heard
    finally:
        for hook in hooks:
            hook.remove()


@every_latent_wiring
def test_a_step_makes_keys_and_values_of_no_token_but_the_new_one(wiring: str) -> None:
    row = loops.begin(loops.prompted(wiring)[0], loops.METHODS[0])
    with rows_made(adapter(wiring).model) as made:
        adapter(wiring).loop.step([row])
    assert made == [1] * 4


def test_passes_of_few_rows_attend_to_latents_as_they_are_and_those_of_many_do_not() -> None:
    """In the shape of DeepSeek-V2-Lite: 16 heads of 128 + 64 and 128, latents of 512."""
    making = Making(torch.empty(16, 576, 192), torch.empty(16, 512, 128))
    assert [rows for rows in (1, 40, 80, 160, 320, 4096) if making.pays(rows, 4096, rows)] == [1, 40, 80]
    assert [total for total in (2, 80, 160, 320) if making.pays(40, total, 40)] == [160, 320]
    assert not making.pays(40, 40, 40), "of a prompt that is computed whole nothing is saved"
    assert making.pays(80, 4096, 1400) and not making.pays(40, 4096, 4096), "nor where keys are there anyway"


@pytest.mark.parametrize("packed", [0, 3])
def test_a_mask_of_everything_is_causal_where_sdpa_would_be_told_so(packed: int) -> None:
    plan = AttentionPlan(torch.arange(4))
    mask = plan.sight(4, 4, None).whole_mask(packed)
    assert mask is not None and torch.equal(mask[:, packed:], torch.ones(4, 4, dtype=torch.bool).tril())
    assert mask[:, :packed].all() and plan.sight(1, 4, None).whole_mask(packed) is None
    some = plan.sight(1, 4, 2).whole_mask(packed)
    assert some is not None and some.tolist() == [[True] * packed + [False, False, True, True]]


def test_what_is_learned_of_a_layer_is_what_it_attends_to() -> None:
    model = build(WIRINGS["deepseek-v3"]())
    module, entries = model.model.layers[2].self_attn, torch.randn(1, 1, 9, 32)
    given = module.expand_kv(entries[..., 8:].contiguous(), entries[..., :8].contiguous())
    making = Making.of(module, 8, entries)
    assert making.explains(entries, given) and not making.explains(entries.flip(2), given)
    assert not making.explains(entries, (given[0], given[1] * 1.01))


def test_a_wrong_making_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control of absorbed decoding: one layer's values are another's."""
    want, latents = loops.alone("deepseek-v3"), adapter("deepseek-v3").latents
    assert latents is not None
    first, second, *others = latents.layers
    monkeypatch.setattr(latents, "layers", [first, replace(second, values=others[0].values), *others])
    assert loops.alone.__wrapped__("deepseek-v3") != want


def test_the_gate_compares_absorbed_decoding_with_the_models_own_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    right = AbsorbedRows.attend

    def wrong(plan: AbsorbedRows, layer: int, query: Tensor, *others: Any) -> Tensor:
        return right(plan, layer, query * 1.05, *others)

    assert check_parity(adapter("minicpm3")).passed
    monkeypatch.setattr(AbsorbedRows, "attend", wrong)
    with pytest.raises(Exception, match="decoding by"):
        check_parity(adapter("minicpm3"))


# -- where nothing can be learned of the layers ----------------------------------------------------------------------


def squared() -> Any:
    """A model one of whose layers does not make its values linearly."""
    model = build(WIRINGS["deepseek-v3"]())
    module = model.model.layers[3].self_attn
    linear = module.expand_kv

    def expand(latent: Tensor, turning: Tensor) -> tuple[Tensor, Tensor]:
        keys, values = linear(latent, turning)
        return keys, values * values

    module.expand_kv = expand
    return model


def test_queries_may_grow_with_their_positions() -> None:
    """Those of Mistral 4 do, at every multiple of the length that it was first trained on."""
    grows = YARN | {"llama_4_scaling_beta": 0.5, "original_max_position_embeddings": 16}
    stock, mine = (build(Mistral4Config(**SIZES | LATENT_SIZES | ROUTED, rope_parameters=grows)) for _ in range(2))
    attached, store = ModelAdapter(mine), ChunkKVStore(":memory:")
    case = Prompted(stored_plan(attached, store, lengths=(37, 16)), attached, store)
    ids = torch.tensor([case.plan.token_ids])
    want = stock.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=8)
    assert check_parity(attached).passed
    assert case.tokens(SamKV(keep=1.0), 8) == want[0, ids.shape[1] :].tolist()


def test_longrope_and_latents_go_together() -> None:
    """Nothing is packed and answers take a forward each, but no keys and values are made of what precedes."""
    rope = longrope(64) | {"short_factor": [1.0, 1.05, 1.1, 1.2], "long_factor": [2.0, 2.3, 2.6, 2.9]}
    stock, mine = (build(MiniCPM3Config(**SIZES | LATENT_SIZES, rope_parameters=dict(rope))) for _ in range(2))
    attached = ModelAdapter(mine)
    assert attached.rotary.depends_on_length and check_parity(attached).passed
    store = ChunkKVStore(":memory:")
    case = Prompted(stored_plan(attached, store, lengths=(37, 16)), attached, store)
    ids = torch.tensor([case.plan.token_ids])
    want = stock.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=6)
    with rows_made(attached.model) as made:
        assert case.tokens(SamKV(keep=1.0), 6) == want[0, ids.shape[1] :].tolist()
    assert made[-4:] == [1] * 4
    assert "length of the text" in case.prepare(SamKV(keep=0.3)).selection.notes[0]


def test_where_a_layer_is_not_linear_the_model_decodes_itself_over_all_that_is_kept() -> None:
    attached = ModelAdapter(squared())
    assert attached.latents is not None and attached.unpackable and check_parity(attached).passed
    case = replace(prompted("deepseek-v3"), adapter=attached)
    prepared = case.prepare(SamKV(keep=0.3))
    assert prepared.settling is None
    assert prepared.selection.notes[0].startswith(
        "nothing was packed, everything is kept at full precision: this model"
    )
    ids = torch.tensor([case.plan.token_ids])
    want = squared().generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=4)
    with rows_made(attached.model) as made:
        assert case.tokens(SamKV(keep=1.0), 4) == want[0, ids.shape[1] :].tolist()
    assert made[-4:] == [case.plan.n_tokens + 3] * 4
