"""Killed with -9 at every step that reaches the disk: the store opens, whole entries are used, the rest is put again.

A child runs a scenario and kills itself at the n-th of its steps, for every n. Steps are the calls that change
something outside the process: open, write, fsync, rename, unlink, and each statement and commit of the catalogue.
"""

from __future__ import annotations

import os
import signal
import sqlite3
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from samkv_rag.store import ChunkKVStore, EntryError
from samkv_rag.store import catalogue as catalogue_module

from .samples import KEYS, file_of, files, in_child, make_chunk, names, same

A, B = KEYS[:2]
STEPS = ("open", "write", "fsync", "replace", "unlink", "link", "mkdir")


class Killer:
    """Counts steps, and kills the process at number `at`: inside a write, before any other step."""

    def __init__(self, at: int) -> None:
        self.at = at
        self.count = 0

    def step(self, half: Callable[[], object] | None = None) -> None:
        self.count += 1
        if self.count == self.at:
            if half:
                half()
            os.kill(os.getpid(), signal.SIGKILL)

    def install(self) -> None:
        """In the child only, which never returns: nothing has to be restored."""
        for name in STEPS:
            setattr(os, name, self._stepping(name, getattr(os, name)))
        connect = sqlite3.connect

        def connected(*args: object, **options: object) -> sqlite3.Connection:
            connection: sqlite3.Connection = connect(*args, factory=self._connection(), **options)  # type: ignore[call-overload]
            return connection

        catalogue_module.sqlite3.connect = connected  # type: ignore[attr-defined]

    def _stepping(self, name: str, real: Callable[..., object]) -> Callable[..., object]:
        def stepped(*args: object, **options: object) -> object:
            def half() -> None:
                real(args[0], bytes(args[1])[: len(args[1]) // 2])  # type: ignore[call-overload, arg-type]

            if name != "open" or int(args[1]) & os.O_CREAT:  # type: ignore[call-overload]
                self.step(half if name == "write" else None)
            return real(*args, **options)

        return stepped

    def _connection(self) -> type[sqlite3.Connection]:
        killer = self

        class Connection(sqlite3.Connection):
            def execute(self, *args: object) -> sqlite3.Cursor:  # type: ignore[override]
                if not str(args[0]).startswith(("SELECT", "PRAGMA")):
                    killer.step()
                return super().execute(*args)  # type: ignore[arg-type]

            def close(self) -> None:
                killer.step()
                super().close()

        return Connection


def create(folder: Path) -> None:
    with ChunkKVStore(folder) as store:
        store.retain(A, "owner")
        store.put(A, make_chunk(0))


def put(folder: Path) -> None:
    with ChunkKVStore(folder) as store:
        store.put(B, make_chunk(1))


def replace(folder: Path) -> None:
    with ChunkKVStore(folder) as store:
        store.put(A, make_chunk(9, n_tokens=90))
        store.put(A, make_chunk(0))


def evict(folder: Path) -> None:
    with ChunkKVStore(folder, max_bytes=2 * os.stat(file_of(folder, A, "kv")).st_size) as store:
        store.put(B, make_chunk(1))


def delete(folder: Path) -> None:
    with ChunkKVStore(folder) as store:
        store.release("owner")


def rebuild(folder: Path) -> None:
    path = folder / "catalogue.sqlite"
    Path.write_bytes(path, path.read_bytes().replace(b"This is the text", b"That is the text"))
    with ChunkKVStore(folder) as store:
        assert A in store


def prune(folder: Path) -> None:
    shard = file_of(folder, A, "kv").parent
    (shard / f"{A[:2]}orphan.kv.safetensors").write_bytes(b"rest")
    (shard / ".writing-rest").write_bytes(b"rest")
    with ChunkKVStore(folder) as store:
        store.prune(max_bytes=0)


SCENARIOS = [create, put, replace, evict, delete, rebuild, prune]


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_killed_at_every_step(
    scenario: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)  # a kill loses no written page: the call matters, not its effect
    killed = 0
    for step, folder in enumerate(_prepared(scenario, tmp_path), start=1):
        status = in_child(lambda folder=folder, step=step: _run(scenario, folder, step))  # type: ignore[misc]
        _check(folder, f"{scenario.__name__}, step {step}")
        if scenario is rebuild:
            with ChunkKVStore(folder) as store:
                assert store.release("owner") == [A], f"owners were lost at step {step}"
        if status == 0:
            break
        assert status == -signal.SIGKILL, f"step {step}"
        killed += 1
    assert killed >= 10


def _prepared(scenario: Callable[[Path], None], tmp_path: Path) -> Iterator[Path]:
    """Fresh stores that hold A; for `create`, nothing at all."""
    for step in range(200):
        folder = tmp_path / f"{step}"
        if scenario is not create:
            create(folder)
        yield folder


def _run(scenario: Callable[[Path], None], folder: Path, step: int) -> None:
    warnings.simplefilter("ignore")
    Killer(step).install()
    scenario(folder)


def _check(folder: Path, where: str) -> None:
    """Check what the next process finds, and that an ordinary ingestion makes it whole."""
    wanted = {A: make_chunk(0), B: make_chunk(1)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with ChunkKVStore(folder) as store:
            for key in list(store.keys()):
                assert _sound(store, key), f"{where}: wrong bytes"
            for key, chunk in wanted.items():
                if key not in store:
                    store.put(key, chunk)
                elif key == A and store.summary(A).n_tokens == 90:
                    store.put(A, chunk)
                assert key in store and same(store, key, chunk), where
            assert store.verify() == [], where
            store.prune()
            assert list(store.keys()) == [A, B] and files(folder) == names(A, B), where
            assert not list(folder.glob(".writing-*")), where


def _sound(store: ChunkKVStore, key: str) -> bool:
    """Whether a reader is given the right bytes or none."""
    try:
        return any(same(store, key, chunk) for chunk in (make_chunk(0), make_chunk(1), make_chunk(9, n_tokens=90)))
    except EntryError:
        return True


def test_a_whole_entry_survives_a_kill_before_its_row(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The work of a prefill is not done twice when only the last step is missing."""
    from samkv_rag.store.rows import Rows

    create(folder)

    def child() -> None:
        Rows.add = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment, method-assign]
        put(folder)

    assert in_child(child) == -signal.SIGKILL
    with ChunkKVStore(folder) as store:
        assert list(store.keys()) == [A]
        assert B in store and same(store, B, make_chunk(1)) and list(store.keys()) == [A, B]


def test_an_interrupted_put_leaves_no_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with ChunkKVStore(folder) as store:
        real = os.fsync

        def interrupted(fd: int) -> None:
            monkeypatch.setattr(os, "fsync", real)
            raise KeyboardInterrupt

        store.put(A, make_chunk(0))
        (folder / "entries" / B[:2]).mkdir()
        monkeypatch.setattr(os, "fsync", interrupted)
        with pytest.raises(KeyboardInterrupt):
            store.put(B, make_chunk(1))
        assert files(folder) == names(A) and B not in store
        store.put(B, make_chunk(1))
        assert same(store, B, make_chunk(1))
