"""What bfloat16 costs is rounding: with caches no more than in transformers itself, measured against float32."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig

from samkv_rag import ChunkKVStore, Reuse, SamKV
from samkv_rag.methods import Method
from samkv_rag.model.adapter import ModelAdapter
from tests.oracles import Prompted, stored_plan

HONEST = 1.4
"""Times transformers' own error: each is a sum of some thousand roundings, and the two differ by chance."""


def model(dtype: torch.dtype, attention: str) -> Any:
    """A model of sixteen layers, deep enough for roundings to add up; the same bfloat16 weights in every dtype."""
    config = LlamaConfig(
        vocab_size=1000, hidden_size=128, intermediate_size=384, num_hidden_layers=16, num_attention_heads=4,
        num_key_value_heads=2, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    made = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation=attention)
    return made.to(dtype).eval()


@cache
def prompted() -> Prompted:
    adapter, store = ModelAdapter(model(torch.bfloat16, "sdpa")), ChunkKVStore(":memory:")
    return Prompted(stored_plan(adapter, store, (48,)), adapter, store)


@torch.inference_mode()
def plain(dtype: torch.dtype, attention: str) -> Tensor:
    tokens = torch.tensor([prompted().plan.token_ids])
    return model(dtype, attention)(tokens, logits_to_keep=1).logits[0, -1].float()  # type: ignore[no-any-return]


def off(some: Tensor, others: Tensor) -> float:
    return float((some - others).norm() / others.norm())


def logits(method: Method) -> Tensor:
    prepared = prompted().prepare(method)
    return prompted().logits(prepared)


def test_caches_are_as_far_from_float32_as_transformers_is() -> None:
    truth = plain(torch.float32, "eager")
    own = [off(plain(torch.bfloat16, attention), truth) for attention in ("sdpa", "eager")]
    assert 1e-3 < off(logits(SamKV(keep=1.0)), truth) < HONEST * max(own)


def test_what_is_not_rounding_would_be_visible() -> None:
    """Negative control: chunks that never attended to one another."""
    truth = plain(torch.float32, "eager")
    assert off(logits(Reuse()), truth) > HONEST * off(plain(torch.bfloat16, "eager"), truth)
