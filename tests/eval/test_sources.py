"""Question sets of every form, from files written here; and what is said about rows that cannot be used."""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from samkv_rag.errors import SamKVError
from samkv_rag.eval.forms import pieces
from samkv_rag.eval.items import Item
from samkv_rag.eval.sources import Drawing, Source, sources_of
from samkv_rag.eval.tasks import TASKS, ChunkSize

OURS = {
    "id": "a", "question": "Where is the mill?", "answers": ["Orrin", "in Orrin"], "supporting": [1],
    "passages": [{"title": "Inn", "text": "The inn is old."}, {"title": "Mill", "text": "The mill is in Orrin."}],
}  # fmt: skip
LONGBENCH = {
    "input": "Where is the mill?", "answers": ["Orrin"], "all_classes": None,
    "context": "Passage 1:\nInn\nThe inn is old.\n\nPassage 2:\nMill\nThe mill is in Orrin.",
}  # fmt: skip
HOTPOT = {
    "question": "Where is the mill?", "answer": "Orrin", "supporting_facts": {"title": ["Mill"], "sent_id": [0]},
    "context": {"title": ["Inn", "Mill"], "sentences": [["The inn is old."], ["The mill", " is in Orrin."]]},
}  # fmt: skip
SQUAD = {"question": "Where is the mill?", "context": "The mill is in Orrin.", "answers": {"text": ["Orrin", "Orrin"]}}

TWO = ("Inn\nThe inn is old.", "Mill\nThe mill is in Orrin.")
FORMS: dict[str, tuple[dict[str, Any], tuple[str, ...], tuple[str, ...]]] = {
    "ours": (OURS, TWO, ("Orrin", "in Orrin")),
    "longbench": (LONGBENCH, TWO, ("Orrin",)),
    "hotpot": (HOTPOT, TWO, ("Orrin",)),
    "squad": (SQUAD, ("The mill is in Orrin.",), ("Orrin",)),
}


def written(folder: Path, rows: Sequence[Any], name: str = "set.jsonl") -> Path:
    path, text = folder / name, "".join(json.dumps(row) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if name.lower().endswith(".gz") else text.encode())
    return path


def read(path: Path, limit: int = 9, chunks: int | None = None, size: ChunkSize | None = None) -> list[Item]:
    return list(Source.of(str(path)).items(Drawing(limit, chunks=chunks, size=size)))


ALIKE: dict[str, dict[str, Any]] = {
    "answers-as-in-squad": OURS | {"answers": {"text": ["Orrin", "in Orrin"], "answer_start": [15, 12]}},
    "passages-as-texts": OURS | {"passages": list(TWO)},
    "nothing-supporting": OURS | {"supporting": None},
    "titles-that-are-null": OURS | {"passages": [{"title": None, "text": text} for text in TWO]},
}


@pytest.mark.parametrize("row", ALIKE.values(), ids=ALIKE)
def test_what_means_the_same_is_read_alike(tmp_path: Path, row: dict[str, Any]) -> None:
    assert read(written(tmp_path, [row])) == read(written(tmp_path, [OURS]))


@pytest.mark.parametrize(
    ("sentences", "text"),
    [
        (["One.", "Two. ", "Three."], "One. Two. Three."),  # 2Wiki
        (["One.", " Two.", " Three."], "One. Two. Three."),  # HotpotQA
        ("One whole text.", "One whole text."),
        (["第一句。", "第二句。"], "第一句。第二句。"),
    ],
)
def test_sentences_are_put_together_with_the_blank_that_is_due(tmp_path: Path, sentences: Any, text: str) -> None:
    pairs = HOTPOT | {"context": [["Inn", sentences]], "supporting_facts": [["Inn", 0]]}
    columns = HOTPOT | {"context": {"title": ["Inn"], "sentences": [sentences]}}
    assert [item.chunks for item in read(written(tmp_path, [pairs, columns]))] == [(f"Inn\n{text}",)] * 2


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["set.jsonl", "set.jsonl.gz", "set.JSONL.GZ"])
def test_every_form_gives_the_question_its_passages_and_its_answers(tmp_path: Path, form: str, name: str) -> None:
    row, passages, answers = FORMS[form]
    (item,) = read(written(tmp_path, [row], name))
    assert item == Item("set-0", "set", "Where is the mill?", answers, passages)


def test_a_json_file_is_a_list_of_rows(tmp_path: Path) -> None:
    path = tmp_path / "set.json"
    path.write_text(json.dumps([OURS, SQUAD]))
    assert [len(item.chunks) for item in read(path)] == [2, 1]


def test_fewer_passages_keep_the_supporting_ones_and_the_order(tmp_path: Path) -> None:
    passages = [{"text": letter} for letter in "abcde"]
    path = written(tmp_path, [OURS | {"passages": passages, "supporting": [3]}])
    assert read(path, chunks=3)[0].chunks == ("a", "b", "d")
    assert read(path, chunks=9)[0].chunks == tuple("abcde")


