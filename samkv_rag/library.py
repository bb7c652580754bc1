"""The chunk texts that an engine knows: their keys, their caches in the store, and where they are in prompts."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from samkv_rag.ingest import Pending, Progress, ingest, reported
from samkv_rag.model.adapter import ModelAdapter
from samkv_rag.model.loading import ModelSource
from samkv_rag.prompt.checks import require_texts
from samkv_rag.prompt.encoding import Encoder
from samkv_rag.prompt.matcher import MIN_CHARS, Matcher
from samkv_rag.prompt.plan import Planner
from samkv_rag.store import ChunkKVStore, EntryError, StoreReadOnly, chunk_key
from samkv_rag.store.forks import AtRest
from samkv_rag.types import ChunkSummary, MatchRecord, PromptPlan

logger = logging.getLogger(__name__)


class Library(AtRest):
    """One namespace of a store, for one model. Reads the tokenizer and the store's texts on first use, under `loading`.

    `template` holds further variables of the chat template. `unusable` holds the keys of entries that could not be
    read: they count as missing until they are stored again.
    """

    def __init__(
        self, source: ModelSource, store: ChunkKVStore, namespace: str, loading: AbstractContextManager[bool],
        template: Mapping[str, Any],
    ) -> None:  # fmt: skip
        super().__init__()
        self.unusable: set[str] = set()
        self._source, self._store, self._namespace = source, store, namespace
        self._loading, self.template = loading, template
        self._planner: Planner | None = None
        self.renew()

    def renew(self) -> None:
        """Held open by nobody: other threads are not in a child."""
        self._holding = threading.Condition(self._lock)
        self._holders = 0

    @property
    def model_fingerprint(self) -> str:
        """The model's own fingerprint, under which the store keeps what was measured for it."""
        return self._source.model_fingerprint

    @property
    def planner(self) -> Planner:
        """Finds the known texts in a prompt."""
        with self._loading:
            if self._planner is None:
                self._planner = self._make_planner()
            return self._planner

    def refresh(self) -> None:
        """Read the store's texts anew: find what others stored, stop looking for what they deleted."""
        with self._loading:
            self.unusable.clear()
            self._planner = self._make_planner()

    def _make_planner(self) -> Planner:
        matcher, fingerprint = Matcher(self._text_of), self._source.fingerprint
        known = list(self._store.records(self._namespace, fingerprint))
        for key, record in known:
            _know(matcher, key, record)
        if not known and (others := sum(1 for _ in self._store.records(self._namespace))):
            logger.warning(
                "The store has %d chunks in the namespace %r, but none that this engine can use: they were made by "
                "another model or dtype, or with another kv_dtype or sink_prefix. Ingest again, or set these as then.",
                others, self._namespace,
            )  # fmt: skip
        encoder = Encoder(self._source.loaded_tokenizer)
        return Planner(encoder, matcher, self._key, self._stored_ids, self.template)

    def _key(self, token_ids: Sequence[int]) -> str:
        return chunk_key(token_ids, self._source.fingerprint, self._namespace)

    def _stored_ids(self, key: str) -> Sequence[int] | None:
        if key in self.unusable:
            return None
        summary = self._summary(key)
        return None if summary is None else summary.token_ids.tolist()

    def _text_of(self, key: str) -> str | None:
        summary = self._summary(key)
        return None if summary is None else summary.text

    def _summary(self, key: str) -> ChunkSummary | None:
        """An entry's summary, or None if it is gone or damaged; errors of the store as a whole are raised."""
        try:
            return self._store.summary(key)
        except EntryError:
            return None

    def chunks(self, texts: Sequence[str]) -> list[Pending]:
        """The texts, stripped and encoded, with their keys; those without tokens are left out."""
        encode, texts = self.planner.encoder.chunk, require_texts(texts, "Chunk texts")
        whole = [(stripped, tuple(encode(stripped))) for text in texts if (stripped := text.strip())]
        return [Pending(text, self._key(ids), ids) for text, ids in whole if ids]

    def add(
        self, chunks: Sequence[Pending], turn: AbstractContextManager[None], progress: bool | Progress = False
    ) -> None:
        """Store the caches of `chunks` that are not stored; see `SamKVEngine.precompute`. Loads the model for those."""
        pending = {chunk.key: chunk for chunk in chunks if chunk.key in self.unusable or chunk.key not in self._store}
        for chunk in chunks:
            if chunk.key not in pending:
                self._note(chunk)
        if pending:
            self._store.require_writable()
            with reported(progress) as report:
                for chunk in ingest(
                    list(pending.values()), self._adapter, self._store, namespace=self._namespace,
                    fingerprint=self._source.fingerprint, kv_dtype=self._source.kv_dtype, turn=turn, progress=report,
                ):  # fmt: skip
                    self._note(chunk)

    def _note(self, chunk: Pending) -> None:
        """Know a text that is stored."""
        self.unusable.discard(chunk.key)
        _know(self.planner.matcher, chunk.key, MatchRecord.of(chunk.text))

    @property
    def _adapter(self) -> ModelAdapter:
        with self._loading:
            return self._source.adapter

    def heal(self, plan: PromptPlan, turn: AbstractContextManager[None]) -> None:
        """Store the whole chunks that a plan missed. An error is logged: it does not concern the answer."""
        try:
            self.add(self.chunks(plan.to_store), turn)
        except StoreReadOnly as error:
            logger.info("What an answer missed was not stored: %s", error)
        except Exception as error:
            logger.warning("What an answer missed could not be stored: %s: %s", type(error).__name__, error)

    def remove(self, keys: Sequence[str]) -> int:
        """Delete entries; return how many there were."""
        keys = require_texts(keys, "Keys")
        for key in keys:
            self.planner.matcher.discard(key)
        return self._store.delete(keys)

    def release(self, owner: str, keys: Iterable[str] | None) -> list[str]:
        """See `SamKVEngine.release`."""
        gone = self._store.release(owner, keys)
        for key in gone:
            self.planner.matcher.discard(key)
            if key in self._store and (text := self._text_of(key)) is not None:  # somebody has stored it meanwhile
                _know(self.planner.matcher, key, MatchRecord.of(text))
        return gone

    @contextmanager
    def held_open(self) -> Iterator[None]:
        """Mark the store as in use within the block; `wait_until_free` waits for it."""
        with self._holding:
            self._holders += 1
        try:
            yield
        finally:
            with self._holding:
                self._holders -= 1
                self._holding.notify_all()

    def wait_until_free(self) -> None:
        """Wait until the store is not held open."""
        with self._holding:
            self._holding.wait_for(lambda: not self._holders)


def _know(matcher: Matcher, key: str, record: MatchRecord) -> None:
    if record.length >= MIN_CHARS:
        matcher.add(key, record)
