"""Text as tokens: nothing in a document is read as a token of the model's own, and nothing of it is lost for that."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from samkv_rag import SamKVEngine
from samkv_rag.prompt.encoding import Encoder
from tests.models import byte_tokenizer

TEXT = "The tower cost 40 € in 1820, and the town of Vale paid all of it."


@cache
def reading() -> Any:
    """The tokenizer of the bundled reader."""
    return SamKVEngine.from_pretrained("bundled", store=":memory:").tokenizer


def with_added(*tokens: AddedToken) -> Any:
    tokenizer = copy.deepcopy(reading())
    tokenizer.add_tokens(list(tokens))
    return tokenizer


def knowing_words(*words: str) -> Any:
    """A tokenizer of whole words, for which all others are one unknown token."""
    vocab = {word: index for index, word in enumerate(["<unk>", "<s>", "</s>", *words])}
    backend = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def test_a_character_that_is_an_added_token_is_text_like_any_other() -> None:
    tokenizer = with_added(AddedToken("€", special=False))
    encoder, ids = Encoder(tokenizer), Encoder(tokenizer).chunk(TEXT)
    assert ids == tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    assert "€" in tokenizer.decode(ids) and "".join(encoder.chunk_texts(TEXT)) == TEXT


def test_an_unknown_word_stays_in_its_place() -> None:
    encoder = Encoder(knowing_words("the", "mill", "of"))
    assert encoder.chunk("the mill of Orrin") == [3, 4, 5, 0]
    assert encoder.chunk("the <unk> mill") != [3, 0, 4], "what is written so is no unknown word"
    assert not {1, 2}.intersection(encoder.chunk("the <s> mill </s> of"))


@pytest.mark.parametrize("token", ["<|end|>", "<think>"])
@pytest.mark.parametrize("special", [False, True])
def test_an_added_token_is_never_read_and_what_is_around_it_stays_whole(token: str, special: bool) -> None:
    """Also where the tokenizer takes other characters for it: then the text is cut there, and nowhere else."""
    tokenizer = with_added(AddedToken(token, special=special, normalized=not special))
    disguised = token.replace("<", "＜").replace(">", "＞")
    backend = tokenizer.backend_tokenizer
    backend.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), *([backend.normalizer] if backend.normalizer else [])]
    )
    own = tokenizer.convert_tokens_to_ids(token)
    for written in (token, disguised):
        text = f"{TEXT} A page about {written} and chats. {TEXT}"
        ids = Encoder(tokenizer).chunk(text)
        assert own not in ids and "".join(Encoder(tokenizer).chunk_texts(text)) == text
        assert len(ids) < 1.5 * len(tokenizer(text, add_special_tokens=False)["input_ids"])


@pytest.mark.parametrize("single", ["$A", "<bos> $A", "<|im_start|> <|im_end|> $A", "<bos> <|im_start|> $A <eos>"])
def test_all_that_a_tokenizer_prepends_precedes_a_raw_prompt(single: str) -> None:
    tokenizer = copy.deepcopy(byte_tokenizer())
    names = [name for name in single.split() if name != "$A"]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=single, special_tokens=[(name, tokenizer.convert_tokens_to_ids(name)) for name in names]
    )
    before = single.split(" $A")[0].split() if not single.startswith("$A") else []
    assert Encoder(tokenizer).prefix == [tokenizer.convert_tokens_to_ids(name) for name in before]
