"""Text token by token: together the pieces are the text of all tokens, and each comes as soon as it is certain."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from samkv_rag import reader
from samkv_rag.model.detokenizer import Detokenizer

WORDS = ["a", "b", "é", "你", "好", "\ufffd", ".", ",", "n", "'t", "not", "  "]


def wrapped(vocab: list[str], decoder: Any, **settings: Any) -> Any:
    backend = Tokenizer(models.BPE({token: number for number, token in enumerate(vocab)}, [], **settings))
    backend.decoder = decoder
    backend.add_special_tokens([AddedToken("</s>", special=True)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")


def falling_back_to_bytes() -> Any:
    """As Llama 2's: spaces are part of tokens, characters without a token are bytes, the first space is stripped."""
    vocab = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *WORDS, *(f"▁{word}" for word in WORDS)]
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    return wrapped(vocab, decoders.Sequence(steps), unk_token="<unk>", byte_fallback=True)


def metaspace() -> Any:
    return wrapped(["▁", *WORDS, *(f"▁{word}" for word in WORDS)], decoders.Metaspace())


def word_pieces() -> Any:
    return wrapped([*WORDS, *(f"##{word}" for word in WORDS)], decoders.WordPiece(cleanup=False))


def byte_level() -> Any:
    return AutoTokenizer.from_pretrained(reader.path())


KINDS: list[Callable[[], Any]] = [falling_back_to_bytes, metaspace, word_pieces, byte_level]
made = cache(lambda kind: kind())


def pieces(tokenizer: Any, ids: list[int]) -> list[str]:
    detokenizer = Detokenizer(tokenizer)
    return [*(detokenizer.feed(token) for token in ids), detokenizer.rest()]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_the_pieces_are_the_text(kind: Callable[[], Any], data: st.DataObject) -> None:
    tokenizer = made(kind)
    ids = data.draw(st.lists(st.integers(0, len(tokenizer) - 1), max_size=12))
    assert "".join(pieces(tokenizer, ids)) == tokenizer.decode(ids, skip_special_tokens=True)


@given(
    words=st.lists(
        st.sampled_from(["\n", "你好", " a", "é", "🙂", "🙂🙂", "."]).map(lambda text: list(text.encode())), max_size=6
    ),
    cut=st.integers(0, 3),
)
@settings(max_examples=100, deadline=None)
def test_the_pieces_of_bytes_are_the_text_wherever_they_end(words: list[list[int]], cut: int) -> None:
    tokenizer = made(falling_back_to_bytes)
    bytes_ = [byte for word in words for byte in word]
    ids = [*tokenizer.convert_tokens_to_ids([f"<0x{byte:02X}>" for byte in bytes_[: len(bytes_) - cut]])]
    for ending in ([], [tokenizer.eos_token_id]):
        assert "".join(pieces(tokenizer, ids + ending)) == tokenizer.decode(ids, skip_special_tokens=True)


def test_a_token_with_whole_characters_is_passed_on_at_once() -> None:
    tokenizer = made(falling_back_to_bytes)
    ids = tokenizer.convert_tokens_to_ids(["▁a", "b", ".", "▁not", "▁你", "好"])
    assert pieces(tokenizer, ids) == ["a", "b", ".", " not", " 你", "好", ""]
    words = made(byte_level)(" It's 你, and (so) on.\n")["input_ids"]
    shown = pieces(made(byte_level), words)
    assert shown[-1] == "" and sum(map(bool, shown)) > len(words) / 2


def test_half_a_character_and_bytes_that_go_on_are_held_back() -> None:
    tokenizer = made(falling_back_to_bytes)
    ids = tokenizer.convert_tokens_to_ids(["▁a", *(f"<0x{byte:02X}>" for byte in "é\n".encode()), "b"])
    assert pieces(tokenizer, ids) == ["a", "", "", "", "é\nb", ""]
