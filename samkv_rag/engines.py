"""The engines behind a framework's model object, shared by its copies: frameworks copy such objects for many calls."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

import torch

from samkv_rag.engine import SamKVEngine
from samkv_rag.errors import SamKVError
from samkv_rag.methods import Method, SamKV, resolve_method
from samkv_rag.paths import expanded
from samkv_rag.store import ChunkKVStore

Settings = Mapping[str, Any]
"""The keywords of `SamKVEngine.from_pretrained` that an engine's model and caches depend on: all but the method."""


def settings_of(engine: SamKVEngine) -> dict[str, Any]:
    """The settings of an engine that a framework's model object may state too: all but the model and the method."""
    source = engine.source
    return {
        "namespace": engine.namespace, "min_kept_tokens": engine.min_kept_tokens, "kv_store": engine.store,
        "tokenizer": source.tokenizer, "device_map": source.device_map, "dtype": source.dtype,
        "model_kwargs": dict(source.model_kwargs), "kv_dtype": source.kv_dtype,
    }  # fmt: skip


def space_of(engine: SamKVEngine) -> str:
    """What names of owners begin with in an engine's namespace, as no name in the default one does: there it is empty.
    (In a quoted name, two digits follow a percent sign.)"""
    return "" if engine.namespace == "default" else f"%n{quote(engine.namespace, safe='')}/"


def require_known(owner: str, said: Iterable[str], known: Iterable[str], more: Iterable[str] = ()) -> None:
    """Raise `SamKVError` if a model object is passed something that it does not know, such as a misspelt keyword; it
    accepts `more` than the error names."""
    if unknown := sorted({*said} - {*known, *more}):
        raise SamKVError(f"{owner} has no {', '.join(unknown)}; it has: {', '.join(known)}.")


def require_same(engine: SamKVEngine, **said: Any) -> None:
    """Raise `SamKVError` if a setting that is passed beside a given engine differs from that engine's: a different
    namespace would mix up tenants, and no setting is ignored in silence."""
    for name, has in settings_of(engine).items():
        if name in said and not _alike(has, said[name]):
            raise SamKVError(
                f"The engine that was given has {name}={has!r}, not {said[name]!r}; give one that has it, "
                "or name a model instead."
            )


def _alike(has: Any, said: Any) -> bool:
    """Whether two settings are the same, as a store and its folder are, or a dtype and its name."""
    if isinstance(has, ChunkKVStore) and isinstance(said, str | PathLike):
        path = has.stats().path
        return str(said) == path or expanded(said).absolute() == Path(path)
    if isinstance(has, torch.dtype) or isinstance(said, torch.dtype):
        return str(has).removeprefix("torch.") == str(said).removeprefix("torch.")
    return bool(has == said)


def own_method(named: str | Method | None, given: SamKVEngine | None) -> str | Method | None:
    """The method of a model object that names `named`; `SamKV()` if it names none. With a `given` engine, None and bare
    names are left to that engine to interpret."""
    if given is not None:
        return named
    return resolve_method(named or SamKV())


def require_keep(keep: float | None, named: str | Method | None, given: SamKVEngine | None) -> None:
    """Raise `SamKVError` if a model object has a `keep` but the method that it names has none."""
    if keep is not None:
        resolve_method(own_method(named, given) or (given.method if given else SamKV()), keep)


def meant(keywords: Mapping[str, Any], own: str | Method | None, given: SamKVEngine | None) -> dict[str, Any]:
    """What a call's keywords mean: None is no value, and a method's bare name means the object's `own` method, with its
    options, if that has this name."""
    said = {name: value for name, value in keywords.items() if value is not None}
    if "method" in said:
        same = isinstance(own, Method) and said["method"] == own.name
        said["method"] = own if same else own_method(said["method"], given)
    return said


class Engines:
    """One engine for all callers with the same settings. It is pickled empty: another process loads its own."""

    def __init__(self) -> None:
        self._made: list[tuple[Settings, SamKVEngine]] = []
        self._making = threading.RLock()

    def get(self, settings: Settings, method: str | Method | None) -> SamKVEngine:
        """The engine with these settings, made with the `method` of the first caller; calls pass their own."""
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
