"""The engines behind a framework's model object, shared by its copies: frameworks copy such objects for many calls."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any, Self

import torch

from samkv_rag.engine import SamKVEngine
from samkv_rag.errors import SamKVError
from samkv_rag.methods import Method, SamKV, resolve_method
from samkv_rag.store import ChunkKVStore

Settings = Mapping[str, Any]
"""The keywords of `SamKVEngine.from_pretrained` that its model and its caches depend on: all but the method."""


def settings_of(engine: SamKVEngine) -> dict[str, Any]:
    """What a framework's model object may say that is its engine's, as it has it: all but the model and the method."""
    source = engine.source
    return {
        "namespace": engine.namespace, "min_kept_tokens": engine.min_kept_tokens, "kv_store": engine.store,
        "tokenizer": source.tokenizer, "device_map": source.device_map, "dtype": source.dtype,
        "model_kwargs": dict(source.model_kwargs), "kv_dtype": source.kv_dtype,
    }  # fmt: skip


def require_known(owner: str, said: Iterable[str], known: Iterable[str], more: Iterable[str] = ()) -> None:
    """Raises `SamKVError` where a model object is told something that it does not know, such as a misspelt keyword; it
    takes `more` than it names."""
    if unknown := sorted({*said} - {*known, *more}):
        raise SamKVError(f"{owner} has no {', '.join(unknown)}; it has: {', '.join(known)}.")


def require_same(engine: SamKVEngine, **said: Any) -> None:
    """Raises `SamKVError` where what is said beside an engine that was given is one of its settings, and another:
    another namespace would mix up tenants, and none is passed over in silence."""
    for name, has in settings_of(engine).items():
        if name in said and not _alike(has, said[name]):
            raise SamKVError(
                f"The engine that was given has {name}={has!r}, not {said[name]!r}; give one that has it, "
                "or name a model instead."
            )


def _alike(has: Any, said: Any) -> bool:
    """Whether two settings are the same: a store and its folder, a dtype and its name are."""
    if isinstance(has, ChunkKVStore) and isinstance(said, str | PathLike):
        path = has.stats().path
        return str(said) == path or Path(said).expanduser().absolute() == Path(path)
    if isinstance(has, torch.dtype) or isinstance(said, torch.dtype):
        return str(has).removeprefix("torch.") == str(said).removeprefix("torch.")
    return bool(has == said)


def own_method(named: str | Method | None, given: SamKVEngine | None) -> str | Method | None:
    """The method of a model object that names this one, `SamKV()` where it names none. With an engine that was given,
    None and bare names are that engine's to read."""
    if given is not None:
        return named
    return resolve_method(named or SamKV())


def require_keep(keep: float | None, named: str | Method | None, given: SamKVEngine | None) -> None:
    """Raises `SamKVError` where a model object has a `keep` and the method that it names none to put it into."""
    if keep is not None:
        resolve_method(own_method(named, given) or (given.method if given else SamKV()), keep)


def meant(keywords: Mapping[str, Any], own: str | Method | None, given: SamKVEngine | None) -> dict[str, Any]:
    """What a call's keywords say: None says nothing, and a method's bare name is the object's `own` method where that
    is called so, with its options."""
    said = {name: value for name, value in keywords.items() if value is not None}
    if "method" in said:
        same = isinstance(own, Method) and said["method"] == own.name
        said["method"] = own if same else own_method(said["method"], given)
    return said


class Engines:
    """One engine for all who ask for the same settings. What is pickled is empty: another process loads anew."""

    def __init__(self) -> None:
        self._made: list[tuple[Settings, SamKVEngine]] = []
        self._making = threading.RLock()

    def get(self, settings: Settings, method: str | Method | None) -> SamKVEngine:
        """The engine with these settings, made with the `method` of who asks first: calls say theirs."""
        with self._making:
            engine = next((engine for known, engine in self._made if known == settings), None)
            if engine is None:
                engine = SamKVEngine.from_pretrained(**settings, method=own_method(method, None))
                self._made.append((settings, engine))
            return engine

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def __reduce__(self) -> tuple[Callable[[], Self], tuple[()]]:
        return type(self), ()
