"""The things of a fictional world and the relations between them, before any text is written."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from samkv_rag.eval import phrases
from samkv_rag.eval.names import NameMaker
from samkv_rag.eval.phrases import ORG, PERSON, PLACE, PRODUCT


@dataclass(eq=False)
class Entity:
    """One thing: `facts` maps a relation to its value as text, `links` the relations whose value is a thing."""

    kind: str
    name: str
    short: str
    pronoun: str
    facts: dict[str, str] = field(default_factory=dict)
    links: dict[str, Entity] = field(default_factory=dict)

    def link(self, relation: str, other: Entity) -> None:
        """State that `relation` of this thing is `other`."""
        self.facts[relation], self.links[relation] = other.name, other


def _org(rng: random.Random, names: NameMaker, cities: list[str]) -> Entity:
    """A company or institute; it either has a base, or began in one city and moved to another."""
    company, word = rng.random() < 0.65, names.thing()
    kind = rng.choice(phrases.WORDS["company_kinds"] if company else phrases.WORDS["institute_kinds"])
    short = word if company else f"the {kind}"
    org = Entity(ORG, f"{word} {kind}", short, "company" if company else "institute")
    here, there = rng.sample(cities, 2)
    org.facts.update({"base": here} if rng.random() < 0.55 else {"origin": here, "moved": there})
    org.facts |= {"year": _year(rng), "field": rng.choice(phrases.WORDS["fields"]), "staff": str(rng.randint(12, 900))}
    return org


def _person(rng: random.Random, names: NameMaker, cities: list[str]) -> Entity:
    female = rng.random() < 0.5
    name = names.person(female)
    person = Entity(PERSON, name, name.split()[-1], "female" if female else "male")
    person.facts = {"born_in": rng.choice(cities), "born": _year(rng), "home": rng.choice(cities)}
    return _with(person, {"role": rng.choice(phrases.WORDS["roles"]), "hobby": rng.choice(phrases.WORDS["hobbies"])})


def _product(rng: random.Random, names: NameMaker, cities: list[str]) -> Entity:
    word, kind = names.thing(), rng.choice(phrases.WORDS["product_kinds"])
    product = Entity(PRODUCT, f"the {word} {kind}", f"the {kind}", PRODUCT)
    product.facts = {"material": rng.choice(phrases.WORDS["materials"]), "color": rng.choice(phrases.WORDS["colors"])}
    return _with(product, {"price": str(rng.randint(5, 950)), "launched": _year(rng)})


def _place(rng: random.Random, names: NameMaker, cities: list[str]) -> Entity:
    word, kind = names.thing(), rng.choice(phrases.WORDS["place_kinds"])
    place = Entity(PLACE, f"the {word} {kind}", f"the {kind.lower()}", PLACE)
    return _with(place, {"city": rng.choice(cities), "opened": _year(rng), "height": str(rng.randint(8, 240))})


def _with(entity: Entity, facts: dict[str, str]) -> Entity:
    entity.facts |= facts
    return entity


def _year(rng: random.Random) -> str:
    return str(rng.randint(1880, 2024))


_TARGETS = {
    ORG: {"founder": PERSON, "leader": PERSON},
    PERSON: {"employer": ORG, "school": ORG},
    PRODUCT: {"maker": ORG, "designer": PERSON},
    PLACE: {"architect": PERSON, "operator": ORG},
}


def _connect(rng: random.Random, entities: list[Entity]) -> None:
    """Give every thing its links; a thing is never linked twice from the same other thing."""
    by_kind: dict[str, list[Entity]] = {}
    for entity in entities:
        by_kind.setdefault(entity.kind, []).append(entity)
    for entity in entities:
        taken: list[Entity] = []
        for relation, kind in _TARGETS[entity.kind].items():
            choices = [e for e in by_kind.get(kind, []) if e not in taken]
            if choices and rng.random() < 0.85:
                taken.append(rng.choice(choices))
                entity.link(relation, taken[-1])


def make_entities(rng: random.Random, size: int, held_out: bool, alike: bool = False) -> list[Entity]:
    """About `size` (at least 6) things with their facts, in random order; `alike`: all of one kind."""
    names = NameMaker(rng, held_out)
    cities = [names.city() for _ in range(max(6, size))]
    makers = [_org, _org, _person, _person, _product, _place]
    if alike:
        makers = [rng.choice(makers)] * 6
    makers += (
        makers[:1] * (size - 6)
        if alike
        else rng.choices([_org, _person, _product, _place], [3, 4, 2, 1], k=max(0, size - 6))
    )
    entities = [make(rng, names, cities) for make in makers]
    rng.shuffle(entities)
    _connect(rng, entities)
    return entities


def narrow(rng: random.Random, entities: list[Entity], variety: float) -> None:
    """Keep about the share `variety` of all relations, the same for all things, and at least one fact per thing."""
    relations = sorted({relation for entity in entities for relation in entity.facts})
    kept = {relation for relation in relations if rng.random() < variety}
    for entity in entities:
        here = kept & entity.facts.keys() or {rng.choice(sorted(entity.facts))}
        entity.facts = {r: value for r, value in entity.facts.items() if r in here}
        entity.links = {r: other for r, other in entity.links.items() if r in here}
