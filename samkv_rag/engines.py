"""The engines behind a framework's model object, shared by its copies: frameworks copy such objects for many calls."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any, Self

from samkv_rag.engine import SamKVEngine
from samkv_rag.errors import SamKVError
from samkv_rag.methods import SamKV

Settings = Mapping[str, Any]
"""The keywords of `SamKVEngine.from_pretrained` that its model and its caches depend on: all but the method."""
FOR_ANSWERS = SamKV(settle_at=8)
"""The method of a framework's model object that names none. People ask for lists and sentences: by their first token
alone too little can be told of what they will need, by eight it can (docs/benchmarks.md)."""


def require_namespace(engine: SamKVEngine, namespace: str) -> None:
    """Raises `SamKVError` where an engine that was given serves another namespace: tenants must not be mixed up."""
    if engine.namespace != namespace:
        raise SamKVError(
            f"The engine that was given serves the namespace {engine.namespace!r}, not {namespace!r}; give one for "
            "it, or name a model instead."
        )


class Engines:
    """One engine for all who ask for the same settings. What is pickled is empty: another process loads anew."""

    def __init__(self) -> None:
        self._made: list[tuple[Settings, SamKVEngine]] = []
        self._making = threading.RLock()

    def get(self, settings: Settings, method: Any) -> SamKVEngine:
        """The engine with these settings, made for who asks first, with its `method`; without one for answers."""
        with self._making:
            engine = next((engine for known, engine in self._made if known == settings), None)
            if engine is None:
                engine = SamKVEngine.from_pretrained(**settings, method=method or FOR_ANSWERS)
                self._made.append((settings, engine))
            return engine

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def __reduce__(self) -> tuple[Callable[[], Self], tuple[()]]:
        return type(self), ()
