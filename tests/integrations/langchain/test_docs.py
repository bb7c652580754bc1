"""The page's first examples run as written, except for the model, an offline embedding and the reader's documents."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding

from tests.integrations.langchain.conftest import roomy_model
from tests.models import byte_tokenizer

PAGE = Path(__file__).parents[3] / "docs" / "langchain.md"


def test_the_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    roomy_model().save_pretrained(tmp_path / "model")
    byte_tokenizer(chat=True).save_pretrained(tmp_path / "model")
    code, more = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)[:2]
    assert code.count('"Qwen/Qwen2.5-7B-Instruct"') == 1
    sentence = "Number {} of the harbour's records says who came, from where, and what was paid. "
    names: dict[str, Any] = {
        "embeddings": DeterministicFakeEmbedding(size=8),
        "splits": [
            Document(page_content=sentence.format(n) * 3, metadata={"source": f"{n % 2}.txt"}) for n in range(6)
        ],
    }
    monkeypatch.chdir(tmp_path)
    exec(code.replace('"Qwen/Qwen2.5-7B-Instruct"', '"model"'), names)
    report = names["message"].response_metadata["samkv"]
    assert report["chunk_tokens"] == report["kept_tokens"] > report["packed_tokens"] > 0
    assert int(capsys.readouterr().out) == report["chunk_tokens"] - report["recomputed_tokens"] > 0
    assert (tmp_path / "kv").is_dir() and len(names["llm"].engine.store) == 6
    exec(more, names)
    assert capsys.readouterr().out.strip() and len(names["llm"].engine.store) == 3, "what is gone takes its caches"
