"""The reader's tokenizer: byte-level BPE learned from training worlds, so that any text encodes."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from samkv_rag.eval import worlds

BOS, EOS, PAD = "<bos>", "<eos>", "<pad>"


def _texts(count: int) -> Iterator[str]:
    rng = random.Random("tokenizer")
    for number in range(count):
        made = worlds.draft(-1 - number)
        shown = worlds.context(made, rng, 12)
        yield "\n\n".join(shown.chunks)
        yield from (f"\n\nQuestion: {q.text}\nAnswer: {q.answer}" for q in shown.questions)


def train_tokenizer(folder: Path, vocab_size: int, world_count: int) -> PreTrainedTokenizerFast:
    """Learn `vocab_size` tokens from training worlds and save them in `folder`, loadable by AutoTokenizer."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[BOS, EOS, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(_texts(world_count), trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        clean_up_tokenization_spaces=False,
        model_max_length=4096,
    )
    tokenizer.save_pretrained(folder)
    return tokenizer
