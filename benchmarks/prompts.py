"""Prompts of random words for a whole engine: one token per word, in a chat template of their own."""

from __future__ import annotations

import random

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from benchmarks.shapes import CPU_LLAMA

CHUNKS = 4
QUESTION = "w7 w11 w13 w17 ?"
TEMPLATE = (
    "{% for m in messages %}<|im_start|> {{ m.role }} {{ m.content }} <|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|> assistant {% endif %}"
)


def word_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer with one token per word, so that a text has as many tokens as words."""
    special = ["<pad>", "<bos>", "<eos>", "<|im_start|>", "<|im_end|>", "system", "user", "assistant", "?"]
    words = [f"w{number}" for number in range((CPU_LLAMA.vocab_size or 0) - len(special))]
    vocab = {word: number for number, word in enumerate([*special, *words])}
    backend = Tokenizer(models.WordLevel(vocab, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", chat_template=TEMPLATE
    )


def conversation(tokens: int) -> tuple[list[str], list[dict[str, str]]]:
    """Chunk texts of `tokens` tokens in total, and the messages that hold them."""
    draw = random.Random(tokens)
    chunks = [" ".join(f"w{draw.randrange(20000)}" for _ in range(tokens // CHUNKS)) for _ in range(CHUNKS)]
    system = "w1 w2 w3\n\n" + "\n\n".join(chunks)
    return chunks, [{"role": "system", "content": system}, {"role": "user", "content": QUESTION}]
