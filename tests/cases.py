"""The case lists: one added line tests a wiring, a refusal or a method everywhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import transformers as tf

from samkv_rag.methods import (
    AnchorsOnly,
    CacheBlend,
    Epic,
    Full,
    InfoFlow,
    Method,
    MultiInfLLM,
    NoContext,
    ProphetKV,
    Random,
    RandomRest,
    Reuse,
    SamKV,
)  # fmt: skip

VOCAB = 300
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 1024,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip

LINEAR = {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64, "rope_theta": 10000.0,
}  # fmt: skip
DYNAMIC = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
YARN = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 64, "rope_theta": 10000.0}


def longrope(threshold: int) -> dict[str, Any]:
    """Short frequencies up to `threshold` positions, long ones beyond."""
    return {
        "rope_type": "longrope", "short_factor": [1.0 + 0.05 * i for i in range(8)],
        "long_factor": [2.0 + 0.3 * i for i in range(8)], "factor": 1024 / threshold,
        "original_max_position_embeddings": threshold, "rope_theta": 10000.0,
    }  # fmt: skip


EYES = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28,
    "patch_size": 14,
}  # fmt: skip
HALF = ["sliding_attention", "full_attention"] * 2
GEMMA4: dict[str, Any] = {
    "head_dim": 16, "global_head_dim": 32, "sliding_window": 10, "layer_types": HALF, "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": VOCAB,
}  # fmt: skip
EXPERTS = {
    "hidden_size_per_layer_input": 0, "enable_moe_block": True, "num_experts": 4, "top_k_experts": 2,
    "moe_intermediate_size": 32,
}  # fmt: skip
SHARING = {
    "num_hidden_layers": 6, "layer_types": HALF + HALF[:2], "num_kv_shared_layers": 3, "use_double_wide_mlp": True,
}  # fmt: skip

LATENT = {
    "num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 24, "qk_rope_head_dim": 8, "qk_nope_head_dim": 12,
    "v_head_dim": 16,
}  # fmt: skip
ROUTED = {
    "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "moe_intermediate_size": 32,
    "first_k_dense_replace": 2,
}  # fmt: skip

WIRINGS: dict[str, Callable[[], Any]] = {
    "llama": lambda: tf.LlamaConfig(**SIZES),
    "llama-linear": lambda: tf.LlamaConfig(**SIZES, rope_parameters=LINEAR),
    "llama-llama3": lambda: tf.LlamaConfig(**SIZES, rope_parameters=LLAMA3),
    "llama-yarn": lambda: tf.LlamaConfig(**SIZES, rope_parameters=YARN),
    "llama-longrope-crossed": lambda: tf.LlamaConfig(**SIZES, rope_parameters=longrope(64)),
    "llama-longrope-within": lambda: tf.LlamaConfig(**SIZES, rope_parameters=longrope(256)),
    "llama-group-of-one": lambda: tf.LlamaConfig(**SIZES | {"num_key_value_heads": 4}),
    "mistral": lambda: tf.MistralConfig(**SIZES, sliding_window=None),
    "mistral-sliding": lambda: tf.MistralConfig(**SIZES, sliding_window=10),
    "qwen2": lambda: tf.Qwen2Config(**SIZES),
    "qwen2-sliding": lambda: tf.Qwen2Config(**SIZES, use_sliding_window=True, sliding_window=10, max_window_layers=2),
    "qwen3": lambda: tf.Qwen3Config(**SIZES, head_dim=32),
    "gemma": lambda: tf.GemmaConfig(**SIZES, head_dim=32),
    "gemma2": lambda: tf.Gemma2Config(**SIZES, head_dim=32, sliding_window=10),
    "gemma3": lambda: tf.Gemma3TextConfig(**SIZES, head_dim=32, sliding_window=10, layer_types=HALF),
    "gemma3-that-sees": lambda: tf.Gemma3Config(
        text_config={**SIZES, "head_dim": 32, "sliding_window": 10, "layer_types": HALF},
        vision_config=EYES,
        mm_tokens_per_image=4,
    ),
    "gemma4": lambda: tf.Gemma4TextConfig(**SIZES | GEMMA4),
    "gemma4-unlike-heads": lambda: tf.Gemma4TextConfig(
        **SIZES | GEMMA4 | EXPERTS, attention_k_eq_v=True, num_global_key_value_heads=1
    ),
    "gemma4-sharing": lambda: tf.Gemma4TextConfig(**SIZES | GEMMA4 | SHARING),
    "gemma4-that-sees": lambda: tf.Gemma4Config(
        text_config=SIZES | GEMMA4 | SHARING | {"attention_k_eq_v": True, "num_global_key_value_heads": 1},
        vision_config=EYES | {"num_key_value_heads": 2, "head_dim": 16},
    ),
    "gemma3n": lambda: tf.Gemma3nTextConfig(
        **SIZES,
        head_dim=16,
        sliding_window=10,
        layer_types=HALF,
        num_kv_shared_layers=2,
        laurel_rank=8,
        hidden_size_per_layer_input=8,
        vocab_size_per_layer_input=VOCAB,
        activation_sparsity_pattern=[0.9, 0.9, 0.0, 0.0],
    ),
    "ministral": lambda: tf.MinistralConfig(**SIZES, head_dim=16, sliding_window=10, layer_types=HALF),
    "laguna-unlike-parts": lambda: tf.LagunaConfig(**SIZES, head_dim=16, sliding_window=10, layer_types=HALF),
    "phi3": lambda: tf.Phi3Config(**SIZES, partial_rotary_factor=0.5),
    "phi3-sliding": lambda: tf.Phi3Config(**SIZES, sliding_window=10),
    "phi3-longrope": lambda: tf.Phi3Config(**SIZES, original_max_position_embeddings=64, rope_parameters=longrope(64)),
    "glm4": lambda: tf.Glm4Config(**SIZES, head_dim=16, partial_rotary_factor=0.5),
    "cohere": lambda: tf.CohereConfig(**SIZES),
    "cohere2": lambda: tf.Cohere2Config(**SIZES, sliding_window=10),
    "smollm3": lambda: tf.SmolLM3Config(**SIZES),
    "gpt-neox": lambda: tf.GPTNeoXConfig(
        **{name: size for name, size in SIZES.items() if name != "num_key_value_heads"}, rotary_pct=0.5
    ),
    "deepseek-v3": lambda: tf.DeepseekV3Config(**SIZES | LATENT | ROUTED, rope_parameters=YARN),
    "deepseek-v2": lambda: tf.DeepseekV2Config(**SIZES | LATENT | ROUTED | {"q_lora_rank": None}),
    "minicpm3": lambda: tf.MiniCPM3Config(**SIZES | LATENT),
    "mistral4": lambda: tf.Mistral4Config(
        **SIZES | LATENT | ROUTED,
        rope_parameters=YARN | {"llama_4_scaling_beta": 0.1, "original_max_position_embeddings": 1024},
    ),
    "longcat": lambda: tf.LongcatFlashConfig(
        **{name: size for name, size in (SIZES | LATENT).items() if name != "num_hidden_layers"},
        num_layers=2,
        head_dim=8,
        ffn_hidden_size=96,
        expert_ffn_hidden_size=32,
        n_routed_experts=4,
        zero_expert_num=0,
        moe_topk=2,
    ),
    "llama-dynamic": lambda: tf.LlamaConfig(**SIZES | {"max_position_embeddings": 400}, rope_parameters=DYNAMIC),
    "gpt-oss": lambda: tf.GptOssConfig(
        **SIZES, head_dim=16, num_local_experts=4, num_experts_per_tok=2, sliding_window=10, rope_parameters=YARN
    ),
}

REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "stablelm": (lambda: tf.StableLmConfig(**SIZES), "_supports_attention_backend"),
    "falcon": (
        lambda: tf.FalconConfig(vocab_size=VOCAB, hidden_size=64, num_hidden_layers=2, num_attention_heads=4),
        "_supports_attention_backend",
    ),
    "hunyuan": (  # channels are weighed after they were turned: what a chunk caches depends on where it stands
        lambda: tf.HunYuanDenseV1Config(**SIZES, head_dim=16),
        "turn with position in a way we do not know",
    ),
    "gpt2": (
        lambda: tf.GPT2Config(vocab_size=VOCAB, n_embd=64, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=2),
        "no rotary embedding",
    ),
    "jetmoe": (
        lambda: tf.JetMoeConfig(
            vocab_size=VOCAB, hidden_size=64, num_hidden_layers=2, num_key_value_heads=2, kv_channels=16,
            intermediate_size=96, num_local_experts=4, num_experts_per_tok=2,
        ),
        "layer 0 does not attend, once, to the very keys and values that its cache holds",
    ),
    "diffllama": (
        lambda: tf.DiffLlamaConfig(**SIZES, head_dim=16),
        "layer 0 does not attend, once, to the very keys and values that its cache holds",
    ),
    "doge": (lambda: tf.DogeConfig(**SIZES), "a mask of its own making"),
    "phimoe-sliding": (
        lambda: tf.PhimoeConfig(**SIZES, num_local_experts=4, num_experts_per_tok=2, sliding_window=64),
        "a sliding window of 64 tokens that its attention is not told of",
    ),
    "minimax": (lambda: tf.MiniMaxConfig(**SIZES), r"layers \(linear_attention\) that carry a state"),
    "qwen3-next": (
        lambda: tf.Qwen3NextConfig(
            **SIZES | ROUTED, head_dim=16, num_experts=4, linear_num_value_heads=2, linear_num_key_heads=2,
            linear_key_head_dim=16, linear_value_head_dim=16,
        ),
        r"layers \(linear_attention\) that carry a state",
    ),
    "lfm2": (
        lambda: tf.Lfm2Config(**SIZES, layer_types=["conv", "full_attention"] * 2),
        r"layers \(conv\) that carry a state"
    ),
    "mamba": (
        lambda: tf.MambaConfig(vocab_size=VOCAB, hidden_size=64, num_hidden_layers=2, state_size=8),
        "carry a state through the text",
    ),
}  # fmt: skip

METHODS: dict[str, Method] = {
    "full": Full(),
    "reuse": Reuse(),
    "samkv": SamKV(),
    "samkv-paper": SamKV.paper(),
    "samkv-late": SamKV(settle_at=3),
    "samkv-half": SamKV(hold=0.5),
    "samkv-drop": SamKV(rest="drop"),
    "samkv-drop-late": SamKV(rest="drop", settle_at=1),
    "samkv-before": SamKV(settle="before"),
    "samkv-before-third": SamKV(settle="before", recompute=1 / 3),
    "samkv-third": SamKV(recompute=1 / 3),
    "samkv-heads-first": SamKV(keep=0.5, recompute=0.5, recompute_by="head"),
    "samkv-fused": SamKV(theta=0.9),
    "samkv-cosine": SamKV(theta="cosine"),
    "samkv-small-blocks": SamKV(block=5),
    "samkv-ends": SamKV(initial=8, local=8),
    "samkv-pooled": SamKV(look="pooled", initial=8, local=8),
    "samkv-means": SamKV(look="mean"),
    "samkv-bounds": SamKV(look="bound"),
    "samkv-two-stage": SamKV(look="two_stage", candidates=2.0),
    "samkv-adjacent": SamKV(look="pooled", frame="adjacent", partner="local"),
    "samkv-aligned": SamKV(settle="before", look="pooled", dynamic=True, fill=False, aligned=True, layers=(1, 3)),
    "samkv-anchors": SamKV(look="pooled", initial=8, local=8, middle=False),
    "samkv-unfiltered": SamKV(look="pooled", filtered=False, block=32, bias=False),
    "cacheblend": CacheBlend(),
    "epic": Epic(),
    "multi_infllm": MultiInfLLM(),
    "prophetkv": ProphetKV(),
    "infoflow": InfoFlow(),
    "random": Random(),
    "random_rest": RandomRest(),
    "anchors_only": AnchorsOnly(),
    "no_context": NoContext(),
}
