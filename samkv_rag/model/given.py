"""What is given instead of a name: a loaded model, a tokenizer, a device. What they must be, and what can no longer be
asked of a model that is loaded."""

from __future__ import annotations

import importlib.util
from collections.abc import Collection, Iterable
from typing import Any

import torch
from transformers import PreTrainedModel

from samkv_rag.errors import SamKVError

PLACED_BY_TRANSFORMERS = ("auto", "balanced", "balanced_low_0", "sequential")


def require_writer(model: Any) -> None:
    """Raise `SamKVError` unless `model` is one of transformers' that can write."""
    inner, name = getattr(model, "_orig_mod", model), type(model).__name__
    if hasattr(model, "peft_config"):  # a wrapper, which is refused with what to do
        return
    if not isinstance(inner, PreTrainedModel):
        inside = [part for part in ("model", "module") if isinstance(getattr(model, part, None), PreTrainedModel)]
        hint = f"pass its .{inside[0]}" if inside else "pass a hub id, a folder, a GGUF file or an AutoModelForCausalLM"
        raise SamKVError(f"{name} is no transformers model: {hint}.")
    if not inner.can_generate() or inner.generation_config is None:
        raise SamKVError(f"{name} cannot write text: load it with AutoModelForCausalLM.")


def refuse_unused(model: Any, dtype: torch.dtype | None, device_map: Any, arguments: Collection[str]) -> None:
    """Raise `SamKVError` for what only a model that is still to be loaded could follow."""
    weight = model.get_input_embeddings().weight
    if dtype is not None and dtype != weight.dtype:
        raise SamKVError(
            f"The model is loaded, in {weight.dtype}: dtype={dtype} would be passed over. Load it in that."
        )
    placed = device_map is None or str(device_map) in PLACED_BY_TRANSFORMERS
    if not placed and not _same(device_map, weight.device):
        raise SamKVError(
            f"The model is loaded, on {weight.device}: device_map={device_map!r} would be passed over. Move it first, "
            "or leave that out."
        )
    if arguments:
        raise SamKVError(
            f"The model is loaded: {', '.join(sorted(arguments))} in model_kwargs would be passed over. Load it with "
            "that, or pass its name."
        )


def require_tokenizer(tokenizer: Any) -> Any:
    """The tokenizer itself; raises `SamKVError` for what is none."""
    if callable(tokenizer) and hasattr(tokenizer, "decode"):
        return tokenizer
    raise SamKVError(f"tokenizer is a name, a folder, or one of transformers' tokenizers, not {tokenizer!r}.")


def refuse_unknown_tokens(token_ids: Iterable[int], config: Any) -> None:
    """Raise `SamKVError` for a token that the model of `config` has no embedding for."""
    known: int | None = getattr(config, "vocab_size", None)
    if known is not None and (highest := max(token_ids, default=0)) >= known:
        raise SamKVError(
            f"The tokenizer made token {highest} of a text, but the model knows only 0 to {known - 1}: pass the "
            "model's own tokenizer, or call model.resize_token_embeddings(len(tokenizer)) and make a new engine."
        )


def device_of(device_map: Any) -> str | None:
    """The one device to load to; None where transformers places the model. Raises `SamKVError` for what is no device,
    or is not there."""
    if device_map is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    if isinstance(device_map, dict) or str(device_map) in PLACED_BY_TRANSFORMERS:
        if importlib.util.find_spec("accelerate") is None:
            raise SamKVError(
                f"device_map={device_map!r} needs accelerate: pip install accelerate, or pass a single device such as "
                "device_map='cuda:0'."
            )
        return None
    return _usable(_named(device_map))


def _named(device_map: Any) -> torch.device:
    try:
        return torch.device(device_map)
    except (RuntimeError, TypeError) as error:
        raise SamKVError(
            f"device_map={device_map!r} is no device: pass 'cpu', 'cuda:0', 'auto' or a mapping. ({error})"
        ) from error


def _usable(device: torch.device) -> str:
    gpus = {"cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if device.type in gpus and (device.index or 0) >= (count := gpus[device.type]):
        seen = f"only {count}" if count else "no GPU"
        raise SamKVError(f"device_map={str(device)!r}, but torch {torch.__version__} sees {seen} here; pass 'cpu'.")
    return str(device)


def _same(device_map: Any, device: torch.device) -> bool:
    if isinstance(device_map, dict):
        return all(_same(part, device) for part in device_map.values())
    wanted = _named(device_map)
    return wanted.type == device.type and wanted.index in (None, device.index)
