"""From a name to an attached model: where its files are, how it is loaded, and what its caches are keyed by."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from samkv_rag import reader
from samkv_rag.errors import SamKVError
from samkv_rag.model import gguf
from samkv_rag.model.adapter import ModelAdapter
from samkv_rag.model.digests import (
    config_digest,
    file_digest,
    parameters_digest,
    text_digest,
    tokenizer_digest,
    told,
)  # fmt: skip
from samkv_rag.model.generation import warn_of_other_modes
from samkv_rag.model.given import device_of, refuse_unused, require_tokenizer, require_writer
from samkv_rag.paths import expanded
from samkv_rag.types import KV_DTYPES

FORMAT_VERSION = 1
_WEIGHTS = ("*.safetensors", "*.bin")
_IGNORED_ON_HUB = ("*.gguf", "*.pth", "*.pt", "*.msgpack", "*.h5", "*.onnx", "onnx/*", "original/*", "*.md")
_CACHED_AS = {"bf16": torch.bfloat16, "fp16": torch.float16, "int8": "int8", "fp8": "fp8", "int4": "int4"}
_DOWNLOAD = ("token", "cache_dir", "local_files_only", "force_download")
_NOT_IN_THE_NUMBERS = {
    *_DOWNLOAD, "revision", "trust_remote_code", "attn_implementation", "low_cpu_mem_usage", "max_memory",
    "use_safetensors", "weights_only", "device_map", "offload_folder", "offload_state_dict", "offload_buffers",
    gguf.ARGUMENT,  # the digest of the weights says which file it is
}  # fmt: skip


@dataclass
class ModelSource:
    """A model that is loaded when it is first needed: constructing one is cheap.

    `model` is "bundled" (or "bundled-small"), a hub id, a folder, a GGUF file or a loaded transformers model;
    `tokenizer` is a name, an object or None. `dtype` "auto" is the checkpoint's, but float32 on a CPU, where half
    precision is slower; `device_map` None is the GPU if there is one. `model_kwargs` go to transformers; for a hub id
    their `revision`, `token` and the like also decide which files are downloaded. Chunks are ingested after the tokens
    that `sink` returns for the tokenizer, by default none; the entries of these are dropped. `kv_dtype` is how caches
    are stored.
    """

    model: Any = reader.BUNDLED
    tokenizer: Any = None
    device_map: Any = None
    dtype: str | torch.dtype = "auto"
    model_kwargs: Mapping[str, Any] = field(default_factory=dict)
    sink: Callable[[Any], Sequence[int]] | None = None
    kv_dtype: str = "model"

    def __post_init__(self) -> None:
        if self.kv_dtype not in KV_DTYPES:
            raise SamKVError(f"kv_dtype is one of {', '.join(KV_DTYPES)}, not {self.kv_dtype!r}.")
        dtype = None if self.dtype == "auto" else _floating(self.dtype)
        if unfit := {"dtype", "torch_dtype"} & set(self.model_kwargs):
            raise SamKVError(f"{unfit.pop()} in model_kwargs would be passed over: pass dtype=... beside it.")
        if self._of_file and self.model_kwargs.get(gguf.ARGUMENT) not in (None, Path(self.model).name):
            raise SamKVError(
                f"model is one GGUF file and {gguf.ARGUMENT} in model_kwargs another: leave one of them out."
            )
        if self.model is None or self.model == "":
            raise SamKVError(f"There is no model: pass {reader.BUNDLED!r}, a hub id, a folder, or a loaded model.")
        if not isinstance(self.model, str | os.PathLike):
            require_writer(self.model)
            unused = {*self.model_kwargs} - {"trust_remote_code", *_DOWNLOAD}  # these serve to load a tokenizer
            refuse_unused(self.model, dtype, self.device_map, unused)

    @property
    def name(self) -> str:
        """What the user called the model, for reports."""
        named = isinstance(self.model, str | os.PathLike)
        return str(self.model if named else getattr(self.model, "name_or_path", "model"))

    @cached_property
    def folder(self) -> Path | None:
        """The folder with the model's files (a hub id is downloaded to the hub's cache); None for a loaded model."""
        if not isinstance(self.model, str | os.PathLike):
            return None
        if reader.is_bundled(self.model):
            return reader.path(str(self.model))
        if self._of_file:
            return Path(gguf.located(self.model)[0])
        folder = expanded(self.model)
        return folder if folder.is_dir() else _from_hub(str(self.model), self.model_kwargs)

    @cached_property
    def _file(self) -> dict[str, str]:
        """The GGUF file that holds all of the model, as transformers takes it; empty for other models."""
        if self._of_file:
            return gguf.located(self.model)[1]
        given = self.model_kwargs.get(gguf.ARGUMENT)
        return {} if self.folder is None or given is None else gguf.named(self.folder, str(given))

    @property
    def _of_file(self) -> bool:
        return isinstance(self.model, str | os.PathLike) and gguf.is_file(self.model)

    @cached_property
    def loaded_tokenizer(self) -> Any:
        """The tokenizer given, or the model's own; raises `SamKVError` when there is none."""
        from transformers import AutoTokenizer

        if self.tokenizer is not None and not isinstance(self.tokenizer, str | os.PathLike):
            return require_tokenizer(self.tokenizer)
        another = self.tokenizer if str(self.tokenizer) != str(self.model) else None
        name, file = gguf.located(another) if another else (self.folder, self._file)
        name = name or getattr(self.model, "name_or_path", None)
        if not name:
            raise SamKVError("A loaded model without a name needs its tokenizer too: pass tokenizer=...")
        try:
            with gguf.reading(file):
                kwargs = file | _of(self.model_kwargs, "trust_remote_code", *_DOWNLOAD)
                return AutoTokenizer.from_pretrained(name, **kwargs)
        except (OSError, ValueError) as error:
            raise SamKVError(f"No tokenizer could be loaded from {name}: {error}. Pass tokenizer=...") from error

    @cached_property
    def device(self) -> str | None:
        """The one device to load to; None where transformers places the model (`device_map="auto"` or a mapping)."""
        return device_of(self.device_map)

    @cached_property
    def resolved_dtype(self) -> torch.dtype:
        """The dtype the model runs in, known before it is loaded."""
        if self.folder is None:
            return self.model.get_input_embeddings().weight.dtype  # type: ignore[no-any-return]
        if self.dtype != "auto":
            return _floating(self.dtype)
        stored = getattr(self.config, "dtype", None) or (torch.bfloat16 if self._file else torch.float32)
        half = stored in (torch.float16, torch.bfloat16)
        return torch.float32 if half and self.device == "cpu" else stored

    @cached_property
    def config(self) -> Any:
        """The model's configuration, known without loading its weights."""
        from transformers import AutoConfig

        if self.folder is None:
            return self.model.config
        try:
            with gguf.reading(self._file):
                kwargs = self._file | _of(self.model_kwargs, "trust_remote_code")
                return AutoConfig.from_pretrained(self.folder, **kwargs)
        except (OSError, ValueError) as error:
            raise SamKVError(f"{self.name} holds no readable model config: {error}") from error

    @cached_property
    def sink_ids(self) -> tuple[int, ...]:
        """The tokens after which chunks are ingested."""
        return () if self.sink is None else tuple(self.sink(self.loaded_tokenizer))

    @cached_property
    def fingerprint(self) -> str:
        """What a cached key or value depends on besides its token ids, as a hex digest.

        Weights, config, tokenizer, dtype (the caches' too), sink prefix and format version; never the method or the
        device, and the chat template only by whether it begins prompts with a BOS.
        """
        parts = {
            **self._of_model,
            "dtype": str(self.resolved_dtype),
            "kv_dtype": str(_CACHED_AS.get(self.kv_dtype) or self.resolved_dtype),
            "sink_prefix": self.sink_ids,
            "format": FORMAT_VERSION,
        }
        return text_digest(json.dumps(parts, sort_keys=True))

    @cached_property
    def model_fingerprint(self) -> str:
        """What a measurement of the model depends on, however its caches are made and stored: weights, config and
        tokenizer, as a hex digest."""
        return text_digest(json.dumps(self._of_model, sort_keys=True))

    @cached_property
    def _of_model(self) -> dict[str, str]:
        loaded_as = {} if self.folder is None else _changing(self.model_kwargs)
        return {
            "weights": self._weights_digest(),
            "config": config_digest(self.config),
            "tokenizer": tokenizer_digest(self.loaded_tokenizer),
            **({"loaded_as": text_digest(json.dumps(loaded_as, sort_keys=True, default=told))} if loaded_as else {}),
        }

    def _weights_digest(self) -> str:
        if self.folder is None:
            _ = self.adapter  # which finds later changes; and some models pack their weights when they first run
            return parameters_digest(self.model)
        named = [self.folder / name for name in self._file.values()]
        files = named or sorted(path for pattern in _WEIGHTS for path in self.folder.glob(pattern))
        if not files:
            raise SamKVError(f"{self.folder} holds no .safetensors or .bin weights; is it a model folder?")
        code = sorted(self.folder.glob("*.py")) if self.model_kwargs.get("trust_remote_code") else []
        parts = {path: path.name for path in (*files, *code)}
        parts.update(dict.fromkeys(named, ""))  # one file may be called anything
        return text_digest(json.dumps([[name, file_digest(path)] for path, name in parts.items()]))

    @cached_property
    def adapter(self) -> ModelAdapter:
        """The attached model; loads it on first use. Raises `UnsupportedModel` or `SamKVError`."""
        model = self.model if self.folder is None else self._load(self.folder)
        adapter = ModelAdapter(model, self.sink_ids)
        warn_of_other_modes(model)
        return adapter

    def _load(self, folder: Path) -> Any:
        kwargs = {**(gguf.unpacked(self.model_kwargs) if self._file else {}), **self.model_kwargs, **self._file}
        if self.device is None or self._quantised and importlib.util.find_spec("accelerate"):
            kwargs["device_map"] = self.device or self.device_map
        try:
            with gguf.reading(self._file):
                model: Any = auto_class_of(self.config).from_pretrained(folder, dtype=self.resolved_dtype, **kwargs)
        except ImportError as error:
            raise SamKVError(f"{self.name} could not be loaded: {error}") from error
        except (TypeError, AttributeError) as error:
            raise SamKVError(
                f"{self.name} could not be loaded: {error}. Does model_kwargs say what it should?"
            ) from error
        except (OSError, ValueError, SafetensorError) as error:
            raise SamKVError(f"{self.name} could not be loaded: {error}. Are its files whole?") from error
        return model if "device_map" in kwargs else model.to(self.device)

    @property
    def _quantised(self) -> bool:
        """Whether weights are, or become at loading, numbers of few bits: these are placed on their device at once."""
        of = (self.model_kwargs.get("quantization_config"), getattr(self.config, "quantization_config", None))
        return any(config is not None for config in of)


