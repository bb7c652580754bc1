"""The code in the class docstring and in the docs page runs as written, with a tiny model as the bundled one."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path
from typing import Any

import pytest
from llama_index.core import MockEmbedding, Settings
from llama_index.core.instrumentation import get_dispatcher

import samkv_rag.reader
from llama_index.llms.samkv import SamKVLLM
from tests.integrations.llama_index.conftest import settings
from tests.integrations.llama_index.kit import TEXTS, make_llm, model
from tests.models import byte_tokenizer

PAGE = Path(__file__).parents[3] / "docs" / "llama-index.md"


def code_in(text: str) -> list[str]:
    return [textwrap.dedent(block) for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL)]


@pytest.fixture(scope="module")
def bundled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reader")
    model().save_pretrained(folder)
    byte_tokenizer(True).save_pretrained(folder)
    return folder


@pytest.fixture
def workplace(bundled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A folder with documents; "bundled" is the tiny model, the embedding costs nothing, answers are short."""
    (tmp_path / "docs").mkdir()
    for i, text in enumerate(TEXTS):
        (tmp_path / "docs" / f"{i}.txt").write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(samkv_rag.reader, "path", lambda name: bundled)
    monkeypatch.setattr(SamKVLLM.model_fields["max_new_tokens"], "default", 8)
    SamKVLLM.model_rebuild(force=True)
    handlers = list(get_dispatcher().event_handlers)
    with settings(make_llm()):
        Settings.embed_model = MockEmbedding(embed_dim=4)
        yield tmp_path
    get_dispatcher().event_handlers[:] = handlers
    monkeypatch.undo()
    SamKVLLM.model_rebuild(force=True)


def run(blocks: list[str]) -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": "example"}
    for block in blocks:
        exec(compile(block, "example", "exec"), names)
    return names


def test_the_class_docstring(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    blocks = code_in(SamKVLLM.__doc__ or "")
    assert len(blocks) == 7
    names = run(blocks)
    assert names["llm"].stats().answers == 5
    assert "of cached chunks" in capsys.readouterr().out


def test_the_page(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    blocks = code_in(PAGE.read_text())
    names = run(blocks)
    stats = names["llm"].stats()
    assert stats.chunk_tokens > 0 and stats.misses == 0
    assert "tokens were not computed again" in capsys.readouterr().out
    assert len(names["llm"].engine.store) == len(TEXTS)
