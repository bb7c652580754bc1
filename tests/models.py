"""Tiny random models, a byte tokenizer and an engine over both: what tests need, with no weights to load."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import torch
import transformers as tf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from benchmarks.shapes import sharpened
from samkv_rag import ChunkKVStore, SamKVEngine
from samkv_rag.model.adapter import ModelAdapter
from samkv_rag.model.loading import auto_class_of
from tests.cases import VOCAB, WIRINGS


def build(config: Any, dtype: torch.dtype = torch.float32, sharpen: float = 4.0) -> Any:
    """A random model with its weight matrices scaled up: flat attention would hide wrong masks and positions."""
    torch.manual_seed(0)
    model = auto_class_of(config).from_config(config, attn_implementation="eager").to(dtype).eval()
    sharpened(model, sharpen)
    model.generation_config.eos_token_id = None
    return model


def attentions(model: Any) -> list[Any]:
    """The attention modules of a model, in the order of their caches: a layer of LongCat-Flash has two."""
    found = [getattr(layer, "self_attn", None) or layer.attention for layer in model.get_decoder().layers]
    return [module for own in found for module in (own if isinstance(own, torch.nn.ModuleList) else [own])]


@cache
def adapter(wiring: str) -> ModelAdapter:
    """The attached model of a wiring, shared by the tests: it keeps what their prompts begin with, and nothing else."""
    return ModelAdapter(build(WIRINGS[wiring]()))


@cache
def byte_tokenizer(chat: bool = False) -> Any:
    """One token per byte, with `<pad> <bos> <eos> <|im_start|> <|im_end|>` as special tokens."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<pad>", "<bos>", "<eos>", "<|im_start|>", "<|im_end|>"]
    vocab = {token: index for index, token in enumerate([*special, *letters])}
    assert len(vocab) <= VOCAB
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = tf.PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>",
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
    )  # fmt: skip
    if chat:
        tokenizer.chat_template = (
            "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>\n{% endfor %}"
            "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
        )
    return tokenizer


BEGINS = "{{ bos_token }}{{ messages[0].content }}"
"""A chat template that adds nothing but a BOS at the front."""


def templated(template: str | None) -> Any:
    """The byte tokenizer with this chat template."""
    tokenizer = copy.deepcopy(byte_tokenizer())
    tokenizer.chat_template = template
    return tokenizer


def thinking_tokenizer(opens: bool = False) -> Any:
    """A tokenizer with a chat template like Qwen3's: `enable_thinking=False` gives the answer an empty thought. With
    `opens`, one like DeepSeek-R1's: the prompt ends in the middle of a thought."""
    tokenizer = copy.deepcopy(byte_tokenizer(chat=True))
    off = "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
    tokenizer.chat_template += "<think>\n{# until </think> #}" if opens else off
    return tokenizer


def tiny_engine(wiring: str = "llama", store: Any = None, chat: bool = False, **options: Any) -> SamKVEngine:
    """An engine over a random model with a byte tokenizer."""
    return SamKVEngine.from_pretrained(
        adapter(wiring).model, tokenizer=byte_tokenizer(chat),
        store=ChunkKVStore(":memory:") if store is None else store, **options,
    )  # fmt: skip
