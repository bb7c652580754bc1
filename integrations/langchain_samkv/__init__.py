"""SamKV for LangChain: a chat model that answers from chunk caches, and the hook that fills them.

llm = ChatSamKV(model="bundled", kv_store="./kv")
store = ChunkKVVectorStore(InMemoryVectorStore(embeddings), llm=llm)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from samkv_rag import ChunkKVStore, SamKV, SamKVEngine

if TYPE_CHECKING:
    from langchain_samkv.chat_models import ChatSamKV
    from langchain_samkv.ingestion import precompute
    from langchain_samkv.vectorstores import ChunkKVVectorStore

_HOMES = {"ChatSamKV": "chat_models", "ChunkKVVectorStore": "vectorstores", "precompute": "ingestion"}

__all__ = ["ChatSamKV", "ChunkKVStore", "ChunkKVVectorStore", "SamKV", "SamKVEngine", "precompute"]


def __getattr__(name: str) -> Any:
    """Import what needs langchain-core on first access."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    try:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("langchain_core"):
            raise ImportError(f"{name} needs langchain-core: pip install 'samkv-rag[langchain]'.") from error
        raise
