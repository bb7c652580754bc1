"""What training may read of real text: nothing that an evaluation set holds, and only answers that are in it."""

import gzip
import json
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.real import SHINGLE, Exclusion, Library, passage, read_paragraphs, read_questions, sentences

SECRET = (
    "The lighthouse of Varnholm was built of grey granite in 1874 by two brothers who had never seen the sea before."
)
OPEN = "The mill of Oldebrook grinds rye and barley from September to May, and the miller lives above the wheel."


def record(question: str, answer: str, text: str, title: str = "Varnholm") -> dict[str, object]:
    return {
        "question": question,
        "answers": [answer],
        "passages": [{"title": title, "text": text}],
        "supporting": [0],
    }


def write(file: Path, records: list[dict[str, object]]) -> Path:
    text = "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in records)
    file.write_bytes(gzip.compress(text.encode()) if file.suffix == ".gz" else text.encode())
    return file


@pytest.fixture
def exclude(tmp_path: Path) -> Exclusion:
    held = write(tmp_path / "held.jsonl", [record("When was the lighthouse built?", "1874", SECRET)])
    return Exclusion.of([held])


def test_evaluation_question_is_excluded_however_it_is_written(exclude: Exclusion) -> None:
    assert not exclude.allows_question("  when was THE lighthouse built ")
    assert exclude.allows_question("When was the lighthouse painted?")


@given(before=st.text(max_size=40), after=st.text(max_size=40), start=st.integers(0, 7))
def test_part_of_an_evaluation_passage_is_excluded_wherever_it_stands(before: str, after: str, start: int) -> None:
    held = SECRET.split()
    exclude = Exclusion(shingles=set())
    exclude.add_text(SECRET)
    part = " ".join(held[start : start + SHINGLE]).upper()
    assert not exclude.allows_text(f"{before} {part}! {after}")


def test_fewer_words_in_common_are_allowed(exclude: Exclusion) -> None:
    assert exclude.allows_text(" ".join(SECRET.split()[: SHINGLE - 1]) + " someone else altogether")
    assert exclude.allows_text(OPEN)


def test_short_evaluation_passage_is_excluded_as_a_whole() -> None:
    exclude = Exclusion()
    exclude.add_text("Rye is a grass.")
    assert not exclude.allows_text("rye is a grass")


def test_questions_with_excluded_words_or_passages_are_left_out(tmp_path: Path, exclude: Exclusion) -> None:
    file = write(
        tmp_path / "train.jsonl.gz",
        [
            record("When was the lighthouse built?", "May", OPEN),
            record("Who built it?", "two brothers", SECRET),
            record("What does the mill grind?", "rye and barley", OPEN, "Oldebrook\u2028Mill"),
            record("What colour is the mill?", "green", OPEN),
        ],
    )
    found = read_questions([file], exclude)
    assert [(item.text, item.answer) for item in found] == [("What does the mill grind?", "rye and barley")]
    assert found[0].passages == (passage("Oldebrook\u2028Mill", OPEN),)


def test_paragraphs_are_titled_and_excluded(tmp_path: Path, exclude: Exclusion) -> None:
    file = tmp_path / "pages.txt.gz"
    file.write_bytes(gzip.compress(f"# Mill\n\n{OPEN}\n\n# Tower\n\n{SECRET}\n\n# Stub\n\nShort.\n".encode()))
    assert read_paragraphs([file], exclude) == [f"Mill\n{OPEN}"]


def test_sentences_to_complete_stand_in_the_passage() -> None:
    text = f"Mill\n{OPEN} It was painted green by the miller's three daughters in the spring of 1911."
    found = list(sentences(random.Random(1), text))
    assert len(found) == 2
    assert all(f"{item.text} {item.answer}" in text for item in found)


def test_library_asks_only_about_what_it_shows(tmp_path: Path) -> None:
    asked = [
        record(f"What is number {i}?", f"thing {i}", f"{OPEN} Number {i} is thing {i}.", f"T{i}") for i in range(9)
    ]
    write(tmp_path / "q.jsonl.gz", asked)
    write(tmp_path / "held.jsonl", [record("Who built it?", "two brothers", SECRET)])
    (tmp_path / "t.txt.gz").write_bytes(gzip.compress(f"# Mill\n\n{OPEN}\n".encode()))
    options = {"folder": tmp_path, "evaluation": ["held.jsonl"], "questions": ["q.jsonl.gz"], "text": ["t.txt.gz"]}
    library = Library.of(options)
    for seed in range(20):
        chunks, items = library.draw(random.Random(seed), 4)
        assert 1 <= len(chunks) <= 4 and items
        assert all(item.answer in item.passages[0] and item.passages[0] in chunks for item in items)


def test_empty_library_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "held.jsonl", [record("Who built it?", "two brothers", SECRET)])
    with pytest.raises(ValueError, match="no text for training"):
        Library.of({"folder": tmp_path, "evaluation": ["held.jsonl"], "questions": [], "text": []})
    with pytest.raises(ValueError, match=r"away\.jsonl is not there; leave out \[real\]"):
        Library.of({"folder": tmp_path, "evaluation": ["held.jsonl"], "questions": ["away.jsonl"], "text": []})
