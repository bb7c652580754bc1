"""The bundled reader: a small Llama-architecture language model with its tokenizer. See CARD.md beside this file."""

from __future__ import annotations

import pathlib


def path() -> pathlib.Path:
    """The folder with weights and tokenizer, for `AutoModelForCausalLM.from_pretrained`."""
    return pathlib.Path(__file__).resolve().parent / "weights"
