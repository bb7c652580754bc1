"""The engines behind a chat model, which its copies share: LangChain makes a copy for every configured call."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

from langchain_samkv.messages import Roles
from samkv_rag import SamKVEngine

Settings = Mapping[str, Any]
"""The keywords of `SamKVEngine.from_pretrained` that its model and its caches depend on: all but the method."""


class Engines:
    """One engine for all who ask for the same settings. What is pickled is empty: another process loads anew."""

    def __init__(self) -> None:
        self._made: list[tuple[Settings, SamKVEngine]] = []
        self._roles: dict[SamKVEngine, Roles] = {}
        self._making = threading.RLock()

    def get(self, settings: Settings, method: Any) -> SamKVEngine:
        """The engine with these settings, made for who asks first, with its `method`."""
        with self._making:
            engine = next((engine for known, engine in self._made if known == settings), None)
            if engine is None:
                engine = SamKVEngine.from_pretrained(**settings, method=method)
                self._made.append((settings, engine))
            return engine

    def roles(self, engine: SamKVEngine) -> Roles:
        """The roles that the chat template of an engine's model can carry, found once."""
        with self._making:
            if engine not in self._roles:
                self._roles[engine] = Roles.of(engine.tokenizer)
            return self._roles[engine]

    def __deepcopy__(self, memo: dict[int, Any]) -> Engines:
        return self

    def __reduce__(self) -> tuple[Callable[[], Engines], tuple[()]]:
        return Engines, ()


def fields_of(engine: SamKVEngine) -> dict[str, Any]:
    """What the fields of a chat model over this engine are."""
    source = engine.source
    return {
        "model": source.name, "tokenizer": source.tokenizer, "kv_store": engine.store, "method": engine.method,
        "namespace": engine.namespace, "min_kept_tokens": engine.min_kept_tokens, "device_map": source.device_map,
        "dtype": source.dtype, "model_kwargs": dict(source.model_kwargs),
    }  # fmt: skip
