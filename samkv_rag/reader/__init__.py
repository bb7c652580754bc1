"""The bundled readers: Llama-architecture language models with their tokenizers. See CARD.md beside this file.

`bundled` reads real English, `bundled-small` the generated English of the evaluation only, in a fifth of the time.
"""

from __future__ import annotations

import pathlib

BUNDLED, SMALL = "bundled", "bundled-small"
_FOLDERS = {BUNDLED: "large", SMALL: "small"}


def is_bundled(model: object) -> bool:
    """True for the name of a bundled reader."""
    return isinstance(model, str) and model in _FOLDERS


def path(name: str = BUNDLED) -> pathlib.Path:
    """The folder with a reader's weights and tokenizer, for `AutoModelForCausalLM.from_pretrained`."""
    return pathlib.Path(__file__).resolve().parent / _FOLDERS[name]
