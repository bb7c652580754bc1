"""The score of a reader that knows what is asked but not about whom: `python -m training.blind`.

It picks one of the values that the chunks state for this relation, at random among the things of that kind. A
reader that is no better than this has not learned to tell things apart by their names.
"""

from __future__ import annotations

import json
import random
from collections import defaultdict

from samkv_rag.eval import worlds
from samkv_rag.eval.entities import Entity
from samkv_rag.eval.tasks.worlds import WORLD
from samkv_rag.eval.worlds import Draft

Picked = frozenset[tuple[int, int]]


def _relation(entity: Entity, relation: str) -> tuple[str, str]:
    return entity.kind, "base" if relation == "moved" else relation


def chances(made: Draft, picked: Picked) -> dict[str, list[float]]:
    """How likely the blind answer is right, for each one-fact and two-hop question on the picked chunks, by task."""
    shown: dict[tuple[str, str], list[str]] = defaultdict(list)
    facts = [(e, r, v, made.stated.get((id(e), r), frozenset())) for e in made.entities for r, v in e.facts.items()]
    for entity, relation, value, needs in facts:
        if needs & picked:
            shown[_relation(entity, relation)].append(value)
    found: dict[str, list[float]] = defaultdict(list)
    for entity, relation, value, needs in facts:
        if needs and needs <= picked:
            values = shown[_relation(entity, relation)]
            chance = values.count(value) / len(values)
            found["one_hop" if len(needs) == 1 else "earlier_chunk"].append(chance)
            found["two_hop"] += [chance] * _bridges(made, picked, entity, needs)
    return found


def _bridges(made: Draft, picked: Picked, entity: Entity, needs: Picked) -> int:
    """How many picked facts lead to `entity` from chunks other than `needs`."""
    links = [(id(e), r) for e in made.entities for r, other in e.links.items() if other is entity]
    stated = [made.stated.get(link, frozenset()) for link in links]
    return sum(1 for first in stated if first and first <= picked and not first & needs)


def main(worlds_each: int = 150) -> None:
    """Print one JSON line per number of chunks."""
    for chunks in (4, 8, 16, 32):
        means = {task: round(blind(task, chunks, worlds_each), 3) for task in ("one_hop", "two_hop", "earlier_chunk")}
        print(json.dumps({"chunks": chunks} | means))


def blind(task: str, chunks: int, count: int) -> float:
    """The mean chance that the blind answer to a question of `task` is right, over `count` worlds of that task."""
    rng = random.Random(f"evaluate-{chunks}")
    values = list[float]()
    for _ in range(count):
        made = worlds.draft(rng.randrange(2**40), True, max(8, chunks), **WORLD.get(task, {}))
        values += chances(made, frozenset(worlds.pick(made, rng, chunks)))[task]
    return sum(values) / len(values)


if __name__ == "__main__":
    main()
