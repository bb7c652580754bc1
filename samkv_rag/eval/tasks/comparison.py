"""Which of two things is older, more expensive or higher: one number in each of two chunks."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator

from samkv_rag.eval.entities import Entity
from samkv_rag.eval.phrases import ORG, PERSON, PLACE, PRODUCT
from samkv_rag.eval.tasks.drafts import Shown, shown_worlds
from samkv_rag.eval.tasks.filling import ChunkSize, filled, prose
from samkv_rag.eval.tasks.task import Drawn
from samkv_rag.eval.worlds import Fact, Question

_Pick = Callable[[int, int], int]
_ASKED: dict[tuple[str, str], tuple[str, _Pick]] = {
    (ORG, "year"): ("Which was founded earlier, {a} or {b}?", min),
    (ORG, "staff"): ("Which has more employees, {a} or {b}?", max),
    (PERSON, "born"): ("Who was born earlier, {a} or {b}?", min),
    (PRODUCT, "price"): ("Which costs more, {a} or {b}?", max),
    (PRODUCT, "launched"): ("Which was launched earlier, {a} or {b}?", min),
    (PLACE, "opened"): ("Which was opened earlier, {a} or {b}?", min),
    (PLACE, "height"): ("Which is higher, {a} or {b}?", max),
}


def generate(seed: int, chunks: int, size: ChunkSize | None) -> Iterator[Drawn]:
    """One question per world; the facts are in different chunks, and the order of naming is random."""
    rng = random.Random(f"comparison-{seed}-{chunks}")
    filler = prose(rng)
    for shown in shown_worlds(rng, chunks, max(8, chunks)):
        found = list(pairs(shown))
        if found:
            pair = rng.choice(found)
            texts = shown.texts if size is None else [filled(rng, text, size, filler) for text in shown.texts]
            question = ask(rng, shown, *pair)
            yield texts, question.text, (question.answer,)


def pairs(shown: Shown) -> Iterator[tuple[Entity, Entity, str]]:
    """Two things of a kind with different values of one relation, stated in sets of chunks that do not overlap."""
    for first, second in itertools.combinations(shown.made.entities, 2):
        for kind, relation in _ASKED:
            if first.kind == second.kind == kind and first.facts.get(relation) != second.facts.get(relation):
                needs = shown.needs(first, relation), shown.needs(second, relation)
                if needs[0] and needs[1] and not needs[0] & needs[1]:
                    yield first, second, relation


def ask(rng: random.Random, shown: Shown, first: Entity, second: Entity, relation: str) -> Question:
    """Which of the two it is, named in random order."""
    template, pick = _ASKED[first.kind, relation]
    values = {int(entity.facts[relation]): entity.name for entity in (first, second)}
    a, b = rng.sample([first, second], 2)
    facts = tuple(Fact(one.name, one.facts[relation], shown.needs(one, relation) or frozenset()) for one in (a, b))
    needs = facts[0].chunks | facts[1].chunks
    return Question(template.format(a=a.name, b=b.name), values[pick(*values)], "comparison", needs, facts=facts)
