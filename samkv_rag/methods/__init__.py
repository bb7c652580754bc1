"""Methods, one file each. To add one: a file here, its class in `_CLASSES`, a line in `tests/cases.py`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from samkv_rag.errors import SamKVError
from samkv_rag.methods.anchors_only import AnchorsOnly
from samkv_rag.methods.base import Method
from samkv_rag.methods.cacheblend import CacheBlend
from samkv_rag.methods.epic import Epic
from samkv_rag.methods.full import Full
from samkv_rag.methods.infoflow import InfoFlow
from samkv_rag.methods.multi_infllm import MultiInfLLM
from samkv_rag.methods.no_context import NoContext
from samkv_rag.methods.prepared import Prepared
from samkv_rag.methods.prophetkv import ProphetKV
from samkv_rag.methods.random import Random
from samkv_rag.methods.random_rest import RandomRest
from samkv_rag.methods.reuse import Reuse
from samkv_rag.methods.run import Run
from samkv_rag.methods.samkv import SamKV

_CLASSES = (
    Full,
    Reuse,
    SamKV,
    CacheBlend,
    Epic,
    MultiInfLLM,
    ProphetKV,
    InfoFlow,
    Random,
    RandomRest,
    AnchorsOnly,
    NoContext,
)

METHODS: Mapping[str, Any] = {method.name: method for method in _CLASSES}
"""Methods by name: what `method="..."` means."""

__all__ = [
    "METHODS",
    "AnchorsOnly",
    "CacheBlend",
    "Epic",
    "Full",
    "InfoFlow",
    "Method",
    "MultiInfLLM",
    "NoContext",
    "Prepared",
    "ProphetKV",
    "Random",
    "RandomRest",
    "Reuse",
    "Run",
    "SamKV",
    "resolve_method",
]


def resolve_method(method: str | Method, keep: float | None = None) -> Method:
    """Resolve a method's name and set its `keep`; raises `SamKVError` on an unknown name or a method without one."""
    if isinstance(method, str):
        if method not in METHODS:
            hint = "; one with options is an object, such as SamKV(recompute=0.33)" if ":" in method else ""
            raise SamKVError(f"There is no method {method!r}; choose one of: {', '.join(METHODS)}{hint}.")
        method = METHODS[method]()
    if isinstance(method, type):
        raise SamKVError(f"A method is an object, not a class: pass {method.__name__}().")
    if not isinstance(method, Method):
        raise SamKVError("A method is a name or an object with a name and prepare(run).")
    if keep is None:
        return method
    return _with_keep(method, keep)


def _with_keep(method: Method, keep: float) -> Method:
    from dataclasses import fields, is_dataclass, replace

    if not is_dataclass(method) or isinstance(method, type) or "keep" not in {f.name for f in fields(method)}:
        raise SamKVError(f"Method {method.name!r} has no keep; it keeps every chunk token.")
    return replace(method, keep=keep)
