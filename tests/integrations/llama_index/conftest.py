"""The framework's global settings, restored after every test; no test reaches the network."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any, NoReturn

import pytest

pytest.importorskip("llama_index.core")

from llama_index.core import MockEmbedding, Settings  # noqa: E402

from llama_index.llms.samkv import SamKVLLM  # noqa: E402
from tests.integrations.llama_index.kit import make_llm  # noqa: E402


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: socket.socket, address: Any) -> NoReturn:
        raise AssertionError(f"a test wanted to reach {address}")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture
def llm() -> Iterator[SamKVLLM]:
    """A fresh LLM with an empty store, set as the framework's own."""
    llm = make_llm()
    with settings(llm):
        yield llm


class settings:
    """A context in which the framework uses this LLM, its tokenizer, and an embedding that costs nothing."""

    NAMES = ("_llm", "_embed_model", "_tokenizer")

    def __init__(self, llm: SamKVLLM) -> None:
        self.llm = llm

    def __enter__(self) -> None:
        self.before = [getattr(Settings, name) for name in self.NAMES]
        Settings.llm, Settings.embed_model = self.llm, MockEmbedding(embed_dim=4)
        Settings.tokenizer = self.llm.tokenizer

    def __exit__(self, *exc: object) -> None:
        for name, value in zip(self.NAMES, self.before, strict=True):
            setattr(Settings, name, value)
