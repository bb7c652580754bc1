"""Caches that are held while documents are added to an index: none stays that nobody needs, none goes that was there.

What is made for the documents is held, and deleted if they cannot be added. What was there before and had no owner is
not held: should somebody else make it his and delete it meanwhile, it is made again. So it does not matter how many
callers add the same texts at once, and which of them fail.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from functools import partial

from samkv_rag.engine import SamKVEngine
from samkv_rag.ingest import Progress
from samkv_rag.threads import in_thread, stoppable

ADDING = "%adding/"
"""What the names begin with under which caches are held. Names that users give do not: their `%` is escaped."""
STALE_SECONDS = 7 * 24 * 3600.0
"""How long nobody takes to add documents: what has been held for longer was left by a process that was killed."""
LOOK_SECONDS = 3600.0
"""How often it is looked for."""


class Adding:
    """Holds caches for `with adding.held(engine, texts)`, whose block adds the documents and makes them owners."""

    def __init__(self) -> None:
        self._looked: float | None = None

    @contextmanager
    def held(self, engine: SamKVEngine, texts: Sequence[str]) -> Iterator[None]:
        """Cache `texts`; when the block has ended, delete what was made for it and has no owner."""
        held = _Held(engine, texts)
        try:
            self._hold(held, False)
            yield
        finally:
            held.let_go()

    @asynccontextmanager
    async def aheld(self, engine: SamKVEngine, texts: Sequence[str]) -> AsyncIterator[None]:
        """Like `held`, with the model working in a thread, which stops after a batch if the task is cancelled."""
        held = _Held(engine, texts)
        try:
            await stoppable(partial(self._hold, held))
            yield
        finally:
            await in_thread(held.let_go)

    def _hold(self, held: _Held, progress: bool | Progress) -> None:
        self._release_stale(held.engine)
        held.hold(progress)

    def _release_stale(self, engine: SamKVEngine) -> None:
        now = time.time()
        if self._looked is None or now - self._looked > LOOK_SECONDS:
            self._looked = now
            for name in {name for name, _ in engine.store.owned(ADDING) if _age(name, now) > STALE_SECONDS}:
                engine.release(name)


def own(engine: SamKVEngine, texts: Mapping[str, str]) -> None:
    """Make each owner that of its text's cache (of none, if the text is empty), and of no other; a cache that somebody
    has deleted meanwhile is made again."""
    for owner, text in texts.items():
        keys = engine.keys([text] if text else [])
        for key in keys:
            engine.store.retain(key, owner)
            if key not in engine.store:
                engine.precompute([text])
        if old := set(engine.store.owned_by(owner)).difference(keys):
            engine.release(owner, old)


class _Held:
    """The caches of some texts, under a name of their own."""

    def __init__(self, engine: SamKVEngine, texts: Sequence[str]) -> None:
        self.engine, self.texts = engine, texts
        self._name = f"{ADDING}{int(time.time())}/{uuid.uuid4()}"

    def hold(self, progress: bool | Progress) -> None:
        """Owners are stored before caches, so that a cache which is deleted meanwhile is made again."""
        for key in dict.fromkeys(self.engine.keys(self.texts)):
            self.engine.store.retain(key, self._name, leave_free=True)
        self.engine.precompute(self.texts, progress=progress)

    def let_go(self) -> None:
        if self.engine.store.owned_by(self._name):  # else there may be nothing to write to
            self.engine.release(self._name)


def _age(name: str, now: float) -> float:
    """For how many seconds something has been held under this name; 0 for a name of another kind."""
    began = name.removeprefix(ADDING).partition("/")[0]
    return now - int(began) if began.isdecimal() else 0.0
