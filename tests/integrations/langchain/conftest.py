"""No test here may reach the network; engines are made anew for every test, from tiny models."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import pytest_socket
import transformers as tf

from langchain_samkv import ChatSamKV
from samkv_rag import ChunkKVStore, SamKVEngine
from tests.cases import SIZES
from tests.models import build, byte_tokenizer

CHUNKS = [
    "Lumen Labs was founded in 1998 and has its office in Harrow, next to the old mill.",
    "Orchid Freight carries timber from Vell to the southern ports and owns eleven ships.",
]
ASKED = [("system", "Answer from:\n\n" + "\n\n".join(CHUNKS)), ("human", "Where is the office?")]


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Event loops need a pair of Unix sockets; nothing else is allowed."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # refuse at once, without retrying
    pytest_socket.disable_socket(allow_unix_socket=True)
    yield
    pytest_socket.enable_socket()


@cache
def roomy_model() -> Any:
    """A random model with room for thousands of bytes, sharp enough for every prompt to have its own answer.

    It writes printable ASCII only: other bytes are seldom text.
    """
    model = build(tf.LlamaConfig(**SIZES | {"num_hidden_layers": 2, "max_position_embeddings": 8192}), sharpen=16.0)
    tokenizer = byte_tokenizer()
    printable = {tokenizer(chr(code))["input_ids"][-1] for code in (10, *range(32, 127))}
    model.generation_config.suppress_tokens = sorted(set(range(len(tokenizer))) - printable)
    return model


@pytest.fixture
def engine() -> SamKVEngine:
    """An engine over a random model with a byte tokenizer and a chat template."""
    return SamKVEngine.from_pretrained(roomy_model(), byte_tokenizer(chat=True), ChunkKVStore(":memory:"))


@pytest.fixture
def llm(engine: SamKVEngine) -> ChatSamKV:
    """A chat model over that engine, which knows the chunks."""
    engine.precompute(CHUNKS)
    return ChatSamKV(engine=engine, max_tokens=12)
