"""Respelt worlds: the same text except for the names, the same questions, and the same places to look at."""

import random
import re

import pytest
from tokenizers import Tokenizer

from samkv_rag.eval import worlds
from samkv_rag.eval.names import is_held_out
from training.export import WEIGHTS
from training.passages import Encoder, Sizes, draw_world
from training.spelling import respell

TOKENIZER = Tokenizer.from_file(str(WEIGHTS / "tokenizer.json"))


@pytest.mark.parametrize("seed", range(4))
def test_only_names_change_and_everywhere_alike(seed: int) -> None:
    made = worlds.draft(seed)
    names = [entity.name for entity in made.entities]
    shown = worlds.show(made, random.Random(seed), worlds.pick(made, random.Random(seed), 6))
    made, spelt = respell(random.Random(seed), TOKENIZER, made, shown)
    old = [word for chunk in shown.chunks for word in re.findall(r"\w+", chunk)]
    new = [word for chunk in spelt.chunks for word in re.findall(r"\w+", chunk)]
    other = dict(zip(old, new, strict=True))
    assert [other[word] for word in old] == new  # alike everywhere
    changed = {word for word in old if other[word] != word}
    assert changed and all(word[0].isupper() or word[:2] == "\n\n" for word in changed)
    assert not any(name in " ".join(new) for name in names)
    for question, before in zip(spelt.questions, shown.questions, strict=True):
        assert (question.task, question.needs) == (before.task, before.needs)
        assert question.subject in ("", *(entity.name for entity in made.entities))


def test_new_words_are_none_that_only_evaluation_may_use() -> None:
    made = worlds.draft(1)
    shown = worlds.show(made, random.Random(1), worlds.pick(made, random.Random(1), 8))
    made, _ = respell(random.Random(1), TOKENIZER, made, shown)
    words = {word for entity in made.entities for word in entity.name.split() if word[0].isupper()}
    assert not any(is_held_out(word) for word in words - {w for e in worlds.draft(1).entities for w in e.name.split()})


def test_a_share_of_worlds_is_spelt_anew() -> None:
    encode = Encoder(TOKENIZER)
    sizes = Sizes(rows=1, context=300, asked=200, plain=8, chunks=6)
    plain = draw_world(random.Random(5), encode, sizes)
    spelt = draw_world(random.Random(5), encode, Sizes(rows=1, context=300, asked=200, plain=8, chunks=6, respelt=1.0))
    assert plain.chunks != spelt.chunks and len(plain.chunks) == len(spelt.chunks)
