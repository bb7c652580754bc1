"""Caches follow documents: each is kept as long as any document needs it, however many share its text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import TYPE_CHECKING, Any, NoReturn

from langchain_core.documents import Document
from langchain_core.runnables import Runnable
from langchain_core.runnables.base import RunnableBindingBase
from langchain_core.vectorstores import VectorStore

from samkv_rag import SamKVEngine, SamKVError
from samkv_rag.adding import Adding, own
from samkv_rag.engines import space_of
from samkv_rag.prompt.matcher import MIN_CHARS

if TYPE_CHECKING:
    from langchain_samkv.chat_models import ChatSamKV

_PAGE = 1000


class Keeper:
    """Caches texts for document ids in one collection; an id is the owner of its text's cache."""

    def __init__(self, llm: ChatSamKV | SamKVEngine, collection: str, min_chars: int) -> None:
        if not isinstance(llm, SamKVEngine | Runnable):
            _refuse(llm)
        self._llm = llm
        self._collection = collection
        self._min_chars = min_chars
        self._adding = Adding()

    @property
    def engine(self) -> SamKVEngine:
        """The engine, made on first use."""
        return engine_of(self._llm)

    @property
    def _prefix(self) -> str:
        """What the names of owners begin with: two tenants may have documents of the same ids, and often do, where ids
        are made of contents."""
        return f"{space_of(self.engine)}{_escaped(self._collection)}/"  # the first slash ends the collection

    def cached(self, texts: Sequence[str]) -> AbstractContextManager[None]:
        """Cache `texts`, and hold the caches until the block has given them their owners (or failed: then what was
        made for it is deleted)."""
        return self._adding.held(self.engine, self.worth(texts))

    def acached(self, texts: Sequence[str]) -> AbstractAsyncContextManager[None]:
        """Like `cached`, with the model working in a thread, which stops after a batch if the task is cancelled."""
        return self._adding.aheld(self.engine, self.worth(texts))

    def own(self, ids: Sequence[str], texts: Sequence[str]) -> None:
        """Make each id the owner of its text's cache, and of no other."""
        prefix = self._prefix
        own(self.engine, {prefix + id: "".join(self.worth([text])) for id, text in zip(ids, texts, strict=True)})

    def release(self, ids: Iterable[str]) -> None:
        """Release the caches that these documents own."""
        prefix = self._prefix
        for id in ids:
            self.engine.release(prefix + id)

    def worth(self, texts: Iterable[str]) -> list[str]:
        """The texts that are long enough to be cached."""
        return [text for text in texts if len(text.strip()) >= self._min_chars]


def engine_of(llm: Any) -> SamKVEngine:
    """The engine itself, or the one behind a `ChatSamKV`, which may be bound, retried or have fallbacks."""
    while isinstance(llm, RunnableBindingBase):
        llm = llm.bound
    engine = llm if isinstance(llm, SamKVEngine) else getattr(llm, "engine", None)
    return engine if isinstance(engine, SamKVEngine) else _refuse(llm)


def _refuse(llm: Any) -> NoReturn:
    raise SamKVError(f"Chunks are cached by a ChatSamKV or a SamKVEngine, not by a {type(llm).__name__}; pass llm=...")


def _escaped(name: str) -> str:
    return name.replace("%", "%25").replace("/", "%2F")


def precompute(
    llm: ChatSamKV | SamKVEngine, documents: VectorStore | Iterable[Document | str] | Document, *,
    ids: Sequence[str] | None = None, collection: str = "", min_chars: int = MIN_CHARS,
) -> int:  # fmt: skip
    """Cache documents that are already indexed, without embedding them again; returns how many texts are cached now.

    `documents`: documents, texts, or a vector store. For a store that cannot list its documents, pass the `ids`.
    Documents with an id own their caches, so that a `ChunkKVVectorStore` over the same store (and with the same
    `collection`) releases them on deletion.
    """
    if isinstance(documents, str | Document):
        documents = [documents]
    found = stored_documents(documents, ids) if isinstance(documents, VectorStore) else documents
    listed = [Document(page_content=item) if isinstance(item, str) else item for item in found]
    for number, item in enumerate(listed):
        if not isinstance(item, Document):
            raise SamKVError(f"Item {number} of the documents is no Document and no text, but {item!r}.")
    keeper = Keeper(llm, collection, min_chars)
    owned = [document for document in listed if document.id is not None]
    keys = keeper.engine.precompute(keeper.worth(document.page_content for document in listed))
    keeper.own([str(document.id) for document in owned], [document.page_content for document in owned])
    return len(set(keys))


def stored_documents(store: VectorStore, ids: Sequence[str] | None = None) -> list[Document]:
    """The documents in a vector store; raises `SamKVError` if it cannot list them and no `ids` are given."""
    if isinstance(getattr(store, "_keeper", None), Keeper):  # a ChunkKVVectorStore stands for the store it wraps
        store = getattr(store, "inner")  # noqa: B009
    if ids is not None:
        return store.get_by_ids(ids)
    for listing in (_in_memory, _faiss, _chroma, _qdrant, _postgres):
        documents = listing(store)
        if documents is not None:
            return documents
    raise SamKVError(
        f"{type(store).__name__} does not list its documents; pass ids=[...], or the documents instead of the store."
    )


def _in_memory(store: Any) -> list[Document] | None:
    entries = getattr(store, "store", None)
    return store.get_by_ids(list(entries)) if isinstance(entries, Mapping) else None


def _faiss(store: Any) -> list[Document] | None:
    entries = getattr(getattr(store, "docstore", None), "_dict", None)
    if not isinstance(entries, Mapping):
        return None
    return [Document(id=id, page_content=item.page_content) for id, item in entries.items()]


def _chroma(store: Any) -> list[Document] | None:
    if not hasattr(store, "_collection") or not hasattr(store, "get"):
        return None
    entries = store.get(include=["documents"])
    pairs = zip(entries["ids"], entries["documents"], strict=True)
    return [Document(id=id, page_content=text) for id, text in pairs if text]


def _qdrant(store: Any) -> list[Document] | None:
    scroll = getattr(getattr(store, "client", None), "scroll", None)
    if scroll is None or not hasattr(store, "content_payload_key"):
        return None
    found, page = list[Document](), None
    while True:
        points, page = scroll(store.collection_name, limit=_PAGE, offset=page, with_payload=True)
        texts = [(point.id, (point.payload or {}).get(store.content_payload_key)) for point in points]
        found += [Document(id=str(id), page_content=text) for id, text in texts if text]
        if page is None:
            return found


def _postgres(store: Any) -> list[Document] | None:
    """PGVector in its synchronous mode; for an asynchronous one, pass `ids`."""
    rows = getattr(store, "EmbeddingStore", None)
    if rows is None or getattr(store, "async_mode", True):
        return None
    with store.session_maker() as session:
        collection = store.get_collection(session)
        entries = session.query(rows.id, rows.document).filter(rows.collection_id == collection.uuid)
        return [Document(id=id, page_content=text) for id, text in entries if text]
