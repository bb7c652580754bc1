"""`samkv-rag profile` from the command line, with the bundled reader."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from samkv_rag import ChunkKVStore, SamKVEngine, reader
from samkv_rag.cli.app import app


def row(number: int) -> dict[str, Any]:
    question = f"Where is Firm {number} based?"
    return {"question": question, "passages": [{"text": "Firm 1 is based in Oslo."}]}


CHOSEN = ("model", "stored", "layers", "early", "sees", "wide", "answer_weight", "vicinity")


def test_it_keeps_what_it_chose_by_the_models_fingerprint(tmp_path: Path) -> None:
    args = ["profile", "--data", "earlier_chunk", "--chunks", "3", "--limit", "8", "--store", str(tmp_path), "--json"]
    found = json.loads(CliRunner().invoke(app, args).stdout)
    assert found["stored"] is True and found["questions"] == 8
    assert found["layers"] in [tried["layers"] for tried in found["tried"]]
    with SamKVEngine.from_pretrained("bundled", store=ChunkKVStore(tmp_path)) as engine:
        kept = engine.store.profiles.get(engine.model_fingerprint)
        assert kept is not None and list(kept.layers) == found["layers"]
        assert kept.wide == found["wide"] in (0.0, 0.25, 0.5, 1.0)
        assert kept.early == found["early"] in (0.0, 0.5, 1.0)
        assert kept.sees == found["sees"] in (0.0, 0.3, 0.5, 0.75)
        assert kept.answer_weight == found["answer_weight"] in (1, 2, 4, 8)
        assert kept.vicinity == found["vicinity"] in (0.0, 0.5, 1.0)
        assert kept.measured == {name: value for name, value in found.items() if name not in CHOSEN}
        assert len(engine.store) == 0, "measuring leaves no caches behind"
    out = tmp_path / "run"
    asked = ["eval", "--data", "one_hop", "--limit", "1", "--methods", "samkv", "--out", str(out), "--chunks", "3"]
    done = CliRunner().invoke(app, [*asked, "--profile", str(tmp_path)])
    assert done.exit_code == 0, done.output
    chosen = json.loads((out / "run.json").read_text())["arguments"]["profile"]
    assert chosen == {name: found[name] for name in CHOSEN[2:]}
    report = CliRunner().invoke(app, ["report", str(out), "--out", str(tmp_path / "report.md")])
    assert report.exit_code == 0, report.output
    assert f"with a profile of the model: layers {found['layers']}, " in (tmp_path / "report.md").read_text()
    again = CliRunner().invoke(app, asked)
    assert again.exit_code == 1 and "other settings: profile" in " ".join(again.stderr.split())


@pytest.mark.parametrize(
    ("count", "why"), [(2, "2 questions cannot tell what is best, 8 can"), (8, "8 questions do not")]
)
def test_questions_that_do_not_tell_are_shown_and_change_nothing(tmp_path: Path, count: int, why: str) -> None:
    data, store = tmp_path / "mine.jsonl", tmp_path / "store"
    data.write_text("\n".join(json.dumps({"id": str(n), **row(n)}) for n in range(count)))
    args = ["profile", "--data", str(data), "--store", str(store), "--keep", "0.4"]
    shown = CliRunner().invoke(app, args)
    assert shown.exit_code == 0, shown.output
    assert re.search(r": (\d+) of \1$", shown.stderr, re.MULTILINE), "where there is no terminal it tells how far it is"
    assert f"{count} questions, 40 % kept" in shown.stdout and "25 % of the layers" in shown.stdout
    assert [f" {keep} % " in shown.stdout for keep in (10, 15, 25, 40, 50)] == [True] * 5
    assert "settle_at" in shown.stdout and " 16 tokens " in shown.stdout
    assert "(rest)" in shown.stdout and " int4 " in shown.stdout
    assert "Nothing is stored: " + why in " ".join(shown.stderr.split()) and "Selection layers" not in shown.stdout
    with SamKVEngine.from_pretrained("bundled", store=ChunkKVStore(store)) as engine:
        assert engine.store.profiles.get(engine.model_fingerprint) is None
    if count == 2:
        found = json.loads(CliRunner().invoke(app, [*args, "--json"]).stdout)
        assert found["stored"] is False and found["questions"] == 2 and found["keep"] == 0.4
        assert [budget["keep"] for budget in found["budgets"]] == [0.1, 0.15, 0.25, 0.4, 0.5]
        assert [wait["settle_at"] for wait in found["waits"]] == [0, 8, 16]
        assert [one["rest"] for one in found["rests"]] == ["drop", "int4"]
        assert [one["hold"] for one in found["holds"]] == [0.3, 0.5, 0.7, 1.0]


def test_a_store_without_a_profile_of_the_model_is_told(tmp_path: Path) -> None:
    asked = ["eval", "--data", "one_hop", "--limit", "1", "--out", str(tmp_path / "run"), "--profile", str(tmp_path)]
    done = CliRunner().invoke(app, asked)
    assert done.exit_code == 1 and "holds no profile of bundled: run samkv-rag profile" in " ".join(done.stderr.split())
    assert not (tmp_path / "run").exists()


def test_too_few_chunks_for_a_task_are_refused(tmp_path: Path) -> None:
    args = ["profile", "--data", "one_hop,two_hop", "--chunks", "1", "--store", str(tmp_path)]
    done = CliRunner().invoke(app, args)
    assert done.exit_code == 1 and "two_hop needs at least --chunks 2, not 1" in " ".join(done.stderr.split())


def test_it_measures_the_model_that_the_store_was_ingested_with(tmp_path: Path) -> None:
    model, docs, store = tmp_path / "own", tmp_path / "docs.md", str(tmp_path / "store")
    shutil.copytree(reader.path(reader.SMALL), model)
    docs.write_text("Firm 1 is based in Oslo.")
    data = tmp_path / "mine.jsonl"
    data.write_text(json.dumps({"id": "0", **row(0)}))
    made = CliRunner().invoke(app, ["ingest", str(docs), "--model", str(model), "--kv-dtype", "int8", "--store", store])
    assert made.exit_code == 0, made.output
    shown = json.loads(CliRunner().invoke(app, ["profile", "--data", str(data), "--store", store, "--json"]).stdout)
    assert shown["model"] == str(model)


def test_data_that_is_not_there_is_told_in_a_sentence(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["profile", "--data", "nowhere.jsonl", "--store", str(tmp_path / "store")])
    assert done.exit_code == 1 and "neither a file nor a task" in done.stderr.replace("\n", " ")
