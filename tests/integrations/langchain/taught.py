"""A tiny model that has learnt `lessons.py` by heart: some seconds of training, once per test run."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
import transformers as tf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

from samkv_rag import ChunkKVStore, SamKVEngine
from tests.integrations.langchain.lessons import Lesson, lessons

SPECIAL = ["<pad>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
STEPS, BATCH, ENOUGH = 600, 12, 0.01


@cache
def taught_model() -> tuple[Any, Any]:
    """The model and its tokenizer."""
    taught = lessons()
    tokenizer = _tokenizer(taught)
    torch.manual_seed(0)
    config = tf.LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=4096, eos_token_id=tokenizer.eos_token_id, pad_token_id=0,
        bos_token_id=None, tie_word_embeddings=True,
    )  # fmt: skip
    model = tf.AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    _learn(model, [_example(tokenizer, lesson) for lesson in taught])
    return model.eval(), tokenizer


def taught_engine() -> SamKVEngine:
    """A new engine over the taught model."""
    model, tokenizer = taught_model()
    return SamKVEngine.from_pretrained(model, tokenizer, ChunkKVStore(":memory:"))


def _tokenizer(taught: Sequence[Lesson]) -> Any:
    """Byte-level BPE that may merge across words: what the lessons repeat becomes a few tokens."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=1200, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )  # fmt: skip
    texts = [turn["content"] for lesson in taught for turn in lesson.turns]
    backend.train_from_iterator(texts + [lesson.answer for lesson in taught], trainer)
    return tf.PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>"], chat_template=TEMPLATE,
    )  # fmt: skip


def _example(tokenizer: Any, lesson: Lesson) -> tuple[list[int], int]:
    """Token ids, and where the answer begins."""
    prompt = tokenizer.apply_chat_template(list(lesson.turns), tokenize=False, add_generation_prompt=True)
    ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    answer = tokenizer(lesson.answer, add_special_tokens=False)["input_ids"]
    return [*ids, *answer, tokenizer.eos_token_id], len(ids)


def _learn(model: Any, examples: Sequence[tuple[list[int], int]]) -> None:
    """Train until every lesson of a whole round is known."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=0.0)
    order = torch.Generator().manual_seed(0)
    known = 0
    for _ in range(STEPS):
        chosen = torch.randperm(len(examples), generator=order)[:BATCH].tolist()
        ids, labels = _batch([examples[index] for index in chosen])
        loss = model(ids, attention_mask=(ids != 0).long(), labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        known = known + 1 if loss.item() < ENOUGH else 0
        if known > 2 * len(examples) // BATCH:
            return
    raise AssertionError(f"The lessons were not learnt in {STEPS} steps.")


def _batch(examples: Sequence[tuple[list[int], int]]) -> tuple[Tensor, Tensor]:
    longest = max(len(ids) for ids, _ in examples)
    ids = torch.zeros(len(examples), longest, dtype=torch.long)
    labels = torch.full_like(ids, -100)
    for row, (tokens, start) in enumerate(examples):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        labels[row, start : len(tokens)] = torch.tensor(tokens[start:])
    return ids, labels
