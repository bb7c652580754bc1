"""The engine behind the commands."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from samkv_rag.errors import SamKVError
from samkv_rag.model.gguf import is_file
from samkv_rag.paths import expanded
from samkv_rag.reader import is_bundled

if TYPE_CHECKING:
    from samkv_rag import SamKVEngine
    from samkv_rag.retrieval.index import Settings

BUNDLED_CHUNK = 128
CHUNK = 512
FLOOR = 64  # tokens: a share of a few sentences is less than a sentence


def open_engine(
    model: str, store: Path, kv_dtype: str = "model", min_kept_tokens: int = 0, sink_prefix: str = "head"
) -> SamKVEngine:
    """An engine for `model` with its cache in the folder `store`; the model itself is loaded when first needed."""
    _require_folder(store)
    if is_bundled(model) or local(model):  # nothing is downloaded: the bars would only show loading
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    from samkv_rag import SamKVEngine

    return SamKVEngine.from_pretrained(
        model=model, store=str(store), kv_dtype=kv_dtype, min_kept_tokens=min_kept_tokens, sink_prefix=sink_prefix
    )


def model_name(model: str) -> str:
    """A folder or GGUF file by its full path, so that it is found again from elsewhere; any other name unchanged."""
    return str(local(model) or model)


def shown(model: str) -> str:
    """A folder or file by its name alone: its place on this machine is private."""
    found = local(model)
    return found.name if found else model


def local(model: str) -> Path | None:
    """The full path of the folder or GGUF file that a name refers to; None for any other name. A file's links are not
    resolved: their target may be named by a digest (the hub's cache)."""
    path = expanded(model)
    if is_bundled(model) or not (path.is_dir() or path.is_file() and is_file(path)):
        return None
    return path.resolve() if path.is_dir() else path.absolute()


def index_root(store: Path) -> Path:
    """Where a store's passages are indexed. Raises `SamKVError` for a store that is no folder."""
    _require_folder(store)
    return store / "index"


def _require_folder(store: Path) -> None:
    if store.exists() and not store.is_dir():
        raise SamKVError(f"{store} is a file; --store takes a folder.")


def settings_of(store: Path) -> Settings | None:
    """What a store's index was made with, the default for later commands; None before the first ingestion."""
    from samkv_rag.retrieval import ChunkIndex, generations

    root = index_root(store)
    return ChunkIndex.open(root).manifest.settings if generations.current(root) else None


def chunk_tokens(model: str) -> int:
    """Tokens in a chunk: the bundled readers were trained on short ones."""
    return BUNDLED_CHUNK if is_bundled(model) else CHUNK
