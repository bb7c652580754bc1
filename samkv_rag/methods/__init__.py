"""Methods, one file each. Adding one: a file here, a line in `METHODS`, a line in `tests/cases.py`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from samkv_rag.errors import SamKVError
from samkv_rag.methods.base import Method
from samkv_rag.methods.full import Full
from samkv_rag.methods.reuse import Reuse
from samkv_rag.methods.run import Prepared, Run
from samkv_rag.methods.samkv import SamKV

METHODS: Mapping[str, Any] = {"full": Full, "reuse": Reuse, "samkv": SamKV}

__all__ = ["METHODS", "Full", "Method", "Prepared", "Reuse", "Run", "SamKV", "resolve_method"]


def resolve_method(method: str | Method, keep: float | None = None) -> Method:
    """A method from its name, and `keep` put into it; raises `SamKVError` on an unknown name or a method without it."""
    if isinstance(method, str):
        if method not in METHODS:
            raise SamKVError(f"There is no method {method!r}; choose one of: {', '.join(METHODS)}.")
        method = METHODS[method]()
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
