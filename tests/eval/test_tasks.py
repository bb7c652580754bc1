"""Generated tasks: the same for the same seed, of the size asked for, and answered by what the chunks say."""

from __future__ import annotations

import hashlib
import itertools
import re

import pytest

from samkv_rag.eval import worlds
from samkv_rag.eval.items import Item
from samkv_rag.eval.metrics import exact_match
from samkv_rag.eval.names import is_held_out
from samkv_rag.eval.tasks import TASKS, ChunkSize
from samkv_rag.eval.tasks.filling import names


def words(text: str) -> int:
    return len(text.split())


def drawn(name: str, chunks: int = 6, tokens: int | None = None, count: int = 4, seed: int = 5) -> list[Item]:
    size = ChunkSize(tokens, words) if tokens else None
    return list(itertools.islice(TASKS[name].items(seed, chunks, size), count))


@pytest.mark.parametrize("name", TASKS)
def test_the_same_arguments_give_the_same_items_and_other_seeds_others(name: str) -> None:
    assert drawn(name) == drawn(name)
    assert {item.id for item in drawn(name)}.isdisjoint(item.id for item in drawn(name, seed=6))
    assert [item.question for item in drawn(name)] != [item.question for item in drawn(name, seed=6)]


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize(("chunks", "tokens"), [(4, None), (4, 100), (16, 40)])
def test_every_item_has_the_chunks_asked_for(name: str, chunks: int, tokens: int | None) -> None:
    for item in drawn(name, chunks, tokens, count=2):
        assert len(item.chunks) == chunks and all(chunk == chunk.strip() for chunk in item.chunks)
        assert item.question.endswith("?") and all(item.answers)


@pytest.mark.parametrize("tokens", [200, 1024])
@pytest.mark.parametrize("name", ["earlier_chunk", "needle"])
def test_chunks_are_filled_up_to_a_sentence_and_keep_their_own_text_in_one_piece(name: str, tokens: int) -> None:
    for short, long in zip(drawn(name, 4, count=1), drawn(name, 4, tokens, count=1), strict=True):
        assert all(tokens - 40 < words(chunk) <= tokens for chunk in long.chunks)
        if name == "earlier_chunk":
            assert all(own in chunk for own, chunk in zip(short.chunks, long.chunks, strict=True))
            assert (short.question, short.answers) == (long.question, long.answers)


def test_sixty_four_chunks_are_possible() -> None:
    assert [len(item.chunks) for item in drawn("one_hop", 64, count=1)] == [64]


@pytest.mark.parametrize("name", [name for name in TASKS if name != "unanswerable"])
def test_what_is_asked_for_stands_in_the_chunks(name: str) -> None:
    for item in drawn(name, 8, count=8):
        text = " ".join(item.chunks).lower()
        parts = item.answers[0].split(", ") if name == "listing" else item.answers[:1]
        assert all(part.lower() in text for part in parts)


def test_questions_name_what_training_never_names() -> None:
    for name in ("comparison", "needle"):
        for item in drawn(name, 8, count=6):
            assert any(map(is_held_out, names(item.question))), item.question


def test_comparisons_name_both_and_the_gold_is_one_of_them() -> None:
    for item in drawn("comparison", 8, count=20):
        a, b = re.fullmatch(r".*, (.+) or (.+)\?", item.question).groups()  # type: ignore[union-attr]
        assert a != b and item.answers[0] in (a, b)
        holding = [{i for i, chunk in enumerate(item.chunks) if name.removeprefix("the ") in chunk} for name in (a, b)]
        assert holding[0] and holding[1]


READ_BACK = {
    "Which was founded earlier": (r"{}[^.]* (?:founded|established|started|since|to|doors)(?: in)? (\d{{4}})", min),
    "Which has more employees": (r"{}[^.]* (\d+) (?:people|employees)", max),
    "Who was born earlier": (r"{}[^.]* born in (?:\w+ in |the year )?(\d{{4}})", min),
    "Which costs more": (r"{}[^.]* (\d+) euros", max),
    "Which was launched earlier": (r"{}[^.]* (?:in|since) (\d{{4}})", min),
    "Which was opened earlier": (r"{}[^.]* (?:in|since) (\d{{4}})", min),
    "Which is higher": (r"{}[^.]* (\d+) metres", max),
}


def test_the_gold_of_a_comparison_follows_from_the_two_numbers() -> None:
    """Read back from the text, where it names both subjects beside their numbers."""
    checked = 0
    for item in drawn("comparison", 8, count=40):
        asked, a, b = re.fullmatch(r"(.+), (.+) or (.+)\?", item.question).groups()  # type: ignore[union-attr]
        pattern, best = READ_BACK[asked]
        numbers = {n: re.findall(pattern.format(re.escape(n)), " ".join(item.chunks), re.IGNORECASE) for n in (a, b)}
        if all(numbers.values()):
            checked += 1
            assert item.answers[0] == best((a, b), key=lambda name: int(numbers[name][0]))
    assert checked >= 3


def test_lists_count_in_any_order_and_hold_two_or_three() -> None:
    for item in drawn("listing", 10, count=12):
        members = item.answers[0].split(", ")
        assert 2 <= len(members) <= 3
        backwards = ", ".join(reversed(members))
        assert any(exact_match(backwards, gold) for gold in item.answers)
        assert not any(exact_match(members[0], gold) for gold in item.answers)


def test_the_filling_of_a_needle_never_names_its_subject() -> None:
    own, filled = drawn("needle", 4, None, count=1)[0], drawn("needle", 4, 300, count=1)[0]
    subject = names(own.question)
    assert subject and own.question == filled.question
    for short, long in zip(own.chunks, filled.chunks, strict=True):
        assert short in long and all(short.count(word) == long.count(word) for word in subject)


# The reader's training draws from these modules: the same seed must give the same text, for good.
STREAM = "55460f65ebb7f7e1bfa800aa11ca7165296f3487808840cc15235b4d3cbe887d"


def test_the_worlds_that_training_reads_have_not_changed() -> None:
    digest = hashlib.sha256()
    for made in (worlds.world(seed, held_out) for seed in range(5) for held_out in (False, True)):
        digest.update(repr((made.documents, [(q.text, q.answer, q.task) for q in made.questions])).encode())
    for task in worlds.TASKS:
        for example in itertools.islice(worlds.examples(3, 6, task), 3):
            digest.update(repr(example).encode())
    assert digest.hexdigest() == STREAM