def test_a_limit_ends_the_set(tmp_path: Path) -> None:
    assert [item.id for item in read(written(tmp_path, [OURS] * 5), limit=2)] == ["set-0", "set-1"]


def test_long_passages_are_cut_between_sentences(tmp_path: Path) -> None:
    size = ChunkSize(6, lambda text: len(text.split()))
    text = "One two three four. Five six. Seven eight nine ten eleven twelve thirteen. Last one"
    assert pieces(text, size) == [
        "One two three four. Five six.", "Seven eight nine ten eleven twelve thirteen.", "Last one"
    ]  # fmt: skip
    path = written(tmp_path, [SQUAD | {"context": text}])
    assert " ".join(read(path, size=size)[0].chunks) == text


REFUSED: dict[str, tuple[str, str]] = {
    "no-json": ("{not json", "line 1 is not JSON"),
    "foreign": ('{"prompt": "x"}', "has the keys prompt"),
    "no-answer": (json.dumps(OURS | {"answers": []}), "no answer"),
    "no-passage": (json.dumps(OURS | {"passages": []}), "no passage"),
    "no-text": (json.dumps(OURS | {"passages": [{"title": "x"}]}), "not of the form"),
    "no-title": (json.dumps(OURS | {"passages": [{"title": 5, "text": "x"}]}), "must be texts"),
    "null-text": (json.dumps(OURS | {"passages": [{"title": "x", "text": None}]}), "must be texts"),
    "list-text": (json.dumps(OURS | {"passages": [{"title": "x", "text": ["a", "b"]}]}), "must be texts"),
    "null-answer": (json.dumps(OURS | {"answers": None}), "answers must be texts"),
    "punctuation": (json.dumps(OURS | {"answers": ["...", "?"]}), "punctuation alone is none"),
    "one-text": (json.dumps(OURS | {"passages": "abc"}), "passages must be a list"),
    "titles": (json.dumps(OURS | {"supporting": ["Mill"]}), "supporting must be indices"),
    "flags": (json.dumps(OURS | {"supporting": [False, True]}), "supporting must be indices"),
    "long-number": ("1" * 5000, "line 1 is not JSON"),
    "deep": ("[" * 100_000, "line 1 is not JSON"),
    "classes": (json.dumps(LONGBENCH | {"all_classes": ["a"]}), "classification"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_rows_that_cannot_be_used_are_named_with_their_place(tmp_path: Path, case: str) -> None:
    line, sentence = REFUSED[case]
    (tmp_path / "set.jsonl").write_text(line + "\n")
    with pytest.raises(SamKVError, match=sentence):
        read(tmp_path / "set.jsonl")


SQUAD_FILES: list[Any] = [
    [{"context": "c", "qas": [{"question": "q"}]}],
    [{"qas": [{"question": "q", "answers": []}]}],
    [{"context": "c", "qas": [{"question": "q", "answers": ["Oslo"]}]}],
    {"context": "c"},
]


@pytest.mark.parametrize("paragraphs", SQUAD_FILES)
def test_a_squad_file_that_lacks_something_is_told(tmp_path: Path, paragraphs: Any) -> None:
    path = tmp_path / "squad.json"
    path.write_text(json.dumps({"data": [{"paragraphs": paragraphs}]}))
    with pytest.raises(SamKVError, match="is no whole SQuAD file"):
        read(path)


def test_what_is_called_gzip_and_is_none_is_told(tmp_path: Path) -> None:
    path = tmp_path / "set.jsonl.gz"
    path.write_bytes(b"hi")
    with pytest.raises(SamKVError, match="set.jsonl.gz cannot be read"):
        read(path)


def test_a_file_is_checked_to_its_end_whatever_the_limit(tmp_path: Path) -> None:
    source = Source.of(str(written(tmp_path, [OURS, OURS | {"answers": []}])))
    with pytest.raises(SamKVError, match="question 2 has no question, no passage or no answer"):
        source.check(Drawing(1))


def test_what_is_not_marked_needs_no_answers(tmp_path: Path) -> None:
    bare = [{name: value for name, value in row.items() if name != "answers"} for row in (OURS, LONGBENCH, SQUAD)]
    nobody_knows = [OURS | {"answers": None}, {name: value for name, value in HOTPOT.items() if name != "answer"}]
    rows = [OURS, HOTPOT, *bare, *nobody_knows, HOTPOT | {"answer": None}]
    source, drawing = Source.of(str(written(tmp_path, rows))), Drawing(9, marked=False)
    with pytest.raises(SamKVError, match="question 3 has the keys"):
        source.check(Drawing(9))
    source.check(drawing)
    items = list(source.items(drawing))
    assert [item.answers for item in items] == [("Orrin", "in Orrin"), ("Orrin",), (), (), (), (), ("",), ("",)]
    assert [item.chunks for item in items] == [TWO, TWO, TWO, TWO, ("The mill is in Orrin.",), TWO, TWO, TWO]


def test_a_hub_that_does_not_answer_is_found_before_an_evaluation_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SamKVError, match="pip install"):
        Source.of("hub:someone/set").check(Drawing(5))


@pytest.mark.parametrize("task", TASKS)
def test_a_task_is_made_of_the_fewest_chunks_it_can_be_and_refuses_fewer(task: str) -> None:
    least, source = TASKS[task].least_chunks, Source.of(task)
    drawing = Drawing(2, chunks=least)
    source.check(drawing)
    assert [len(item.chunks) for item in source.items(drawing)] == [least] * 2
    if least > 1:
        with pytest.raises(SamKVError, match=f"{task} needs at least --chunks {least}, not {least - 1}"):
            source.check(Drawing(2, chunks=least - 1))


def test_several_sources_may_be_named_with_commas() -> None:
    assert [source.name for source in sources_of(["one_hop, two_hop", "needle", ""])] == [
        "one_hop",
        "two_hop",
        "needle",
    ]


def test_an_unknown_word_is_answered_with_the_tasks() -> None:
    with pytest.raises(SamKVError, match="neither a file nor a task.*" + ", ".join(TASKS)):
        Source.of("no-such-thing")


def test_the_hub_without_its_package_is_one_sentence_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SamKVError, match=r"pip install 'samkv-rag\[eval\]'"):
        list(Source.of("hub:someone/set").items(Drawing(1)))


