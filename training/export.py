"""Write a checkpoint as a plain transformers folder: `python -m training.export [config.toml] [folder]`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from samkv_rag import reader
from training.passages import Encoder
from training.paths import paths
from training.train import CONFIG, load_encoder, read_config

TEMPLATE = Path(__file__).with_name("chat_template.jinja")
SHARD = "15MB"  # a weight file, at most
WEIGHTS = reader.path(reader.SMALL)


def llama_config(config: dict[str, Any], encode: Encoder) -> LlamaConfig:
    """The reader's shape in transformers' terms."""
    shape = config["shape"]
    found = LlamaConfig(
        vocab_size=config["vocab"],
        hidden_size=shape["hidden"],
        intermediate_size=shape["mlp"],
        num_hidden_layers=shape["layers"],
        num_attention_heads=shape["heads"],
        num_key_value_heads=shape["kv_heads"],
        head_dim=shape["head_dim"],
        max_position_embeddings=4096,
        rope_parameters={"rope_type": "default", "rope_theta": shape["theta"]},
        rms_norm_eps=1e-5,
        attention_bias=True,
        tie_word_embeddings=False,
        bos_token_id=encode.bos,
        eos_token_id=encode.eos,
        pad_token_id=encode.pad,
    )
    found.samkv_selection_layers = config["selection_layers"]
    return found


def load_reader(config: dict[str, Any], state: dict[str, Tensor]) -> LlamaForCausalLM:
    """The model with these weights, in float32, as transformers runs it."""
    model = LlamaForCausalLM(llama_config(config, load_encoder(config)))
    missing, unexpected = model.load_state_dict(state, strict=False)
    if unexpected or missing:
        raise ValueError(f"the weights do not fit: missing {missing}, unexpected {unexpected}")
    model.eval()
    return model


def save_reader(config: dict[str, Any], state: dict[str, Tensor], folder: Path) -> None:
    """Save model and tokenizer in `folder`: weights in float16, half the bytes, computed with in float32, as the
    folder's own config says (at this size bfloat16 would lose accuracy)."""
    load_reader(config, state).half().save_pretrained(folder, max_shard_size=SHARD)
    found = json.loads((folder / "config.json").read_text()) | {"dtype": "float32"}
    (folder / "config.json").write_text(json.dumps(found, indent=2) + "\n")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(Path(config["folder"]) / "tokenizer")
    tokenizer.chat_template = TEMPLATE.read_text()
    tokenizer.save_pretrained(folder)


def export(config: dict[str, Any], folder: Path = WEIGHTS) -> None:
    """Save the averaged weights of a run's checkpoint in `folder`."""
    state = torch.load(Path(config["folder"]) / "checkpoint.pt", weights_only=True)["average"]
    save_reader(config, state, folder)


if __name__ == "__main__":
    arguments = paths(__doc__)
    export(read_config(arguments[0] if arguments else CONFIG), *arguments[1:])
