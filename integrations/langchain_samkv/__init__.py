"""SamKV for LangChain.

The integration of this release re-exports the engine: `SamKVEngine`, its method `SamKV` and the `ChunkKVStore`, to be
called from a `RunnableLambda` or a tool. The chat model class for LangChain lands in the next version.
"""

from samkv_rag import ChunkKVStore, SamKV, SamKVEngine

__all__ = ["ChunkKVStore", "SamKV", "SamKVEngine"]
