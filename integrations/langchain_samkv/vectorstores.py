"""`ChunkKVVectorStore`: any vector store, with caches that come and go with its documents."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import InMemoryVectorStore, VectorStore

from langchain_samkv.ingestion import Keeper, stored_documents
from samkv_rag import SamKVEngine, SamKVError
from samkv_rag.prompt.matcher import MIN_CHARS
from samkv_rag.threads import in_thread

if TYPE_CHECKING:
    from langchain_samkv.chat_models import ChatSamKV

Scored = list[tuple[Document, float]]

logger = logging.getLogger(__name__)


class ChunkKVVectorStore(VectorStore):
    """Wraps a vector store: what is added is cached for `llm`, what is deleted is released.

        store = ChunkKVVectorStore(InMemoryVectorStore(embeddings), llm=llm)
        index(splits, records, store, cleanup="incremental", source_id_key="source", key_encoder="blake2b")

    A text that several documents share is cached once, and kept until the last of them is gone. Searching is left to
    the wrapped store; documents and metadata are passed on unchanged. `collection` keeps apart the ids of two stores
    that share one cache store.
    """

    def __init__(
        self, inner: VectorStore, llm: ChatSamKV | SamKVEngine, *, collection: str = "", min_chars: int = MIN_CHARS
    ) -> None:
        if not isinstance(inner, VectorStore):
            raise SamKVError(f"A ChunkKVVectorStore wraps a vector store, not a {type(inner).__name__}.")
        self.inner = inner
        self._keeper = Keeper(llm, collection, min_chars)

    @property
    def embeddings(self) -> Embeddings | None:
        """The wrapped store's embeddings."""
        return self.inner.embeddings

    # -- adding and deleting -----------------------------------------------------------------------------------

    def add_texts(
        self, texts: Iterable[str], metadatas: list[dict[str, Any]] | None = None, *, ids: list[str] | None = None,
        **kwargs: Any,
    ) -> list[str]:  # fmt: skip
        """Cache the texts and add them; returns their ids. Nothing is added if caching fails."""
        listed = list(texts)
        with self._keeper.cached(listed):
            new = self.inner.add_texts(listed, metadatas, **_given(ids), **kwargs)
            self._keeper.own(new, listed)
        return new

    async def aadd_texts(
        self, texts: Iterable[str], metadatas: list[dict[str, Any]] | None = None, *, ids: list[str] | None = None,
        **kwargs: Any,
    ) -> list[str]:  # fmt: skip
        """Like `add_texts`, without blocking the event loop while the model works."""
        listed = list(texts)
        async with self._keeper.acached(listed):
            new = await self.inner.aadd_texts(listed, metadatas, **_given(ids), **kwargs)
            await in_thread(self._keeper.own, new, listed)
        return new

    def add_documents(self, documents: list[Document], **kwargs: Any) -> list[str]:
        """Cache the documents' texts and add them; returns their ids."""
        texts = [document.page_content for document in documents]
        with self._keeper.cached(texts):
            new = self.inner.add_documents(documents, **kwargs)
            self._keeper.own(new, texts)
        return new

    async def aadd_documents(self, documents: list[Document], **kwargs: Any) -> list[str]:
        """Like `add_documents`, without blocking the event loop while the model works."""
        texts = [document.page_content for document in documents]
        async with self._keeper.acached(texts):
            new = await self.inner.aadd_documents(documents, **kwargs)
            await in_thread(self._keeper.own, new, texts)
        return new

    def delete(self, ids: list[str] | None = None, **kwargs: Any) -> bool | None:
        """Delete documents, and the caches that no other document needs.

        Without `ids` (by a filter, or all) the deleted documents are those that the wrapped store lists before and not
        after. If it cannot list its documents, their caches are kept, with a warning.
        """
        known = self._listed() if ids is None else set(ids)
        done = self.inner.delete(ids, **kwargs)
        if done is not False:
            left = self._listed() if ids is None and known else set[str]()
            self._keeper.release(known - left)
        return done

    async def adelete(self, ids: list[str] | None = None, **kwargs: Any) -> bool | None:
        """Like `delete`, without blocking the event loop while documents are listed and caches released."""
        known = await asyncio.to_thread(self._listed) if ids is None else set(ids)
        done = await self.inner.adelete(ids, **kwargs)
        if done is not False:
            left = await asyncio.to_thread(self._listed) if ids is None and known else set[str]()
            await in_thread(self._keeper.release, known - left)
        return done

    def _listed(self) -> set[str]:
        """The ids of the wrapped store's documents; none, and a warning, if it does not list them."""
        try:
            return {str(document.id) for document in stored_documents(self.inner)}
        except SamKVError:
            logger.warning(
                "%s deletes documents without saying which; their caches stay in the KV store. Delete by ids to remove "
                "them, or give the store max_bytes.", type(self.inner).__name__,
            )  # fmt: skip
            return set()

    @classmethod
    def from_texts(
        cls, texts: list[str], embedding: Embeddings, metadatas: list[dict[str, Any]] | None = None, *,
        ids: list[str] | None = None, llm: ChatSamKV | SamKVEngine | None = None,
        store_class: type[VectorStore] = InMemoryVectorStore, collection: str = "", min_chars: int = MIN_CHARS,
        **kwargs: Any,
    ) -> ChunkKVVectorStore:  # fmt: skip
        """A new store of `store_class` with these texts, cached for `llm`."""
        if llm is None:
            raise TypeError("ChunkKVVectorStore.from_texts needs llm=, the ChatSamKV (or engine) to cache for.")
        keeper = Keeper(llm, collection, min_chars)
        ids = ids or [str(uuid.uuid4()) for _ in texts]
        with keeper.cached(texts):
            inner = store_class.from_texts(texts, embedding, metadatas, ids=ids, **kwargs)
            keeper.own(ids, texts)
        return cls(inner, llm, collection=collection, min_chars=min_chars)

    # -- searching: the wrapped store's own --------------------------------------------------------------------

    def get_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        return self.inner.get_by_ids(ids)

    async def aget_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        return await self.inner.aget_by_ids(ids)

    def similarity_search(self, query: str, k: int = 4, **kwargs: Any) -> list[Document]:
        return self.inner.similarity_search(query, k=k, **kwargs)

    async def asimilarity_search(self, query: str, k: int = 4, **kwargs: Any) -> list[Document]:
        return await self.inner.asimilarity_search(query, k=k, **kwargs)

    def similarity_search_with_score(self, *args: Any, **kwargs: Any) -> Scored:
        return self.inner.similarity_search_with_score(*args, **kwargs)

    async def asimilarity_search_with_score(self, *args: Any, **kwargs: Any) -> Scored:
        return await self.inner.asimilarity_search_with_score(*args, **kwargs)

    def similarity_search_with_relevance_scores(self, query: str, k: int = 4, **kwargs: Any) -> Scored:
        return self.inner.similarity_search_with_relevance_scores(query, k=k, **kwargs)

    async def asimilarity_search_with_relevance_scores(self, query: str, k: int = 4, **kwargs: Any) -> Scored:
        return await self.inner.asimilarity_search_with_relevance_scores(query, k=k, **kwargs)

    def similarity_search_by_vector(self, embedding: list[float], k: int = 4, **kwargs: Any) -> list[Document]:
        return self.inner.similarity_search_by_vector(embedding, k=k, **kwargs)

    async def asimilarity_search_by_vector(self, embedding: list[float], k: int = 4, **kwargs: Any) -> list[Document]:
        return await self.inner.asimilarity_search_by_vector(embedding, k=k, **kwargs)

    def max_marginal_relevance_search(self, query: str, *args: Any, **kwargs: Any) -> list[Document]:
        return self.inner.max_marginal_relevance_search(query, *args, **kwargs)

    async def amax_marginal_relevance_search(self, query: str, *args: Any, **kwargs: Any) -> list[Document]:
        return await self.inner.amax_marginal_relevance_search(query, *args, **kwargs)

    def max_marginal_relevance_search_by_vector(
        self, embedding: list[float], *args: Any, **kwargs: Any
    ) -> list[Document]:  # fmt: skip
        return self.inner.max_marginal_relevance_search_by_vector(embedding, *args, **kwargs)

    async def amax_marginal_relevance_search_by_vector(
        self, embedding: list[float], *args: Any, **kwargs: Any
    ) -> list[Document]:  # fmt: skip
        return await self.inner.amax_marginal_relevance_search_by_vector(embedding, *args, **kwargs)

    def _select_relevance_score_fn(self) -> Callable[[float], float]:
        return self.inner._select_relevance_score_fn()


def _given(ids: list[str] | None) -> dict[str, Any]:
    """Keywords with `ids` only if there are any: not every store's `add_texts` takes them."""
    return {} if ids is None else {"ids": ids}