def auto_class_of(config: Any) -> Any:
    """The transformers class for models of a config: one that also sees (Mistral 3) may be known only as such."""
    import transformers as tf

    kind = type(config)
    sees = kind in tf.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING and kind not in tf.MODEL_FOR_CAUSAL_LM_MAPPING
    return tf.AutoModelForImageTextToText if sees else tf.AutoModelForCausalLM


def _floating(dtype: str | torch.dtype) -> torch.dtype:
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if isinstance(found, torch.dtype) and found.is_floating_point:
        return found
    raise SamKVError(f"dtype is 'auto' or a floating type of torch, such as 'bfloat16', not {dtype!r}.")


def _from_hub(name: str, kwargs: Mapping[str, Any]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    wanted = _of(kwargs, "revision", *_DOWNLOAD)
    one = kwargs.get(gguf.ARGUMENT)
    files = {"allow_patterns": [one]} if one else {"ignore_patterns": list(_IGNORED_ON_HUB)}
    try:
        return Path(snapshot_download(name, **files, **wanted))
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
        raise SamKVError(
            f"{name} is neither a folder nor a model that the hub hands out now ({type(error).__name__}). Check the "
            "name, its revision, the network and your access rights, or use model='bundled', which needs no download."
        ) from error


def _of(kwargs: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: kwargs[name] for name in names if name in kwargs}


def _changing(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments for transformers that may change what a model computes, such as quantisation."""
    changing = {name: value for name, value in kwargs.items() if name not in _NOT_IN_THE_NUMBERS}
    return {name: value.to_dict() if hasattr(value, "to_dict") else value for name, value in changing.items()}
