"""Names respelt from any tokens, so that a reader learns to copy beginnings that few names have."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache

from tokenizers import Tokenizer

from samkv_rag.eval import phrases
from samkv_rag.eval.names import is_held_out
from samkv_rag.eval.worlds import Context, Draft, Fact, Question

_WORD = re.compile(r"\b[A-Z][a-z]{2,}\b")


@cache
def _wording() -> frozenset[str]:
    return frozenset(word.lower() for text in phrases.texts() for word in re.findall(r"\w+", text))


@cache
def _pieces(tokenizer: Tokenizer) -> tuple[list[str], list[str]]:
    """Tokens that begin a capitalised word, and tokens that continue one."""
    texts = [tokenizer.decode([i]) for i in range(tokenizer.get_vocab_size())]
    begin = [text[1:] for text in texts if re.fullmatch(r" [A-Z][a-z]*", text)]
    return begin, [text for text in texts if re.fullmatch(r"[a-z]{2,5}", text)]


def _spelt(rng: random.Random, tokenizer: Tokenizer) -> str:
    begin, more = _pieces(tokenizer)
    while True:
        word = rng.choice(begin) + "".join(rng.choices(more, k=rng.randint(1, 2)))
        if len(word) > 3 and not is_held_out(word):
            return word


def respell(rng: random.Random, tokenizer: Tokenizer, made: Draft, shown: Context) -> tuple[Draft, Context]:
    """The same world with other names: every capitalised word not of the wording is replaced, everywhere alike."""
    other: dict[str, str] = {}

    def spell(text: str) -> str:
        return _WORD.sub(lambda found: _replaced(found[0]), text)

    def _replaced(word: str) -> str:
        if word.lower() in _wording():
            return word
        if word not in other:
            other[word] = _spelt(rng, tokenizer)
        return other[word]

    for entity in made.entities:
        entity.name, entity.short = spell(entity.name), spell(entity.short)
    questions = [_question(question, spell) for question in shown.questions]
    return made, Context([spell(chunk) for chunk in shown.chunks], questions)


def _question(question: Question, spell: Callable[[str], str]) -> Question:
    return replace(
        question,
        text=spell(question.text),
        answer=spell(question.answer),
        about=tuple(map(spell, question.about)),
        subject=spell(question.subject),
        value=spell(question.value),
        facts=tuple(Fact(spell(fact.name), spell(fact.value), fact.chunks) for fact in question.facts),
    )
