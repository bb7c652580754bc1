"""SamKV for LlamaIndex: change the LLM line, add an ingestion hook, nothing else.

`SamKVLLM` finds cached chunks in any prompt by their text. `ChunkKVIngest` (a pipeline step), `ChunkKVVectorStore`
(around any vector store) or `precompute_index` (for an existing index) store the caches. `SamKVReuseEvent` is sent
on the instrumentation dispatcher after every answer.
"""

try:
    import llama_index.core  # noqa: F401
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "llama_index.llms.samkv needs llama-index-core: pip install 'samkv-rag[llama-index]'", name=error.name
    ) from error

from llama_index.llms.samkv.base import SamKVLLM
from llama_index.llms.samkv.ingest import ChunkKVIngest, precompute_index
from llama_index.llms.samkv.reuse import Explanation, ReuseStats, SamKVReuseEvent
from llama_index.llms.samkv.vector_store import ChunkKVVectorStore
from samkv_rag import ChunkKVStore, SamKV, SamKVEngine

__all__ = [
    "ChunkKVIngest",
    "ChunkKVStore",
    "ChunkKVVectorStore",
    "Explanation",
    "ReuseStats",
    "SamKV",
    "SamKVEngine",
    "SamKVLLM",
    "SamKVReuseEvent",
    "precompute_index",
]
