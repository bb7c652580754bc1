"""All things that have something in common, collected from several chunks."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator

from samkv_rag.eval.entities import Entity
from samkv_rag.eval.phrases import PERSON, PLACE, PRODUCT
from samkv_rag.eval.tasks.drafts import Place, Shown, shown_worlds
from samkv_rag.eval.tasks.filling import ChunkSize, filled, prose
from samkv_rag.eval.tasks.task import Drawn
from samkv_rag.eval.worlds import Fact, Question

LONGEST = 3
_ASKED = {
    (PERSON, "employer"): "Which people work at {v}?",
    (PERSON, "school"): "Which people studied at {v}?",
    (PERSON, "home"): "Which people live in {v}?",
    (PERSON, "born_in"): "Which people were born in {v}?",
    (PERSON, "role"): "Which people work as {v}?",
    (PRODUCT, "maker"): "Which products are made by {v}?",
    (PRODUCT, "material"): "Which products are made of {v}?",
    (PRODUCT, "designer"): "Which products did {v} design?",
    (PLACE, "city"): "Which places are in {v}?",
    (PLACE, "architect"): "Which places did {v} design?",
}


def generate(seed: int, chunks: int, size: ChunkSize | None) -> Iterator[Drawn]:
    """One question per world, with two or three members in two chunks or more; any order of the members counts."""
    rng = random.Random(f"listing-{seed}-{chunks}")
    filler = prose(rng)
    for shown in shown_worlds(rng, chunks, max(12, chunks * 3 // 2)):
        found = list(groups(shown))
        if found:
            question = rng.choice(found)
            texts = shown.texts if size is None else [filled(rng, text, size, filler) for text in shown.texts]
            yield texts, question.text, _orders([fact.name for fact in question.facts])


def groups(shown: Shown) -> Iterator[Question]:
    """Every list that can be asked for, in the order of the statements, complete as far as the shown chunks say."""
    for kind, relation in _ASKED:
        by_value: dict[str, list[Entity]] = {}
        for entity in shown.made.entities:
            if entity.kind == kind and relation in entity.facts and shown.hinted(entity, relation):
                by_value.setdefault(entity.facts[relation], []).append(entity)
        for value, members in by_value.items():
            facts = [Fact(one.name, value, shown.needs(one, relation) or frozenset()) for one in members]
            ends = [max(fact.chunks) for fact in facts if fact.chunks]
            if 2 <= len(members) <= LONGEST and len(ends) == len(members) and len(set(ends)) > 1:
                yield _ask(kind, relation, sorted(facts, key=lambda fact: max(fact.chunks)))


def _ask(kind: str, relation: str, facts: list[Fact]) -> Question:
    value, needs = facts[0].value, frozenset[Place]().union(*(fact.chunks for fact in facts))
    answer = ", ".join(fact.name for fact in facts)
    return Question(_ASKED[kind, relation].format(v=value), answer, "listing", needs, value=value, facts=tuple(facts))


def _orders(names: list[str]) -> tuple[str, ...]:
    """The list in every order, the order of the text first; lists of two also with "and"."""
    orders = list(itertools.permutations(names))
    joined = [", ".join(order) for order in orders]
    return (*joined, *(" and ".join(order) for order in orders if len(order) == 2))
