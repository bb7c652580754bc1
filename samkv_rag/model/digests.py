"""Digests of what a model consists of: weights, in files (remembered by size and times) or loaded, configs and
tokenizers."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_CHUNK = 1 << 22
_TRANSIENT = {"transformers_version", "dtype", "torch_dtype", "architectures", "attn_implementation", "use_cache"}
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


def file_digest(path: Path) -> str:
    """Hex digest of a file's bytes; a file whose path, size and times are known is not read again. The time of its last
    change counts too: another file may have got the name, and the old one's modification time."""
    real = path.resolve()
    stat = real.stat()
    key = f"{real}|{stat.st_size}|{stat.st_mtime_ns}|{stat.st_ctime_ns}"
    known = _remembered()
    if key not in known:
        known[key] = _digest_of(real)
        _remember(known)
    return known[key]


def parameters_digest(model: Any) -> str:
    """Hex digest of all parameters and persistent buffers of a loaded model, names included."""
    digest = hashlib.blake2b(digest_size=16)
    for name, value in _state(model):
        for part, tensor in _plain(name, value):
            digest.update(f"{part}{tuple(tensor.shape)}{tensor.dtype}".encode())
            data = tensor.detach().contiguous().cpu().reshape(-1).view(torch.uint8)
            digest.update(data.numpy().data)
    return digest.hexdigest()


def told(value: Any) -> Any:
    """Convert what JSON cannot express, the same way in every process."""
    return sorted(map(str, value)) if isinstance(value, set | frozenset) else str(value)


def config_digest(config: Any) -> str:
    """Digest of a config, without what changes between releases or between loads but affects no number."""
    known = {key: value for key, value in config.to_dict().items() if key not in _TRANSIENT and key[0] != "_"}
    return text_digest(json.dumps(known, sort_keys=True, default=told))


def tokenizer_digest(tokenizer: Any) -> str:
    """Digest of what decides the ids; truncation and padding are per-call state and are left out."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return text_digest(json.dumps([type(tokenizer).__name__, sorted(tokenizer.get_vocab().items())]))
    parts = json.loads(backend.to_str())
    return text_digest(json.dumps({key: parts[key] for key in parts if key not in ("truncation", "padding")}))


def text_digest(text: str) -> str:
    """Hex digest of a text, as short as those of weights."""
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _state(model: Any) -> list[tuple[str, Any]]:
    """Parameters and buffers by name. Not from `state_dict()` where 4-bit weights are packed for a CPU: it unpacks them
    for good, but not their scales, and the model then computes something else (bitsandbytes 0.50)."""
    kept = {name: getattr(parameter, "quant_state", None) for name, parameter in model.named_parameters()}
    if not any(getattr(state, "packing_format_for_cpu", False) for state in kept.values()):
        return sorted(model.state_dict().items())
    scales = {f"{name}.absmax": state.absmax for name, state in kept.items() if state is not None}
    return sorted({**dict(model.named_parameters()), **dict(model.named_buffers()), **scales}.items())


def _plain(name: str, value: Any) -> Iterator[tuple[str, Tensor]]:
    """The tensors that a value of the state consists of: itself, or those of a quantised one (a subclass of `Tensor`),
    whose names then include its other properties, such as how it rounds what it is multiplied by."""
    if hasattr(value, "__tensor_flatten__"):
        parts, how = value.__tensor_flatten__()
        name += _ADDRESS.sub("", f" {type(value).__qualname__}{how}")
        for part in parts:
            yield from _plain(f"{name}.{part}", getattr(value, part))
    elif isinstance(value, Tensor):
        yield name, value


def _digest_of(path: Path) -> str:
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while block := file.read(_CHUNK):
            digest.update(block)
    return digest.hexdigest()


def _memory_file() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "samkv_rag" / "weight-digests.json"


def _remembered() -> dict[str, str]:
    try:
        known = json.loads(_memory_file().read_text())
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _remember(known: dict[str, str]) -> None:
    """Best effort: a read-only home costs a second reading, not an error."""
    file = _memory_file()
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_text(json.dumps(known))
        temporary.replace(file)
