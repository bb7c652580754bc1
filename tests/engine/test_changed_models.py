"""A loaded model must stay what it was when its engine was made: caches of another one would be put beside its own."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.utils import prune

from samkv_rag import ChunkKVStore, SamKVError
from tests.cases import WIRINGS
from tests.engine.given import ASKED, CHUNKS, engine_of
from tests.models import build


@torch.no_grad()
def trained(model: Any) -> None:
    model.get_decoder().layers[1].mlp.up_proj.weight.mul_(1.5)


def converted(model: Any) -> None:
    model.to(torch.bfloat16)


def replaced(model: Any) -> None:
    model.get_decoder().layers[2].mlp = copy.deepcopy(model.get_decoder().layers[1].mlp)


@torch.no_grad()
def replaced_twice(model: Any) -> None:
    """The second one may get the place in memory that the first one had."""
    for _ in range(2):
        another = copy.deepcopy(model.get_decoder().layers[2].mlp)
        another.up_proj.weight.mul_(-1.5)
        model.get_decoder().layers[2].mlp = another
        del another


def set_twice(model: Any) -> None:
    """Here so may its numbers, and nothing counts how often they are set."""
    for _ in range(2):
        weight = model.get_decoder().layers[2].self_attn.q_proj.weight
        weight.data = weight.data * 1.25


def pruned(model: Any) -> None:
    prune.random_unstructured(model.get_decoder().layers[0].mlp.up_proj, "weight", amount=0.7)


def loaded_anew(model: Any) -> None:
    model.load_state_dict({name: value + 0.01 for name, value in model.state_dict().items()}, assign=True)


def in_training(model: Any) -> None:
    model.train()


def partly_in_training(model: Any) -> None:
    model.get_decoder().layers[3].train()


def attending_otherwise(model: Any) -> None:
    model.set_attn_implementation("sdpa")


CHANGES: dict[Callable[[Any], None], str] = {
    trained: "weights of this LlamaForCausalLM have changed .* Make a new engine",
    converted: "weights .* have changed",
    replaced: "weights .* have changed",
    replaced_twice: "weights .* have changed",
    set_twice: "weights .* have changed",
    pruned: "weights .* have changed",
    loaded_anew: "weights .* have changed",
    in_training: r"is in training mode.* call \.eval\(\)",
    partly_in_training: r"is in training mode.* call \.eval\(\)",
    attending_otherwise: r"attention of .* has been changed.* set_attn_implementation\('samkv'\)",
}
changed = pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)


@changed
def test_a_model_that_has_changed_is_not_used(change: Callable[[Any], None], tmp_path: Path) -> None:
    model = build(WIRINGS["llama"]())
    with ChunkKVStore(tmp_path) as store, engine_of(model, store) as engine:
        engine.precompute(CHUNKS[:1])
        engine.answer(ASKED, CHUNKS[:1], max_new_tokens=2)
        change(model)
        for use in (
            lambda: engine.answer(ASKED, CHUNKS[:1], max_new_tokens=2),
            lambda: engine.generate("Lumen Labs", max_new_tokens=2),
            lambda: engine.stream_answer(ASKED, CHUNKS, max_new_tokens=2).answer,
            lambda: engine.precompute(CHUNKS),
            engine.self_check,
        ):
            with pytest.raises(SamKVError, match=CHANGES[change]):
                use()
        assert len(store) == 1  # nothing was stored as the earlier model's


def test_a_model_that_was_changed_back_is_used_again() -> None:
    model = build(WIRINGS["llama"]())
    engine = engine_of(model)
    first = engine.answer(ASKED, CHUNKS, max_new_tokens=4)
    model.train()
    model.set_attn_implementation("eager")
    model.eval()
    model.set_attn_implementation("samkv")
    assert engine.answer(ASKED, CHUNKS, max_new_tokens=4).token_ids == first.token_ids


def test_weights_that_change_before_the_first_answer_are_found_too() -> None:
    model = build(WIRINGS["llama"]())
    engine = engine_of(model)
    engine.keys(CHUNKS)
    trained(model)
    with pytest.raises(SamKVError, match="have changed"):
        engine.answer(ASKED, CHUNKS)


def test_a_new_engine_over_changed_weights_uses_none_of_the_old_caches(tmp_path: Path) -> None:
    model = build(WIRINGS["llama"]())
    with engine_of(model, tmp_path) as engine:
        engine.precompute(CHUNKS)
    trained(model)
    with engine_of(model, tmp_path) as engine:
        assert engine.answer(ASKED, CHUNKS, max_new_tokens=2).usage.cache_read == 0
