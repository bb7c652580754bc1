"""The reader's tokenizer: byte-level BPE learned from training worlds, so that any text encodes."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from samkv_rag.eval import worlds

BOS, EOS, PAD = "<bos>", "<eos>", "<pad>"
_MARK = "\ue000"  # stands for the beginning of a text while it is normalised


def _texts(count: int) -> Iterator[str]:
    rng = random.Random("tokenizer")
    for number in range(count):
        made = worlds.draft(-1 - number)
        shown = worlds.context(made, rng, 12)
        yield "\n\n".join(shown.chunks)
        yield from (f"\n\nQuestion: {q.text}\nAnswer: {q.answer}" for q in shown.questions)


def beginning_like_words() -> normalizers.Normalizer:
    """Put a space before a text that begins with a word, as SentencePiece does: a name at the beginning of a chunk
    then has the same tokens as elsewhere, so that it can be copied into an answer."""
    drop = normalizers.Replace(Regex(_MARK + r"(?=\s)"), "")
    return normalizers.Sequence([normalizers.Prepend(_MARK), drop, normalizers.Replace(_MARK, " ")])


def train_tokenizer(
    folder: Path, vocab_size: int, world_count: int, more: Iterable[str] = ()
) -> PreTrainedTokenizerFast:  # fmt: skip
    """Learn `vocab_size` tokens from training worlds and `more` text, and save them in `folder`, loadable by
    AutoTokenizer."""
    bpe = Tokenizer(models.BPE())
    bpe.normalizer = beginning_like_words()
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[BOS, EOS, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(chain(_texts(world_count), more), trainer)
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
