"""GGUF files: a model's weights, config and tokenizer in one file, in the bits of llama.cpp.

transformers reads them. Their weights are unpacked into the dtype that the model runs in, unless the caller's own
`quantization_config` says otherwise: numbers of few bits save memory, but are slower to multiply by.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from samkv_rag.errors import SamKVError

SUFFIX = ".gguf"
ARGUMENT = "gguf_file"


def file_in(folder: Path | None, model: Any, kwargs: Mapping[str, Any]) -> dict[str, str]:
    """`{"gguf_file": name}`, as transformers takes it, where `model` is such a file or `kwargs` name one in its
    `folder`; else nothing."""
    if folder is None:
        return {}
    if given := kwargs.get(ARGUMENT):
        return {ARGUMENT: str(given)}
    return {ARGUMENT: Path(model).name} if is_file(model) else {}


def is_file(model: Any) -> bool:
    """Whether a model's name is that of a GGUF file, there or not."""
    return str(model).lower().endswith(SUFFIX)


def folder_of(file: Path) -> Path:
    """The folder that a GGUF file lies in; raises `SamKVError` when there is no such file."""
    if not file.is_file():
        raise SamKVError(
            f"There is no file {file}. For one on the hub pass the hub id, and {ARGUMENT} in model_kwargs."
        )
    return file.parent


def unpacked(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """How transformers is told to unpack the weights; nothing where it does so anyway, or `kwargs` say how."""
    import transformers

    config = getattr(transformers, "GgufConfig", None)  # older releases always unpack
    return {} if config is None or "quantization_config" in kwargs else {"quantization_config": config(dequantize=True)}


@contextmanager
def reading(file: Mapping[str, str]) -> Iterator[None]:
    """Whatever goes wrong with a GGUF file within is a `SamKVError`: readers of damaged ones raise all sorts."""
    try:
        yield
    except SamKVError:
        raise
    except Exception as error:
        if not file:
            raise
        hint = "pip install 'samkv-rag[gguf]'" if isinstance(error, ImportError) else "Is it whole, and a model's?"
        raise SamKVError(f"{file[ARGUMENT]} could not be loaded: {error or type(error).__name__}. {hint}") from error
