"""Every command: what it prints where, and its exit code."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch

from samkv_rag import SamKV, __version__
from samkv_rag.errors import ParityError, SamKVError
from samkv_rag.methods import METHODS, Reuse
from samkv_rag.retrieval.embedding import HashingEmbedding
from samkv_rag.types import Report
from tests.cli.conftest import Terminal

REPORT_KEYS = {field.name for field in fields(Report)}


def plain(text: str) -> str:
    return " ".join(re.sub(r"\x1b\[[0-9;]*m", "", text).split())


def test_version_and_help(terminal: Terminal) -> None:
    assert terminal("--version")[0].strip() == f"samkv-rag {__version__}"
    assert all(command in terminal("--help")[0] for command in ("demo", "ingest", "ask", "check", "store"))


def test_ingest_tells_the_estimate_and_the_outcome(terminal: Terminal, docs: Path) -> None:
    (docs / "bad.pdf").write_bytes(b"no pdf")
    out, err = terminal("ingest", str(docs))
    assert out == "" and re.search(r"2 files, 2 chunks, \d+ tokens: about [\d.]+ KiB of caches; .* free in", plain(err))
    assert "2 new, 1 unreadable; 2 chunks indexed" in plain(err) and "bad.pdf: " in err
    assert "2 unchanged, 1 unreadable" in plain(terminal("ingest", str(docs))[1])


def test_ingesting_nothing_at_all_fails(terminal: Terminal, tmp_path: Path) -> None:
    (tmp_path / "latin1.txt").write_bytes("caf\xe9".encode("latin1"))
    _, err = terminal("ingest", str(tmp_path), code=1)
    assert "1 unreadable; 0 chunks indexed" in plain(err) and "not text in UTF-8" in plain(err)


def test_ask_prints_the_answer_alone_on_stdout(terminal: Terminal, docs: Path) -> None:
    terminal.answers["Where is Alma Works based?"] = "Tyrsa [old] :100: town"
    terminal("ingest", str(docs))
    out, err = terminal("ask", "Where is Alma Works based?")
    assert out == "Tyrsa [old] :100: town\n" and "samkv:" in err and "of the passages" in err


def test_ask_passes_its_options_on(terminal: Terminal, docs: Path) -> None:
    terminal("ingest", str(docs))
    terminal("ask", "Where?", "--method", "full", "--keep", "0.3", "--max-new-tokens", "7", "--top-k", "1")
    asked = terminal.engine.asked[-1]
    assert (asked["method"], asked["keep"], asked["max_new_tokens"], len(asked["chunks"])) == ("full", 0.3, 7, 1)


def test_ask_takes_a_method_with_its_options(terminal: Terminal, docs: Path) -> None:
    terminal("ingest", str(docs))
    terminal("ask", "Where?", "--method", "samkv:keep=0.3,recompute=0.5")
    assert terminal.engine.asked[-1]["method"] == SamKV(keep=0.3, recompute=0.5)
    terminal("ask", "Where?", "--method", "samkv:keep=0.3", "--keep", "0.5")
    assert terminal.engine.asked[-1]["method"] == SamKV(keep=0.3) and "keep" not in terminal.engine.asked[-1]
    terminal("ask", "Where?", "--method", "samkv.paper")
    assert terminal.engine.asked[-1]["method"] == SamKV.paper()
    assert "it has: keep" in plain(terminal("ask", "Where?", "--method", "samkv:keeps=1", code=1)[1])


def test_ask_as_json(terminal: Terminal, docs: Path) -> None:
    terminal("ingest", str(docs))
    shown = json.loads(terminal("ask", "Where is Korda Mills?", "--json")[0])
    assert set(shown) == {"question", "text", "finish_reason", "usage", "report", "passages"}
    assert set(shown["report"]) == REPORT_KEYS
    assert {p["text"] for p in shown["passages"]} == {
        "Alma Works is based in Tyrsa.",
        "Korda Mills has its seat in Orrin.",
    }


def test_ask_shows_the_context(terminal: Terminal, docs: Path) -> None:
    terminal("ingest", str(docs))
    out, _ = terminal("ask", "Where is Korda Mills?", "--show-context")
    assert "Korda Mills has its seat in Orrin." in out and "b.txt #0 (score" in out


def test_demo_as_json_is_one_object_and_nothing_else(terminal: Terminal) -> None:
    shown = json.loads(terminal("demo", "--json")[0])
    assert set(shown) == {"questions", "summary"} and len(shown["questions"]) == 10
    for question in shown["questions"]:
        assert {"question", "expected", "methods"} <= set(question)
        assert list(question["methods"]) == ["samkv", "full", "reuse"]
        for result in question["methods"].values():
            assert set(result) == {"text", "correct", "report"} and result["correct"] is True
            assert set(result["report"]) == REPORT_KEYS
    summary = shown["summary"]["methods"]["samkv"]
    assert (summary["correct"], summary["of"]) == (10, 10) and 0.1 < summary["kept_ratio"] <= 0.15


def test_demo_asks_all_methods_about_the_same_chunks(terminal: Terminal) -> None:
    terminal("demo", "--json", "--keep", "0.2")
    asked = [call for call in terminal.engine.asked if call["max_new_tokens"] > 1]
    for start in range(0, 30, 3):
        three = asked[start : start + 3]
        assert [call["method"] for call in three] == ["samkv", "full", "reuse"]
        assert three[0]["chunks"] == three[1]["chunks"] == three[2]["chunks"]
        assert [call.get("keep") for call in three] == [0.2, None, None]


def test_a_small_context_keeps_64_tokens_unless_a_share_is_asked_for(terminal: Terminal, docs: Path) -> None:
    terminal("ingest", str(docs))
    for command in (["demo", "--json"], ["ask", "Where?"]):
        terminal(*command)
        terminal(*command, "--keep", "0.2")
    assert terminal.floors[1:] == [64, 0, 64, 0]


def test_demo_prints_a_table_for_each_question_and_a_summary(terminal: Terminal, tmp_path: Path) -> None:
    out, err = terminal("demo", "--store", str(tmp_path / "kept"))
    assert out.count("expected:") == 10 and out.count("✓") == 30
    assert "samkv answered 10 of 10 (full 10, reuse 10)" in plain(out)
    assert "samkv-rag ingest" in err and (tmp_path / "kept" / "index" / "CURRENT").exists()


def test_the_demo_does_not_take_over_a_store_of_other_documents(
    terminal: Terminal, docs: Path, tmp_path: Path
) -> None:  # fmt: skip
    terminal("ingest", str(docs), "--store", str(tmp_path / "mine"))
    _, err = terminal("demo", "--store", str(tmp_path / "mine"), code=1)
    assert "has other documents" in plain(err) and "give the demo a folder of its own" in plain(err)
    terminal("demo", "--store", str(tmp_path / "own"))
    terminal("demo", "--store", str(tmp_path / "own"))


@pytest.mark.parametrize("place", [1e-6, 0.3])
def test_check_shows_the_report(terminal: Terminal, monkeypatch: pytest.MonkeyPatch, place: float) -> None:
    report = {
        "model": "LlamaForCausalLM",
        "tolerance": 1e-4,
        "errors": {"recompute": 2e-6},
        "place_error": place,
        "passed": True,
    }

    class Found:
        def as_dict(self) -> dict[str, object]:
            return report

    monkeypatch.setattr("tests.retrieval.fakes.FakeEngine.self_check", lambda self: Found(), raising=False)
    out, _ = terminal("check")
    assert "errors: recompute" in out and "2e-06" in out and "Reuse is exact on bundled." in out
    assert ("is not what it is at its first ones: logits are 30% off" in plain(out)) == (place == 0.3)
    assert json.loads(terminal("check", "--json")[0]) == {**report, "model": "bundled", "class": "LlamaForCausalLM"}


def test_a_failed_check_is_an_error(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: object) -> None:
        raise ParityError("X failed the parity gate.")

    monkeypatch.setattr("tests.retrieval.fakes.FakeEngine.self_check", fail, raising=False)
    assert plain(terminal("check", code=1)[1]) == "Error: X failed the parity gate."


WRONG: list[tuple[list[str], int, str]] = [
    (["ask", "Where?"], 1, "run samkv-rag ingest FOLDER first"),
    (["ask", " "], 1, "write it in quotes"),
    (["ask"], 2, "Missing argument"),
    (["ask", "Where?", "--keep", "1.5"], 2, "--keep"),
    (["ask", "Where?", "--top-k", "0"], 2, "--top-k"),
    (["ingest", "nowhere"], 1, "check the path"),
    (["store"], 1, "There is no store"),
    (["store", "verify"], 1, "There is no store"),
    (["store", "prune", "--max-bytes", "many"], 2, "not a size"),
    (["bogus"], 2, "No such command"),
]


@pytest.mark.parametrize(("args", "code", "words"), WRONG, ids=lambda value: str(value)[:40])
def test_errors_name_the_remedy_without_a_traceback(
    terminal: Terminal, tmp_path: Path, args: list[str], code: int, words: str
) -> None:
    _, err = terminal(*args, code=code)
    assert words in plain(err.replace("│", "")) and "Traceback" not in err
    assert not (tmp_path / ".samkv").exists(), "a failed command leaves no store behind"


def test_an_evaluation_compares_every_method_there_is_unless_some_are_named(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[str] = []

    def hear(methods: str, keep: object) -> None:
        compared.append(methods)
        raise SamKVError("That is enough.")

    monkeypatch.setitem(METHODS, "mine", Reuse)  # type: ignore[arg-type]
    monkeypatch.setattr("samkv_rag.cli.evaluate.settings", hear)
    for named in ([], ["--methods", "full,mine"]):
        terminal("eval", "--data", "one_hop", "--out", "run", *named, code=1)
    assert compared == [",".join(METHODS), "full,mine"] and compared[0].endswith(",mine")


def test_debug_shows_the_traceback_wherever_it_stands(terminal: Terminal) -> None:
    for args in (["--debug", "ask", "Where?"], ["ask", "Where?", "--debug"]):
        assert "Traceback" in terminal(*args, code=1)[1]


def test_another_model_than_the_index_has_is_an_error(terminal: Terminal, docs: Path) -> None:
    terminal("ingest", str(docs))
    assert "leave --model out" in plain(terminal("ask", "Where?", "--model", "other/model", code=1)[1])


def test_how_caches_are_stored_is_remembered(terminal: Terminal, docs: Path) -> None:
    assert "of caches in int8;" in plain(terminal("ingest", str(docs), "--kv-dtype", "int8")[1])
    assert terminal.kv_dtypes == ["int8"]
    assert "2 unchanged" in plain(terminal("ingest", str(docs))[1])
    terminal("ask", "Where?")
    for other in ("fp8", "int3"):
        said = plain(terminal("ask", "Where?", "--kv-dtype", other, code=1)[1])
        assert "holds caches of kv_dtype int8: leave --kv-dtype out" in said
        assert (f"or ingest again with --kv-dtype {other}" in said) == (other == "fp8")
    assert terminal.kv_dtypes == ["int8", "int8", "int8"]
    assert "2 changed" in plain(terminal("ingest", str(docs), "--kv-dtype", "model")[1])


def test_how_passages_are_found_is_remembered(terminal: Terminal, docs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("samkv_rag.retrieval.index.open_embedding", lambda name: HashingEmbedding())
    terminal("ingest", str(docs), "--embed-model", "some/model")
    assert "2 unchanged" in plain(terminal("ingest", str(docs))[1])
    assert "2 changed" in plain(terminal("ingest", str(docs), "--embed-model", "hashing")[1])


def test_a_missing_embedding_package_names_the_command(terminal: Terminal, docs: Path) -> None:
    _, err = terminal("ingest", str(docs), "--embed-model", "some/model", code=1)
    assert "pip install llama-index-embeddings-huggingface" in plain(err)


def _fill_the_memory() -> None:
    torch.empty(1 << 55, dtype=torch.uint8)


def _fill_the_gpu() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def _stumble() -> None:
    raise RuntimeError("The size of tensor a (2) must match the size of tensor b (3)")


@pytest.mark.parametrize("fail", [_fill_the_memory, _fill_the_gpu, _stumble])
def test_a_full_memory_names_the_remedy_and_a_bug_does_not(
    terminal: Terminal, docs: Path, monkeypatch: pytest.MonkeyPatch, fail: Callable[[], None]
) -> None:
    monkeypatch.setattr("tests.retrieval.fakes.FakeEngine.precompute", lambda *_, **__: fail())
    _, err = terminal("ingest", str(docs), code=1)
    assert ("Error: The memory is full; use a smaller model" in plain(err)) == (fail is not _stumble)


def test_an_interrupt_exits_with_130(terminal: Terminal, docs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("tests.retrieval.fakes.FakeEngine.precompute", interrupt)
    _, err = terminal("ingest", str(docs), code=130)
    assert "run the same command to go on" in plain(err)


def test_what_keeps_nothing_says_no_more_than_that_it_was_stopped(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(self: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("tests.retrieval.fakes.FakeEngine.self_check", interrupt, raising=False)
    assert plain(terminal("check", code=130)[1]).endswith("Stopped.")


@pytest.mark.parametrize(("stays", "said"), [(True, "run the same command to go on"), (False, "nothing is kept")])
def test_an_interrupted_demo_says_whether_anything_is_kept(
    terminal: Terminal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stays: bool, said: str
) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("tests.retrieval.fakes.FakeEngine.precompute", interrupt)
    _, err = terminal("demo", *(["--store", str(tmp_path / "own")] if stays else []), code=130)
    assert said in plain(err)
