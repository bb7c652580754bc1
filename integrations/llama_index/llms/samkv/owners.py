"""Which node needs which cache: owners in the KV store, so that the record outlives the process."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from urllib.parse import quote

from llama_index.core.schema import BaseNode

from llama_index.llms.samkv.nodes import ModeName, text_of_node
from samkv_rag import SamKVEngine
from samkv_rag.engines import space_of
from samkv_rag.threads import in_thread, until

Entry = tuple[str, str]
"""An owner and the key of a cache that it needs."""


class Ledger:
    """The ledger of one collection. A node's owner is named `llama_index/<collection>/<document>/<node>`, and in other
    namespaces than the default `llama_index/%n<namespace>/<collection>/...`: tenants may have the same ids."""

    def __init__(self, engine: SamKVEngine, collection: str, mode: ModeName, metadata_key: str | None) -> None:
        self._engine = engine
        self._store = engine.store
        self._root = f"llama_index/{space_of(engine)}{quote(collection, safe='')}/"
        self._mode: ModeName = mode
        self._metadata_key = metadata_key

    def owner(self, node: BaseNode) -> str:
        return f"{self._document(node.ref_doc_id or '')}{quote(node.node_id, safe='')}"

    def _document(self, ref_doc_id: str) -> str:
        return f"{self._root}{quote(ref_doc_id, safe='')}/"

    # -- adding nodes ------------------------------------------------------------------------------------------

    @contextmanager
    def entered(self, nodes: Sequence[BaseNode]) -> Iterator[None]:
        """Store the nodes' caches and make the nodes their owners, before the block adds them. If either fails, what
        was new is released; else what they owned before under the same ids and no longer need."""
        entered = _Entered()
        try:
            self._enter(nodes, entered)
            yield
        except BaseException:
            self._undo(entered)
            raise
        self._settle(entered)

    @asynccontextmanager
    async def aentered(self, nodes: Sequence[BaseNode]) -> AsyncIterator[None]:
        """Like `entered`, with the model working in a thread, which stops soon if the task is cancelled."""
        entered = _Entered()
        try:
            await in_thread(self._enter, nodes, entered, stop=entered.stop)
            yield
        except BaseException:
            await in_thread(self._undo, entered)
            raise
        await in_thread(self._settle, entered)

    def _enter(self, nodes: Sequence[BaseNode], entered: _Entered) -> None:
        """Owners are stored before caches, so that a cache which is deleted meanwhile is made again."""
        texts = {self.owner(node): text_of_node(node, self._mode, self._metadata_key) for node in nodes}
        pairs = [(owner, key) for owner, text in texts.items() for key in self._engine.keys([text] if text else [])]
        entered.owners.update(texts)
        for owner, key in pairs:
            known = key in self._store.owned_by(owner)
            if self._store.retain(key, owner):
                entered.spare.add(key)
            entered.new[owner, key] = not known
        self._engine.precompute([texts[owner] for owner, _ in pairs], progress=until(entered.stop))

    def _settle(self, entered: _Entered) -> None:
        for owner in entered.owners:
            old = [key for key in self._store.owned_by(owner) if (owner, key) not in entered.new]
            if old:
                self._engine.release(owner, old)

    def _undo(self, entered: _Entered) -> None:
        for (owner, key), new in entered.new.items():
            if new:
                self._engine.release(owner, [key], entered.spare)

    # -- removing nodes ----------------------------------------------------------------------------------------

    def leave_document(self, ref_doc_id: str) -> None:
        """Release what the nodes of a document owned."""
        self._release(self._store.owned(self._document(ref_doc_id)))

    def leave_nodes(self, node_ids: Iterable[str]) -> None:
        """Release what these nodes owned."""
        gone = {quote(node_id, safe="") for node_id in node_ids}
        if gone:
            self._release(entry for entry in self._store.owned(self._root) if entry[0].rpartition("/")[2] in gone)

    def leave_all(self) -> None:
        """Release what the collection owned."""
        self._release(self._store.owned(self._root))

    def _release(self, entries: Iterable[Entry]) -> None:
        for owner, key in entries:
            self._engine.release(owner, [key])


class _Entered:
    """What adding some nodes has changed: their `owners`, every entry and whether it is `new`, and which caches were
    there before without an owner, to `spare` if the nodes cannot be added. `stop` ends the making of caches."""

    def __init__(self) -> None:
        self.owners: set[str] = set()
        self.new: dict[Entry, bool] = {}
        self.spare: set[str] = set()
        self.stop = threading.Event()
