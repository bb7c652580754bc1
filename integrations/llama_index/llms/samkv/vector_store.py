"""A wrapper around any vector store that keeps the chunk caches in step with it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Sequence
from typing import Any

from llama_index.core.bridge.pydantic import Field, PrivateAttr
from llama_index.core.schema import BaseNode
from llama_index.core.vector_stores.types import (
    BasePydanticVectorStore,
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryResult,
)

from llama_index.llms.samkv.ingest import EngineSource, engine_of
from llama_index.llms.samkv.nodes import ModeName
from llama_index.llms.samkv.owners import Ledger
from samkv_rag import SamKVEngine, SamKVError
from samkv_rag.threads import in_thread

logger = logging.getLogger(__name__)


class ChunkKVVectorStore(BasePydanticVectorStore):
    """Any vector store, with the caches of its nodes: stored with the nodes, deleted with the last one that needs them.

    Notices what a pipeline step does not: `insert_nodes`, upserts and deletions. Caches are counted by content, so the
    cache of a text that two nodes share is kept until both are gone. Indexes that share one KV store need names of
    their own: `collection`. Queries pass through.

        store = ChunkKVVectorStore(SimpleVectorStore(), llm=llm)
        index = VectorStoreIndex(nodes, storage_context=StorageContext.from_defaults(vector_store=store))
    """

    stores_text: bool = Field(description="As the wrapped store.")
    is_embedding_query: bool = Field(default=True, description="As the wrapped store.")
    collection: str = Field(default="default", description="The name of this index among those of one KV store.")
    metadata_mode: ModeName = Field(default="none", description='"none": the body; "llm": metadata header and body.')
    metadata_key: str | None = Field(default=None, description="Cache this metadata instead of the text.")

    _inner: BasePydanticVectorStore = PrivateAttr()
    _engine: SamKVEngine = PrivateAttr()
    _ledger: Ledger = PrivateAttr()

    def __init__(self, inner: BasePydanticVectorStore, llm: EngineSource, **fields: Any) -> None:
        if not isinstance(inner, BasePydanticVectorStore):
            raise SamKVError(f"A ChunkKVVectorStore wraps a vector store, not a {type(inner).__name__}.")
        own = {"stores_text": inner.stores_text, "is_embedding_query": inner.is_embedding_query}
        super().__init__(**{**fields, **own})
        self._inner = inner
        self._engine = engine_of(llm)
        self._ledger = Ledger(self._engine, self.collection, self.metadata_mode, self.metadata_key)

    @classmethod
    def class_name(cls) -> str:
        return "ChunkKVVectorStore"

    @property
    def inner(self) -> BasePydanticVectorStore:
        """The wrapped store."""
        return self._inner

    @property
    def client(self) -> Any:
        """The wrapped store's client."""
        return self._inner.client

    # -- adding nodes ------------------------------------------------------------------------------------------

    def add(self, nodes: Sequence[BaseNode], **kwargs: Any) -> list[str]:
        """Cache the nodes, then add them; if adding fails, the caches that were made for it are released."""
        with self._ledger.entered(nodes):
            return self._inner.add(nodes, **kwargs)

    async def async_add(self, nodes: Sequence[BaseNode], **kwargs: Any) -> list[str]:
        """Like `add`, with the model working in a thread, which stops soon if the task is cancelled."""
        async with self._ledger.aentered(nodes):
            return await self._inner.async_add(nodes, **kwargs)

    # -- removing nodes ----------------------------------------------------------------------------------------

    def delete(self, ref_doc_id: str, **delete_kwargs: Any) -> None:
        self._inner.delete(ref_doc_id, **delete_kwargs)
        self._ledger.leave_document(ref_doc_id)

    async def adelete(self, ref_doc_id: str, **delete_kwargs: Any) -> None:
        await self._inner.adelete(ref_doc_id, **delete_kwargs)
        await in_thread(self._ledger.leave_document, ref_doc_id)

    def delete_nodes(
        self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None, **delete_kwargs: Any
    ) -> None:  # fmt: skip
        going = self._going(node_ids, filters)
        self._inner.delete_nodes(node_ids, filters, **delete_kwargs)
        self._ledger.leave_nodes(going)

    async def adelete_nodes(
        self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None, **delete_kwargs: Any
    ) -> None:  # fmt: skip
        going = await asyncio.to_thread(self._going, node_ids, filters)
        await self._inner.adelete_nodes(node_ids, filters, **delete_kwargs)
        await in_thread(self._ledger.leave_nodes, going)

    def _going(self, node_ids: list[str] | None, filters: MetadataFilters | None) -> Iterable[str]:
        """The ids of the nodes that `delete_nodes` will delete, as far as the wrapped store can tell beforehand."""
        if filters is None:
            return node_ids or []
        try:
            return [node.node_id for node in self._inner.get_nodes(node_ids, filters)]
        except NotImplementedError:
            logger.warning(
                "%s deletes nodes by filter without saying which; their caches stay in the KV store. Delete by node "
                "id or document id to remove them, or give the store max_bytes.", type(self._inner).__name__,
            )  # fmt: skip
            return []

    def clear(self) -> None:
        self._inner.clear()
        self._ledger.leave_all()

    async def aclear(self) -> None:
        await self._inner.aclear()
        await in_thread(self._ledger.leave_all)

    # -- everything else passes through ------------------------------------------------------------------------

    def query(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        return self._inner.query(query, **kwargs)

    async def aquery(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        return await self._inner.aquery(query, **kwargs)

    def get_nodes(
        self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None
    ) -> list[BaseNode]:  # fmt: skip
        return self._inner.get_nodes(node_ids, filters)

    async def aget_nodes(
        self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None
    ) -> list[BaseNode]:  # fmt: skip
        return await self._inner.aget_nodes(node_ids, filters)

    def persist(self, persist_path: str, fs: Any = None) -> None:
        """Persist the wrapped store; the caches are on disk already when the KV store is a folder."""
        self._inner.persist(persist_path, fs)

    def __getstate__(self) -> dict[str, Any]:
        raise SamKVError("ChunkKVVectorStore holds a model and cannot be pickled; send the wrapped store instead.")