def test_the_hub_gives_rows_of_the_same_forms(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def load_dataset(*args: Any, **kwargs: Any) -> list[Any]:
        asked.append((args, kwargs))
        return [HOTPOT]

    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    (item,) = Source.of("hub:someone/set:distractor:train").items(Drawing(1))
    assert item.chunks == TWO and asked == [(("someone/set", "distractor"), {"split": "train"})]


def test_a_hub_that_does_not_answer_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*args: Any, **kwargs: Any) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    with pytest.raises(SamKVError, match="could not be loaded from the hub.*no route.*pass its file"):
        list(Source.of("hub:someone/set").items(Drawing(1)))


def test_the_files_that_authors_published_are_read(tmp_path: Path) -> None:
    asked = {"question": "Who?", "answers": [{"text": "Ada", "answer_start": 0}]}
    squad = {"version": "2.0", "data": [{"paragraphs": [{"context": "Ada did.", "qas": [
        asked, {"question": "Why?", "answers": [], "is_impossible": True}]}]}]}  # fmt: skip
    hotpot = [{
        "question": "Who?", "answer": "Ada", "context": [["One", ["Ada did. ", "So."]], ["Two", ["Not Bo."]]],
        "supporting_facts": [["Two", 0]],
    }]  # fmt: skip
    for name, rows in (("squad", squad), ("hotpot", hotpot)):
        (tmp_path / f"{name}.json").write_text(json.dumps(rows), encoding="utf-8-sig")
    (item,) = read(tmp_path / "squad.json")
    assert (item.question, item.answers, item.chunks) == ("Who?", ("Ada",), ("Ada did.",))
    (item,) = read(tmp_path / "hotpot.json")
    assert item.chunks == ("One\nAda did. So.", "Two\nNot Bo.")
    assert read(tmp_path / "hotpot.json", chunks=1)[0].chunks == ("Two\nNot Bo.",)


def test_an_answer_may_be_one_text_and_must_be_text(tmp_path: Path) -> None:
    assert read(written(tmp_path, [OURS | {"answers": "Orrin"}]))[0].answers == ("Orrin",)
    for answers in ([None], [float("nan")], [["x"]]):
        with pytest.raises(SamKVError, match="the answers must be texts"):
            read(written(tmp_path, [OURS | {"answers": answers}]))


def test_a_file_that_is_not_whole_or_not_text_is_named(tmp_path: Path) -> None:
    whole = gzip.compress((json.dumps(OURS) + "\n").encode())
    for name, data in (("cut.jsonl.gz", whole[:-9]), ("latin.jsonl", b'{"question": "caf\xe9"}')):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(SamKVError, match=f"{name} cannot be read"):
            read(tmp_path / name)
    for number, row in enumerate(("[1, 2]", '"x"', "3")):
        (tmp_path / f"{number}.jsonl").write_text(row)
        with pytest.raises(SamKVError, match="is not a JSON object"):
            read(tmp_path / f"{number}.jsonl")
    (tmp_path / "data.json").write_text('{"data": [1]}')
    with pytest.raises(SamKVError, match="neither a list of rows nor a SQuAD file"):
        read(tmp_path / "data.json")


@pytest.mark.parametrize(("name", "content"), [("none.jsonl", "\n"), ("none.json", "[]")])
def test_a_file_without_questions_is_refused(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(SamKVError, match="has no questions"):
        Source.of(str(tmp_path / name)).check(Drawing(10, 0))
