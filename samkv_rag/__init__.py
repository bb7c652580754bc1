"""samkv-rag: answer from cached chunks, with about 15 % of their tokens recomputed.

Every retrieved chunk's keys and values are computed once, at ingestion. The tokens that matter to a question are
recomputed so that they attend to the other chunks; before the answer goes on, what the question does not attend to is
packed into four bits per number, or dropped (SamKV, AAAI 2026).

    engine = SamKVEngine.from_pretrained("bundled", store="./kv")
    engine.precompute(texts)
    print(engine.answer("Where is Lumen Labs based?", chunks=texts).text)

Shape letters in the docstrings: L layers, H query heads, G key/value heads, D head dimension, T kept tokens, Q question
tokens, B blocks, C chunks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from samkv_rag.engine import SamKVEngine
    from samkv_rag.errors import SamKVError
    from samkv_rag.methods import Full, Reuse, SamKV
    from samkv_rag.store import ChunkKVStore
    from samkv_rag.types import Answer, PromptPlan, Report, Usage

__version__ = "0.1.0"

_HOMES = {
    "SamKVEngine": "samkv_rag.engine",
    "SamKVError": "samkv_rag.errors",
    "Full": "samkv_rag.methods",
    "Reuse": "samkv_rag.methods",
    "SamKV": "samkv_rag.methods",
    "ChunkKVStore": "samkv_rag.store",
    "Answer": "samkv_rag.types",
    "PromptPlan": "samkv_rag.types",
    "Report": "samkv_rag.types",
    "Usage": "samkv_rag.types",
}

__all__ = [
    "Answer",
    "ChunkKVStore",
    "Full",
    "PromptPlan",
    "Report",
    "Reuse",
    "SamKV",
    "SamKVEngine",
    "SamKVError",
    "Usage",
    "__version__",
]


def __getattr__(name: str) -> Any:
    """Import public names on first access, so that `import samkv_rag` does not load torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
