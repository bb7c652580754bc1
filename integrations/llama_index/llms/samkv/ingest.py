"""Cache chunks while they are ingested, or those of an existing index."""

from __future__ import annotations

from collections.abc import Sequence
from inspect import signature
from typing import Any, NoReturn

from llama_index.core.bridge.pydantic import Field, PrivateAttr
from llama_index.core.indices.base import BaseIndex
from llama_index.core.indices.vector_store.base import VectorStoreIndex
from llama_index.core.schema import BaseNode, TransformComponent
from llama_index.core.storage.docstore.types import BaseDocumentStore
from llama_index.core.vector_stores.types import BasePydanticVectorStore

from llama_index.llms.samkv.fields import SamKVFields
from llama_index.llms.samkv.nodes import Cacheable, ModeName, texts_of
from samkv_rag import SamKVEngine, SamKVError
from samkv_rag.threads import stoppable

EngineSource = SamKVEngine | SamKVFields

_ALL = 2**31 - 1


def engine_of(llm: EngineSource) -> SamKVEngine:
    """The engine itself, or the one behind a `SamKVLLM`."""
    if isinstance(llm, SamKVEngine):
        return llm
    if isinstance(llm, SamKVFields):
        return llm.engine
    raise SamKVError(f"Chunks are cached by a SamKVLLM or a SamKVEngine, not by a {type(llm).__name__}; pass llm=...")


class ChunkKVIngest(TransformComponent):
    """A pipeline step that stores the caches of the nodes passing through; the nodes are left unchanged.

    Put it after the splitter. `store_id` and `model_fingerprint` are fields so that a persisted `IngestionCache` never
    skips this step for another store or another model. A pipeline's steps are not informed of deleted documents: wrap
    the vector store in a `ChunkKVVectorStore` for that.

        pipeline = IngestionPipeline(transformations=[SentenceSplitter(), ChunkKVIngest(llm=llm), embed_model])
    """

    store_id: str = Field(description="The KV store that is filled.")
    model_fingerprint: str = Field(description="The model whose caches are made.")
    namespace: str = Field(default="default", description="The engine's namespace.")
    metadata_mode: ModeName = Field(default="none", description='"none": the body; "llm": metadata header and body.')
    metadata_key: str | None = Field(default=None, description="Cache this metadata instead of the text.")

    _engine: SamKVEngine = PrivateAttr()

    def __init__(self, llm: EngineSource, **fields: Any) -> None:
        engine = engine_of(llm)
        made_by_engine = {
            "store_id": engine.store.store_id,
            "model_fingerprint": engine.fingerprint,
            "namespace": engine.namespace,
        }
        super().__init__(**{**fields, **made_by_engine})
        self._engine = engine

    @classmethod
    def class_name(cls) -> str:
        return "ChunkKVIngest"

    def __call__(self, nodes: Sequence[BaseNode], **kwargs: Any) -> Sequence[BaseNode]:
        self._engine.precompute(
            texts_of(nodes, self.metadata_mode, self.metadata_key), progress=bool(kwargs.get("show_progress"))
        )
        return nodes

    async def acall(self, nodes: Sequence[BaseNode], **kwargs: Any) -> Sequence[BaseNode]:
        """Like `__call__`, in a thread, which stops after a batch if the task is cancelled and no progress is shown."""
        texts, shown = texts_of(nodes, self.metadata_mode, self.metadata_key), bool(kwargs.get("show_progress"))
        await stoppable(lambda progress: self._engine.precompute(texts, shown or progress))
        return nodes

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> ChunkKVIngest:
        return self.model_copy()

    def __getstate__(self) -> NoReturn:
        raise SamKVError(
            "ChunkKVIngest holds a model and cannot be sent to worker processes; run the pipeline without num_workers, "
            "or split and embed in workers and call precompute_index(nodes, llm) afterwards."
        )


def precompute_index(
    source: BaseIndex[Any] | BaseDocumentStore | BasePydanticVectorStore | Cacheable, llm: EngineSource,
    metadata_mode: ModeName = "none", metadata_key: str | None = None, progress: bool = False,
) -> list[str]:  # fmt: skip
    """Store the caches of everything in an index, a docstore, a vector store or a list of nodes; returns the keys.

    Nothing is embedded again. Idempotent: what is already stored costs nothing.
    """
    nodes = nodes_in(source)
    return engine_of(llm).precompute(texts_of(nodes, metadata_mode, metadata_key), progress=progress)


def nodes_in(source: Any) -> Cacheable:
    """The nodes an index retrieves from: those of its docstore, else those of a vector store that keeps texts."""
    if isinstance(source, BaseIndex):
        found = _nodes_of_index(source)
        if not found and isinstance(source, VectorStoreIndex):
            return nodes_in(source.vector_store)
        return found
    if isinstance(source, BaseDocumentStore):
        return list(source.docs.values())
    if isinstance(source, BasePydanticVectorStore):
        return _nodes_of_store(source)
    if isinstance(source, Sequence):
        return source
    raise SamKVError(f"There are no nodes in a {type(source).__name__}; pass an index, a docstore or a list of nodes.")


def _nodes_of_index(index: BaseIndex[Any]) -> list[BaseNode]:
    """An index's nodes. A docstore keeps those deleted from the index: they are left out if the index lists its own."""
    docs = index.docstore.docs
    listed = getattr(index.index_struct, "nodes_dict", None)
    if listed is None:
        return list(docs.values())
    return [docs[node_id] for node_id in listed.values() if node_id in docs]


def _nodes_of_store(store: BasePydanticVectorStore) -> list[BaseNode]:
    """All nodes of a store. Qdrant's lists the first 9999 unless a limit is passed; PostgreSQL's needs a list of ids,
    and takes an empty one to mean all."""
    unlimited = {"limit": _ALL} if "limit" in signature(store.get_nodes).parameters else {}
    try:
        try:
            return list(store.get_nodes(None, None, **unlimited))
        except AssertionError:
            return list(store.get_nodes([], None, **unlimited))
    except (NotImplementedError, TypeError, ValueError, AssertionError) as error:
        raise SamKVError(
            f"{type(store).__name__} does not hand out its nodes ({error}); pass the docstore or the nodes instead."
        ) from error
