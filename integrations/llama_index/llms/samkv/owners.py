"""Which node needs which cache: owners in the KV store, so that the record outlives the process."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from urllib.parse import quote

from llama_index.core.schema import BaseNode

from llama_index.llms.samkv.nodes import ModeName, text_of_node
from samkv_rag import SamKVEngine
from samkv_rag.adding import Adding, own
from samkv_rag.engines import space_of
from samkv_rag.threads import in_thread

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
        self._adding = Adding()

    def owner(self, node: BaseNode) -> str:
        return f"{self._document(node.ref_doc_id or '')}{quote(node.node_id, safe='')}"

    def _document(self, ref_doc_id: str) -> str:
        return f"{self._root}{quote(ref_doc_id, safe='')}/"

    # -- adding nodes ------------------------------------------------------------------------------------------

    @contextmanager
    def entered(self, nodes: Sequence[BaseNode]) -> Iterator[None]:
        """Store the nodes' caches, which belong to the nodes once the block has added them."""
        texts = self._texts(nodes)
        with self._adding.held(self._engine, [text for text in texts.values() if text]):
            yield
            own(self._engine, texts)

    @asynccontextmanager
    async def aentered(self, nodes: Sequence[BaseNode]) -> AsyncIterator[None]:
        """Like `entered`, with the model working in a thread, which stops after a batch if the task is cancelled."""
        texts = self._texts(nodes)
        async with self._adding.aheld(self._engine, [text for text in texts.values() if text]):
            yield
            await in_thread(own, self._engine, texts)

    def _texts(self, nodes: Sequence[BaseNode]) -> dict[str, str]:
        return {self.owner(node): text_of_node(node, self._mode, self._metadata_key) for node in nodes}

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
