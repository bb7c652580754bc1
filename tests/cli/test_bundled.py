"""The commands on the real engine with the bundled reader; what it answers is not judged here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from samkv_rag.cli.app import app


def run(*args: str) -> str:
    result = CliRunner().invoke(app, list(args))
    assert result.exit_code == 0, (result.output, result.exception)
    return result.stdout


@pytest.fixture
def store(tmp_path: Path) -> str:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.md").write_text("Alma Works is based in Tyrsa. " * 12)
    (tmp_path / "docs" / "b.txt").write_text("Korda Mills has its seat in Orrin.")
    store = str(tmp_path / "store")
    run("ingest", str(tmp_path / "docs"), "--store", store)
    return store


@pytest.mark.parametrize("method", ["samkv", "full", "reuse"])
def test_ingested_chunks_are_answered_from_their_caches(store: str, method: str) -> None:
    shown = json.loads(run("ask", "Where is Korda Mills?", "--store", store, "--method", method, "--json"))
    report = shown["report"]
    assert report["misses"] == [] and report["chunk_tokens"] > 0
    assert (report["packed_tokens"] > report["chunk_tokens"] / 2) == (method == "samkv")


def test_little_text_is_thinned_less_unless_told_to(store: str) -> None:
    dropping = ("--method", "samkv:rest=drop")
    report = json.loads(run("ask", "Where is Korda Mills?", "--store", store, "--json", *dropping))["report"]
    assert report["chunk_tokens"] > report["kept_tokens"] == 64
    assert report["prompt_tokens"] == report["glue_tokens"] + report["dropped_tokens"] + report["kept_tokens"]


def test_the_stream_and_the_object_say_the_same(store: str) -> None:
    question = ("ask", "Where is Korda Mills?", "--store", store, "--method", "full")
    assert run(*question).strip() == json.loads(run(*question, "--json"))["text"]


def test_the_store_knows_its_entries_and_a_deleted_file_frees_them(store: str, tmp_path: Path) -> None:
    before = json.loads(run("store", "--store", store, "--json"))["entries"]
    (tmp_path / "docs" / "b.txt").unlink()
    run("ingest", str(tmp_path / "docs"), "--store", store)
    assert json.loads(run("store", "--store", store, "--json"))["entries"] == before - 1 > 0
    assert "sound" in run("store", "verify", "--store", store)


def test_an_unchanged_folder_loads_no_model(store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("samkv_rag.model.loading.ModelSource._load", refuse)
    run("ingest", str(tmp_path / "docs"), "--store", store)


def test_the_reader_passes_its_check() -> None:
    assert json.loads(run("check", "--json"))["passed"] is True


def test_an_unknown_method_names_the_known_ones(store: str) -> None:
    result = CliRunner().invoke(app, ["ask", "Where?", "--store", store, "--method", "magic"])
    assert result.exit_code == 1 and "samkv" in result.stderr and "Traceback" not in result.stderr
