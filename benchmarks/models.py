"""Which model types of transformers can be served: each is built small, with random weights, and tried.

`python -m benchmarks.models [TYPE ...]` prints the outcomes; for all types it also writes `docs/models.md`. A type is
served if recomputing over cached chunks gives the logits of the type's own attention, and the parity gate is green. A
type that cannot be built small is not tried, and nothing is said of it.
"""

from __future__ import annotations

import argparse
import copy
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers as tf
from transformers.models.auto import modeling_auto as known

from benchmarks.rows import where
from benchmarks.shapes import random_prompt, sharpened
from samkv_rag.errors import SamKVError
from samkv_rag.methods import Run, SamKV
from samkv_rag.model.adapter import ModelAdapter
from samkv_rag.model.loading import auto_class_of
from samkv_rag.model.rounding import apart
from samkv_rag.parity import TOLERANCE, check_parity, next_logits
from samkv_rag.store import ChunkKVStore

PAGE = Path(__file__).parent.parent / "docs" / "models.md"
MOST = 50_000_000
"""The most parameters that still count as small."""
TEXT: dict[str, Any] = {
    "vocab_size": 300, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 1024, "sliding_window": 64, "rotary_dim": 16,
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2,
    "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32, "n_embd": 64, "n_layer": 4, "n_head": 4,
    "n_positions": 1024, "embedding_size": 64, "vocab_size_per_layer_input": 300, "global_head_dim": 16,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "qk_rope_head_dim": 16, "qk_nope_head_dim": 16,
    "v_head_dim": 16, "kv_lora_rank": 32, "q_lora_rank": 32, "n_group": 1, "topk_group": 1, "n_shared_experts": 1,
}  # fmt: skip
LEFT_OPEN = ("head_dim", "n_routed_experts", "n_shared_experts", "num_experts_per_tok")
"""Sizes that a default config may leave open although its model needs them."""
EYES: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28,
    "patch_size": 14, "embed_dim": 32, "depth": 1, "num_heads": 2, "out_hidden_size": 64,
}  # fmt: skip
HALF = ["sliding_attention", "full_attention"] * 2
LATENT = {"num_key_value_heads": 4}
LATENT_TYPES = (
    "axk1", "axk2", "deepseek_v2", "deepseek_v3", "deepseek_v32", "glm4_moe_lite", "glm_moe_dsa", "minicpm3",
    "mistral_large4_text", "sarvam_mla", "youtu",
)  # fmt: skip
AS_PUBLISHED: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("lfm2", "lfm2_moe"), {"layer_types": ["conv", "full_attention"] * 2}),
    "gemma3n_text": {
        "num_kv_shared_layers": 2, "layer_types": HALF, "laurel_rank": 8, "hidden_size_per_layer_input": 8,
        "activation_sparsity_pattern": [0.9, 0.9, 0.0, 0.0],
    },
    "glm4v_moe_text": {
        "rope_parameters": {
            "rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1], "partial_rotary_factor": 0.5
        }
    },
    "mimo_v2_flash": {"v_head_dim": 8},
    "nemotron": {"num_key_value_heads": 2},
    "zaya": {"num_experts_per_tok": 1},
    **dict.fromkeys(LATENT_TYPES, LATENT),
    "longcat_flash": LATENT | {
        "num_layers": 2, "head_dim": 16, "ffn_hidden_size": 96, "expert_ffn_hidden_size": 32, "zero_expert_num": 2,
        "moe_topk": 2,
    },
    "mistral4": LATENT | {"head_dim": 32},
    "minimax_m3_vl_text": {"layer_types": ["full_attention", "minimax_m3_sparse"] * 2},
}  # fmt: skip
"""What checkpoints have and a default config lacks."""
OUTCOMES = ("served", "wrong", "refused")
TYPED = ("layer_types", "mlp_layer_types")


@dataclass(frozen=True, slots=True)
class Tried:
    """The outcome of a type: "served", "refused" or "wrong" (a number is off), with the reason."""

    kind: str
    outcome: str
    reason: str = ""


def kinds() -> list[str]:
    """All types that transformers generates text with, including those that also see."""
    return sorted({*known.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *known.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES})


def smalls(kind: str) -> Iterator[Any]:
    """Small configs of a type, to try until one works: angles may have to be divided among the axes of an image."""
    config = tf.CONFIG_MAPPING[kind]
    given = config()
    text = getattr(given, "text_config", None)
    for more in ({}, {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}}):
        if text is None:
            yield config(**_shrunk(given, TEXT) | AS_PUBLISHED.get(kind, {}) | more)
            continue
        inner = {"text_config": _part(text, TEXT) | AS_PUBLISHED.get(text.model_type, {}) | more}
        if getattr(given, "vision_config", None) is not None:
            inner["vision_config"] = _part(given.vision_config, EYES)
        yield config(**inner)


