"""Generated worlds are deterministic and split by name, and every answer is where the question says."""

from __future__ import annotations

import random
import re

from samkv_rag.eval import phrases, worlds
from samkv_rag.eval.names import is_held_out, made_word


def _text(seed: int, held_out: bool) -> str:
    made = worlds.world(seed, held_out)
    return " ".join(chunk for document in made.documents for chunk in document)


def test_same_seed_same_world() -> None:
    assert worlds.world(5) == worlds.world(5)
    assert worlds.world(5) != worlds.world(6)


def test_held_out_names_never_stand_in_training_worlds() -> None:
    rng = random.Random(0)
    made_up = [made_word(rng, "thing") for _ in range(20_000)]
    reserved = {word for word in made_up if is_held_out(word)} - set(phrases.WORDS["place_kinds"])
    assert 0.05 * 20_000 < len(reserved) < 0.15 * 20_000
    for seed in range(60):
        made = worlds.draft(seed)
        names = {word for entity in made.entities for word in entity.name.split() if word[0].isupper()}
        assert not reserved & set(re.findall(r"\w+", _text(seed, False)))
        shown = worlds.draft(seed, held_out=True)
        firsts = {entity.name.removeprefix("the ").split()[0] for entity in shown.entities}
        assert all(map(is_held_out, firsts)) and not names & firsts


def test_answers_stand_in_the_needed_chunks() -> None:
    for seed in range(20):
        made = worlds.world(seed)
        for question in made.questions:
            needed = " ".join(made.documents[d][c] for d, c in question.needs)
            assert question.task == "unanswerable" or question.answer.lower() in needed.lower()


def test_every_task_occurs_in_contexts_of_every_size() -> None:
    for chunks in (2, 4, 16):
        found = set[str]()
        for seed in range(40):
            shown = worlds.context(worlds.draft(seed, True, max(8, chunks)), random.Random(seed), chunks)
            assert len(shown.chunks) <= chunks and all(c == c.strip() for c in shown.chunks)
            found |= {q.task for q in shown.questions}
        assert found >= set(worlds.TASKS)


def test_examples_have_exactly_the_chunks_asked_for() -> None:
    stream = worlds.examples(3, 6, "two_hop")
    for chunks, question, answer, task in (next(stream) for _ in range(5)):
        assert len(chunks) == 6 and question.endswith("?") and answer and task == "two_hop"
