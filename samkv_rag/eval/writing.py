"""From a thing with facts to a short article in chunks, with a record of where each fact is stated."""

from __future__ import annotations

import random
import string
from collections.abc import Iterator
from dataclasses import dataclass, field

from samkv_rag.eval import phrases
from samkv_rag.eval.entities import Entity
from samkv_rag.eval.phrases import PERSON

Key = tuple[int, str]
_Sentence = tuple[str, tuple[str, ...]]  # template, and the relations it states


@dataclass
class Document:
    """An article on one to three things: its chunks, and for each (thing, relation) the chunks needed to know it."""

    entities: list[Entity]
    chunks: list[str] = field(default_factory=list)
    stated: dict[Key, set[int]] = field(default_factory=dict)


@dataclass
class _Page:
    """A document being written: the open chunk's sentences, and the chunk that last named the subject."""

    document: Document
    limit: int
    explicit_rate: float
    sentences: list[str] = field(default_factory=list)
    named_in: int = -9

    @property
    def here(self) -> int:
        """Number of the open chunk."""
        return len(self.document.chunks)

    def add(self, sentence: str) -> None:
        """Append a sentence to the open chunk."""
        self.sentences.append(sentence)

    def turn(self) -> None:
        """Close the open chunk if it has anything in it."""
        if self.sentences:
            self.document.chunks.append(" ".join(self.sentences).replace("\n\n ", "\n\n").strip())
            self.sentences = []


def _fields(template: str) -> tuple[str, ...]:
    names = {name for _, name, _, _ in string.Formatter().parse(template) if name}
    return tuple(sorted(name.removeprefix("a_") for name in names - {"s", "p"}))


_BY_KIND = {kind: [(t, _fields(t)) for t in templates] for kind, templates in phrases.STATEMENTS.items()}
_POSSESSIVE = {"female": "Her", "male": "His"}


def write_document(
    rng: random.Random, entities: list[Entity], always_named: bool = False, terse: bool = False
) -> Document:
    """Write most facts of `entities`, thing after thing, cut into chunks of about one random length.

    `always_named`: every sentence names its subject. `terse`: chunks half as long, of facts alone, that rarely name it.
    """
    page = _Page(Document(entities), rng.randint(100, 420), rng.choice([0.05, 0.2, 0.5]))
    chatty, headed = rng.choice([0.0, 0.0, 0.0, 0.15, 0.5]), rng.random() < 0.15
    if always_named:
        page.explicit_rate, chatty, headed = 1.0, 0.0, False
    if terse:
        page.limit, page.explicit_rate, chatty, headed = page.limit // 2, 0.05, 0.0, False
    for entity in entities:
        page.named_in = -9
        if headed:
            page.add(f"{'#' * rng.randint(1, 3)} {rng.choice(phrases.WORDING['prose']['headings'])}\n\n")
        for template, relations in _chat(rng, _plan(rng, entity), chatty):
            if sum(map(len, page.sentences)) > page.limit * rng.uniform(0.7, 1.1):
                page.turn()
            _write(rng, page, entity, template, relations)
    page.turn()
    return page.document


def _write(rng: random.Random, page: _Page, entity: Entity, template: str, relations: tuple[str, ...]) -> None:
    """Add one sentence. A subject is named again in the chunk after next at the latest."""
    if not relations:
        return page.add(template)
    must_name = page.named_in < page.here - 1
    explicit = must_name or rng.random() < page.explicit_rate
    text, named = _say(rng, template, entity, explicit, page.named_in == page.here)
    page.named_in = page.here if named else page.named_in
    page.add(text)
    for relation in relations:
        page.document.stated[id(entity), relation] = {page.here, page.named_in}


def _plan(rng: random.Random, entity: Entity) -> list[_Sentence]:
    """Sentence templates that state each fact at most once, in random order, with filler between."""
    left = {r for r in entity.facts if rng.random() < 0.9} or set(entity.facts)
    plan: list[_Sentence] = []
    templates = _BY_KIND[entity.kind]
    while left:
        fitting = [t for t in templates if left.issuperset(t[1])]
        double = [t for t in fitting if len(t[1]) > 1]
        plan.append(rng.choice(double if double and rng.random() < 0.25 else fitting))
        left -= set(plan[-1][1])
    rng.shuffle(plan)
    plan.sort(key=lambda item: "moved" in item[1])
    if "moved" in entity.facts and rng.random() < 0.5:
        plan.insert(rng.randint(0, len(plan)), plan.pop())
    for _ in range(rng.choice([0, 0, 1, 1, 2])):
        plan.insert(rng.randint(1, len(plan)), (rng.choice(phrases.FILLER[entity.kind]), ()))
    return plan


def _chat(rng: random.Random, plan: list[_Sentence], share: float) -> Iterator[_Sentence]:
    """The plan with random prose before and after its sentences."""
    for sentence in plan:
        while rng.random() < share:
            yield phrases.prose(rng).replace("{", ""), ()
        yield sentence


def _say(rng: random.Random, template: str, entity: Entity, explicit: bool, near: bool) -> tuple[str, bool]:
    """The sentence, and whether it names the subject; `near` says that the chunk has named it already."""
    starts = template.startswith(("{s}", "{p}"))
    if entity.kind == PERSON and not starts:
        explicit = True
    values = dict(entity.facts)
    values["a_role"] = _article(values.get("role", ""))
    if explicit:
        subject = possessor = entity.short if near and rng.random() < 0.5 else entity.name
        possessive = f"{possessor}'s"
    else:
        subject = rng.choice(phrases.PRONOUNS[entity.pronoun])
        possessive = _POSSESSIVE.get(entity.pronoun) or rng.choice(["Its", f"{phrases.PRONOUNS[entity.pronoun][0]}'s"])
        subject = subject if starts else subject[0].lower() + subject[1:]
    text = template.format(s=subject, p=possessive, **values)
    return text[0].upper() + text[1:], entity.name in text or explicit and near


def _article(noun: str) -> str:
    return f"{'an' if noun[:1] in 'aeiou' else 'a'} {noun}"
