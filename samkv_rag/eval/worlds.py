"""Fictional worlds as short documents, with questions whose answers are in them.

A world is a set of invented companies, people, products and places. Each gets a short article, cut into
chunks of whole sentences; a sentence names its subject or says "The company", "She". `context` picks chunks
in document order and asks what can (or cannot) be answered from exactly these chunks:

one_hop        one sentence states it, and its chunk names the subject
earlier_chunk  one sentence states it, but the subject is named only in an earlier chunk of the document
two_hop        two facts, in different chunks
unanswerable   the chunks do not say; the answer is `NOT_FOUND`

Everything is a pure function of the seed. See `names` for the words that training never sees.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from samkv_rag.eval import phrases
from samkv_rag.eval.entities import Entity, make_entities, narrow
from samkv_rag.eval.writing import Document, write_document

NOT_FOUND = "not in the passages"
TASKS = ("one_hop", "two_hop", "earlier_chunk", "unanswerable")
_PLACES = frozenset({"base", "moved", "origin"})


class Fact(NamedTuple):
    """One fact that a question rests on: the thing, the value, and the (document, chunk) positions that state it."""

    name: str
    value: str
    chunks: frozenset[tuple[int, int]]


@dataclass(frozen=True)
class Question:
    """A question, its gold answer, its task, and the chunks it rests on as (document, chunk) positions.

    `facts` are those that are compared or listed, in the order of the question or of the answer. `about` is (kind of
    thing, name, relation) where the question asks for a single fact, else empty; `subject` the name of the thing whose
    fact is the answer, empty where the answer is that name; `value` the value that such a question starts from.
    """

    text: str
    answer: str
    task: str
    needs: frozenset[tuple[int, int]] = frozenset()
    about: tuple[str, ...] = ()
    subject: str = ""
    value: str = ""
    facts: tuple[Fact, ...] = ()


@dataclass(frozen=True)
class World:
    """`documents` are lists of chunk texts in order; `questions` can be answered from all of them together."""

    documents: list[list[str]]
    questions: list[Question]


@dataclass(frozen=True)
class Context:
    """Chunk texts in document order and questions about exactly these chunks."""

    chunks: list[str]
    questions: list[Question]


@dataclass(frozen=True)
class Draft:
    """A world with its facts at hand: where each (thing, relation) is stated and which chunks that needs."""

    entities: list[Entity]
    documents: list[Document]
    stated: dict[tuple[int, str], frozenset[tuple[int, int]]]


def draft(
    seed: int, held_out: bool = False, size: int = 14, variety: float = 1.0, alike: bool = False, named: bool = True
) -> Draft:
    """Write a world of about `size` things; `held_out` worlds use only names that training never sees.

    With `variety` below 1 only that share of relations occurs: short articles that say the same of many things.
    In `alike` worlds all things are of one kind, and every sentence names its subject; unless `named`, few do.
    """
    rng = random.Random(f"{seed}-{held_out}-{size}")
    entities = make_entities(rng, size, held_out, alike)
    if variety < 1:
        narrow(random.Random(seed), entities, variety)
    documents, start = list[Document](), 0
    while start < len(entities):
        count = rng.choice([1, 1, 2, 2, 3])
        documents.append(write_document(rng, entities[start : start + count], alike and named, alike and not named))
        start += count
    stated = {
        key: frozenset((number, chunk) for chunk in chunks)
        for number, doc in enumerate(documents)
        for key, chunks in doc.stated.items()
    }
    return Draft(entities, documents, stated)


def world(seed: int, held_out: bool = False, size: int = 14) -> World:
    """The documents of world `seed` and all their answerable questions, each with one phrasing."""
    made = draft(seed, held_out, size)
    everything = frozenset((d, c) for d, doc in enumerate(made.documents) for c in range(len(doc.chunks)))
    asked = questions(random.Random(seed), made, everything)
    return World([doc.chunks for doc in made.documents], [q for q in asked if q.task in TASKS])


def context(made: Draft, rng: random.Random, chunks: int) -> Context:
    """At most `chunks` chunks of the world in document order, and every question one can ask about them."""
    return show(made, rng, pick(made, rng, chunks))


def show(made: Draft, rng: random.Random, picked: list[tuple[int, int]]) -> Context:
    """The (document, chunk) places `picked` as a context: texts in document order, and what can be asked."""
    texts = [made.documents[d].chunks[c] for d, c in sorted(picked)]
    return Context(texts, questions(rng, made, frozenset(picked)))


def examples(
    seed: int, chunks: int, task: str, held_out: bool = True, size: int | None = None, **world: Any
) -> Iterator[tuple[list[str], str, str, str]]:
    """Endless (chunks, question, answer, task) with exactly `chunks` chunks, one question per world.

    `world`: variety, alike and named, as in `draft`.
    """
    rng = random.Random(f"examples-{seed}-{chunks}-{task}")
    while True:
        made = draft(rng.randrange(2**40), held_out, size or max(8, chunks), **world)
        found = context(made, rng, chunks)
        fitting = [q for q in found.questions if q.task == task]
        if fitting and len(found.chunks) == chunks:
            question = rng.choice(fitting)
            yield found.chunks, question.text, question.answer, task


def pick(made: Draft, rng: random.Random, chunks: int) -> list[tuple[int, int]]:
    """Runs of chunks, of linked documents first, so that small contexts also hold two-hop questions."""
    where = {id(e): number for number, doc in enumerate(made.documents) for e in doc.entities}
    picked: list[tuple[int, int]] = []
    queue, seen = [rng.randrange(len(made.documents))], set[int]()
    while len(picked) < chunks and len(seen) < len(made.documents):
        number = queue.pop(0) if queue else rng.randrange(len(made.documents))
        if number in seen:
            continue
        seen.add(number)
        document, room = made.documents[number], chunks - len(picked)
        length = min(room, len(document.chunks) if rng.random() < 0.7 else rng.randint(1, len(document.chunks)))
        start = rng.randint(0, len(document.chunks) - length) if rng.random() < 0.4 else 0
        picked += [(number, c) for c in range(start, start + length)]
        linked = [where[id(e)] for entity in document.entities for e in entity.links.values()]
        queue += rng.sample(linked, len(linked)) if rng.random() < 0.6 else []
    return picked


def questions(rng: random.Random, made: Draft, picked: frozenset[tuple[int, int]]) -> list[Question]:
    """Every question about the picked chunks, phrased at random, in random order."""
    asked = [q for e in made.entities for q in _one_hop(rng, made, e, picked)]
    asked += [q for e in made.entities for q in _two_hop(rng, made, e, picked)]
    asked += _reverse(rng, made, picked)
    rng.shuffle(asked)
    return asked


def _ask(rng: random.Random, relation: str, subject: str) -> str:
    pool = phrases.QUESTIONS[relation]
    if relation == "moved" and rng.random() < 0.6:
        pool = phrases.QUESTIONS["base"]
    return rng.choice(pool).format(s=subject)


def _silent(made: Draft, entity: Entity, relation: str, picked: frozenset[tuple[int, int]]) -> bool:
    """True if no picked chunk says anything that could be taken for this fact."""
    stated = [made.stated.get((id(entity), r), frozenset()) for r in (_PLACES if relation in _PLACES else {relation})]
    return not any(chunks & picked for chunks in stated)


def _one_hop(rng: random.Random, made: Draft, entity: Entity, picked: frozenset[tuple[int, int]]) -> Iterator[Question]:
    relations = list(entity.facts)
    for relation in relations:
        needs = made.stated.get((id(entity), relation))
        text = _ask(rng, relation, entity.name)
        if needs and needs <= picked:
            task, about = "one_hop" if len(needs) == 1 else "earlier_chunk", (entity.kind, entity.name, relation)
            yield Question(text, entity.facts[relation], task, needs, about, entity.name)
        elif _silent(made, entity, relation, picked):
            yield Question(text, NOT_FOUND, "unanswerable")


def _two_hop(rng: random.Random, made: Draft, entity: Entity, picked: frozenset[tuple[int, int]]) -> Iterator[Question]:
    for relation, other in entity.links.items():
        first = made.stated.get((id(entity), relation))
        if not first or not first <= picked or relation not in phrases.BRIDGES:
            continue
        bridge = rng.choice(phrases.BRIDGES[relation]).format(s=entity.name)
        for second, value in other.facts.items():
            needs = made.stated.get((id(other), second))
            text = _ask(rng, second, bridge)
            if needs and needs <= picked:
                task = "two_hop" if not first & needs else "two_hop_near"
                yield Question(text, value, task, first | needs, subject=other.name)
            elif rng.random() < 0.3 and _silent(made, other, second, picked):
                yield Question(text, NOT_FOUND, "unanswerable")


def _reverse(rng: random.Random, made: Draft, picked: frozenset[tuple[int, int]]) -> Iterator[Question]:
    """Questions from the value back to the subject, where only one thing of its kind in the world has that value."""
    subjects: dict[tuple[str, str, str], list[Entity]] = {}
    for entity in made.entities:
        for relation, value in entity.facts.items():
            key = (entity.kind, "base" if relation == "moved" else relation, value)
            subjects.setdefault(key, []).append(entity)
    for (_, relation, value), (entity, *others) in subjects.items():
        relation = relation if relation in entity.facts else "moved"
        needs = made.stated.get((id(entity), relation))
        if not others and needs and needs <= picked and rng.random() < (0.8 if relation in entity.links else 0.4):
            text = rng.choice(phrases.REVERSE[relation]).format(s=value)
            yield Question(text, entity.name, "one_hop" if len(needs) == 1 else "earlier_chunk", needs, value=value)
