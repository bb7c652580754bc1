"""GGUF files: a model's weights, config and tokenizer in one file, in llama.cpp's number formats.

transformers reads them. Their weights are unpacked into the dtype that the model runs in, unless the caller's own
`quantization_config` says otherwise: numbers of few bits save memory, but are slower to multiply by (and where there is
no kernel for them transformers unpacks them anyway).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from samkv_rag.errors import SamKVError
from samkv_rag.paths import expanded

SUFFIX = ".gguf"
ARGUMENT = "gguf_file"


def is_file(model: Any) -> bool:
    """Whether a model's name is that of a GGUF file, existing or not, and not of a folder."""
    return str(model).lower().endswith(SUFFIX) and not expanded(model).is_dir()


def located(name: Any) -> tuple[Any, dict[str, str]]:
    """The folder of a GGUF file and `{"gguf_file": its name}`, as transformers takes it; for other names, the name and
    an empty dict. Raises `SamKVError` when there is no such file."""
    if not is_file(name):
        return name, {}
    file = expanded(name)
    return file.parent, named(file.parent, file.name)


def named(folder: Path, name: str) -> dict[str, str]:
    """`{"gguf_file": name}`; raises `SamKVError` when the folder has no such file."""
    if not (folder / name).is_file():
        raise SamKVError(
            f"There is no file {folder / name}. For one on the hub, pass the hub id, and {ARGUMENT} in model_kwargs."
        )
    return {ARGUMENT: name}


def unpacked(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The argument that makes transformers unpack the weights; none where it does so anyway, or `kwargs` decide."""
    import transformers

    config = getattr(transformers, "GgufConfig", None)  # older releases always unpack
    return {} if config is None or "quantization_config" in kwargs else {"quantization_config": config(dequantize=True)}


@contextmanager
def reading(file: Mapping[str, str]) -> Iterator[None]:
    """Turn whatever goes wrong with a GGUF file within into a `SamKVError`: readers of damaged ones raise all sorts."""
    try:
        yield
    except SamKVError:
        raise
    except Exception as error:
        if not file:
            raise
        hint = "Is it whole, and a model's?"
        if isinstance(error, ImportError):
            hint = "pip install 'samkv-rag[gguf]'"
        if isinstance(error, TypeError):
            hint = "Is it whole, and does model_kwargs say what it should?"
        raise SamKVError(f"{file[ARGUMENT]} could not be loaded: {error or type(error).__name__}. {hint}") from error