def _part(config: Any, sizes: Mapping[str, Any]) -> dict[str, Any]:
    return {"model_type": config.model_type, **_shrunk(config, sizes)}


def _shrunk(config: Any, sizes: Mapping[str, Any]) -> dict[str, Any]:
    """The sizes that a config has; its layer types take turns."""
    given = config.to_dict()
    found = {name: size for name, size in sizes.items() if given.get(name) is not None}
    found |= {name: sizes[name] for name in LEFT_OPEN if name in given and name in sizes}
    for name in TYPED:
        if given.get(name):
            types = list(dict.fromkeys(given[name]))
            found[name] = [types[layer % len(types)] for layer in range(sizes["num_hidden_layers"])]
    return found


def built(config: Any) -> Any:
    """A random model of a config, with its own attention code and weights large enough for attention to matter."""
    auto = auto_class_of(config)
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in auto.from_config(config).parameters())
    if count > MOST:
        raise ValueError(f"{count:,} parameters")
    torch.manual_seed(0)
    return sharpened(auto.from_config(config, attn_implementation="eager").float().eval())


def pair(kind: str) -> tuple[Any, Any] | None:
    """The same small model twice; None if it cannot be built."""
    with suppress(Exception):  # whatever a class raises for sizes that it was not made for
        for config in smalls(kind):
            with suppress(Exception), torch.no_grad():
                two = built(config), built(copy.deepcopy(config))  # a config notes which attention is used
                two[0](torch.tensor([[5, 6]]), use_cache=False)
                return two
    return None


def tried(kind: str) -> Tried | None:
    """The outcome of trying a type; None if it cannot be built small."""
    two = pair(kind)
    if two is None:
        return None
    try:
        off = _difference(two[0], ModelAdapter(two[1]))
    except SamKVError as error:
        return Tried(kind, "refused", str(error))
    right = off <= TOLERANCE[torch.float32]
    return Tried(kind, "served") if right else Tried(kind, "wrong", f"its logits are off by {off:.0e}")


def _difference(stock: Any, adapter: ModelAdapter) -> float:
    """How far logits over recomputed chunks are from those of the type's own attention, relative to their RMS."""
    check_parity(adapter)
    store = ChunkKVStore(":memory:")
    plan = random_prompt(adapter, store, 3, 40, question=20)
    ours = next_logits(adapter, SamKV(keep=1.0).prepare(Run(plan, adapter, store)))
    with torch.no_grad():
        own = stock(torch.tensor([plan.token_ids]), use_cache=False).logits[0, -1].float()
    return apart(ours, own)


def page(found: Sequence[Tried], untried: Sequence[str]) -> str:
    """The document."""
    here = where()
    versions = f"transformers {here['transformers']} and torch {here['torch'].split('+')[0]}"
    parts = [
        "# Which model types are served",
        f"Written by `python -m benchmarks.models` on {here['date']} with {versions}: every type that transformers "
        "makes text with was built small, with random weights in float32, and tried. Served means that cached chunks, "
        "all of them recomputed, gave the logits of the type's own attention, and that the parity gate was green. Your "
        "model may differ from the small one in its config: `samkv-rag check --model ...` tries yours.",
        *(_listed(outcome.capitalize(), [one for one in found if one.outcome == outcome]) for outcome in OUTCOMES),
        f"**Not tried**, because it could not be built small ({len(untried)}): {', '.join(untried)}.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _listed(title: str, some: Sequence[Tried]) -> str:
    if not some or title == "Served":
        return f"**{title}** ({len(some)}): {', '.join(one.kind for one in some)}." if some else ""
    rows = [f"| {one.kind} | {one.reason} |" for one in some]
    return "\n".join([f"**{title}** ({len(some)}):", "", "| type | why |", "|---|---|", *rows])


def _all(names: Sequence[str]) -> Iterator[tuple[str, Tried | None]]:
    for kind in names:
        one = tried(kind)
        print(f"{kind}: {'not tried' if one is None else f'{one.outcome} {one.reason}'}", flush=True)
        yield kind, one


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("types", nargs="*", metavar="TYPE")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    came = dict(_all(options.types or kinds()))
    if not options.types:
        PAGE.write_text(
            page([one for one in came.values() if one], [kind for kind, one in came.items() if one is None])
        )
        print(f"written to {PAGE}")


if __name__ == "__main__":
    main()
