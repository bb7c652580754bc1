"""Records survive kills: whole lines are kept for good, a torn one is dropped, other settings are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from samkv_rag.errors import SamKVError
from samkv_rag.eval.records import RECORDS, Records, read_records
from samkv_rag.eval.runfile import RUN, open_run, read_run

LINES = [
    {"id": "é", "task": "t", "setting": "full", "report": {"prompt_digest": "1"}},
    {"id": "a", "task": "t", "setting": "samkv@0.15", "answers": ["Oslo \ud83d"], "report": {"prompt_digest": "2"}},
    {"id": "b", "task": "t", "setting": "skipped", "why": "too long"},
]


def test_what_was_appended_is_known_to_the_next_process(tmp_path: Path) -> None:
    Records(tmp_path).append(LINES[:2])
    Records(tmp_path).append(LINES[2:])
    found = Records(tmp_path)
    assert found.done == {("é", "full"), ("a", "samkv@0.15"), ("b", "skipped")}
    assert found.digests == {"é": "1", "a": "2"}
    assert read_records(tmp_path / RECORDS) == LINES


def whole(folder: Path) -> bytes:
    Records(folder).append(LINES)
    return (folder / RECORDS).read_bytes()


@given(share=st.floats(0, 1))
def test_a_file_cut_anywhere_keeps_its_whole_lines_and_goes_on(
    tmp_path_factory: pytest.TempPathFactory, share: float
) -> None:
    folder = tmp_path_factory.mktemp("cut")
    data = whole(folder)
    cut = data[: round(share * len(data))]
    (folder / RECORDS).write_bytes(cut)
    lines = cut.count(b"\n")
    assert len(read_records(folder / RECORDS)) == lines, "a reader leaves the torn line out"
    records = Records(folder)
    assert len(records.done) == lines
    records.append(LINES[lines:])
    assert (folder / RECORDS).read_bytes() == data


@pytest.mark.parametrize(
    "damaged", [b'{"id": "a', b"123", b"{}", b'{"id": "\xff"}', b"null", b'{"id": [1], "task": "t", "setting": "full"}']
)
def test_a_damaged_line_inside_is_named(tmp_path: Path, damaged: bytes) -> None:
    path, lines = tmp_path / RECORDS, whole(tmp_path).split(b"\n")
    path.write_bytes(b"\n".join([lines[0], damaged, *lines[2:]]))
    with pytest.raises(SamKVError, match="line 2 is damaged"):
        Records(tmp_path)


MODEL, ARGUMENTS = {"name": "m", "fingerprint": "f"}, {
    "limit": 5, "seed": 0, "settings": ["full", "reuse"], "data": [["mine", "1"], ["set", "2"]]
}  # fmt: skip


def test_the_same_settings_go_on_and_more_questions_may_be_asked(tmp_path: Path) -> None:
    open_run(tmp_path, MODEL, ARGUMENTS)
    open_run(tmp_path, MODEL, ARGUMENTS | {"limit": 9})
    told = read_run(tmp_path)
    assert told["arguments"]["limit"] == 9 and len(told["environments"]) == 1
    assert {"torch", "transformers", "commit", "device", "threads"} <= told["environments"][0].keys()


@pytest.mark.parametrize(
    ("model", "arguments", "told"),
    [
        ({"fingerprint": "g"}, {}, r"fingerprint \('f' there, 'g' now\)"),
        ({}, {"seed": 1}, r"seed \(0 there, 1 now\)"),
        ({}, {"settings": ["reuse", "full", "random"]}, r"settings \(random only now\)"),
        ({}, {"settings": ["full"]}, r"settings \(reuse only there\)"),
        ({}, {"settings": ["reuse", "full"]}, r"settings \(in another order\)"),
        ({}, {"data": [["mine", "1"], ["set", "3"]]}, r"data \(changed since: set\)"),
        ({}, {"data": [["mine", "1"]]}, r"data \(set only there\)"),
    ],
)
def test_other_settings_are_refused_with_what_differs(
    tmp_path: Path, model: dict[str, Any], arguments: dict[str, Any], told: str
) -> None:
    open_run(tmp_path, MODEL, ARGUMENTS)
    open_run(tmp_path, MODEL | model, ARGUMENTS | arguments)  # nothing is answered yet
    open_run(tmp_path, MODEL, ARGUMENTS)
    whole(tmp_path)
    with pytest.raises(SamKVError, match=f"other settings: {told}.*another folder for --out"):
        open_run(tmp_path, MODEL | model, ARGUMENTS | arguments)


def test_answers_of_which_nothing_says_how_they_were_made_are_not_gone_on_with(tmp_path: Path) -> None:
    whole(tmp_path)
    with pytest.raises(SamKVError, match="holds answers, but no run.json that says of what; choose another folder"):
        open_run(tmp_path, MODEL, ARGUMENTS)


def test_a_folder_without_a_run_is_no_evaluation(tmp_path: Path) -> None:
    with pytest.raises(SamKVError, match="not the --out of samkv-rag eval"):
        read_run(tmp_path)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"model": '])
def test_a_damaged_run_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / RUN).write_text(text)
    for attempt in (lambda: read_run(tmp_path), lambda: open_run(tmp_path, MODEL, ARGUMENTS)):
        with pytest.raises(SamKVError, match="holds no readable run.json"):
            attempt()
