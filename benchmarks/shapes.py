"""What the benchmarks run on: random models of a given shape, and prompts of random ids. For speed, never accuracy."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForCausalLM, DeepseekV3Config, LlamaConfig

from samkv_rag.model.adapter import ModelAdapter
from samkv_rag.model.compiling import compile_parts
from samkv_rag.model.loading import ModelSource
from samkv_rag.reader import is_bundled
from samkv_rag.store import ChunkKVStore, chunk_key
from samkv_rag.types import PromptPlan, Question, Segment

CPU_LLAMA = LlamaConfig(
    vocab_size=32000, hidden_size=768, intermediate_size=2048, num_hidden_layers=12, num_attention_heads=12,
    num_key_value_heads=4, max_position_embeddings=8192, bos_token_id=1, eos_token_id=2, pad_token_id=0,
)  # fmt: skip
CPU_LATENT = DeepseekV3Config(
    vocab_size=32000, hidden_size=768, intermediate_size=2048, num_hidden_layers=12, num_attention_heads=12,
    num_key_value_heads=12, q_lora_rank=None, kv_lora_rank=256, qk_nope_head_dim=64, qk_rope_head_dim=32,
    v_head_dim=64, first_k_dense_replace=12, max_position_embeddings=8192, bos_token_id=1, eos_token_id=2,
    pad_token_id=0,
)  # fmt: skip
TINY_LLAMA = LlamaConfig(
    vocab_size=300, hidden_size=64, intermediate_size=96, num_hidden_layers=4, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=8192, bos_token_id=1, eos_token_id=2, pad_token_id=0,
)  # fmt: skip
LLAMA_8B = LlamaConfig(
    vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
    num_key_value_heads=8, max_position_embeddings=131072, bos_token_id=1, eos_token_id=2,
    pad_token_id=0, rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
)  # fmt: skip


HEAD = tuple(range(3, 35))
"""The tokens after which chunks of "random-head" are ingested, and which its prompts begin with."""

FRONT = 8
"""The number of tokens that other prompts begin with: so few that they are computed every time."""


def random_model(
    config: Any = CPU_LLAMA, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu",
    sink_prefix: tuple[int, ...] = (),
) -> ModelAdapter:  # fmt: skip
    """A random model of `config`'s shape, made where it runs, that never ends an answer by itself."""
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.generation_config.eos_token_id = None
    return ModelAdapter(model, sink_prefix)


NOISE = 0.1


@torch.no_grad()
def sharpened(model: Any, by: float = 4.0) -> Any:
    """A random model with its weight matrices scaled up: flat attention would hide wrong masks and positions. Norms and
    biases, which begin as ones and zeros, get noise: some mistakes do not show while all channels are alike."""
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2 and "embed" not in name and "lm_head" not in name:
            parameter.mul_(by)
        if parameter.ndim == 1:
            parameter.add_(torch.randn_like(parameter), alpha=1.0 if name.endswith("sinks") else NOISE)
    return model


def model_named(label: str, device: str | torch.device = "cpu") -> ModelAdapter:
    """The model of a label.

    "random" is 12 x 768 in float32, "random-head" the same, with prompts that begin with the tokens after which chunks
    are ingested, as those of `answer()` do, "random-bf16" in bfloat16, "random-int8" with linear layers in 8 bits,
    "random-latent" a DeepSeek of the same size without experts, in float32, which caches latents of 288 numbers,
    "8b" the shape of Llama-3.1-8B in bfloat16, "8b-compiled" the same with the parts of its layers compiled,
    "8b-shallow" four layers of it in float32, where reuse must be exact to 1e-4,
    "tiny" 4 x 64 in float32 (to see that a benchmark runs), "bundled" and "bundled-small" the readers.
    """
    if is_bundled(label):
        return ModelSource(label, device_map=str(device)).adapter
    if label == "8b-shallow":
        shallow = LlamaConfig(**LLAMA_8B.to_diff_dict() | {"num_hidden_layers": 4})
        return random_model(shallow, torch.float32, device)
    if label in ("8b", "8b-compiled"):
        adapter = random_model(LLAMA_8B, torch.bfloat16, device)
        if label == "8b-compiled":
            compile_parts(adapter.model)
        return adapter
    if label in ("tiny", "random-latent"):
        return random_model(TINY_LLAMA if label == "tiny" else CPU_LATENT, device=device)
    dtype = torch.bfloat16 if label == "random-bf16" else torch.float32
    adapter = random_model(dtype=dtype, device=device, sink_prefix=HEAD if label == "random-head" else ())
    return in_int8(adapter) if label == "random-int8" else adapter


def in_int8(adapter: ModelAdapter) -> ModelAdapter:
    """The same model with linear layers in 8 bits, their inputs rounded token by token (torchao)."""
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    quantize_(adapter.model, Int8DynamicActivationInt8WeightConfig())
    return ModelAdapter(adapter.model)


def random_prompt(
    adapter: ModelAdapter, store: ChunkKVStore, chunks: int, chunk_tokens: int, question: int = 32, seed: int = 0,
    front: int = FRONT,
) -> PromptPlan:  # fmt: skip
    """A plan of `chunks` stored chunks of random ids, with a question after them, and before them the tokens after
    which they are ingested, or `front` random tokens."""
    generator = torch.Generator().manual_seed(seed)
    sizes = [("glue", front), *[("chunk", chunk_tokens)] * chunks, ("glue", question)]
    segments: list[Segment] = []
    for kind, size in sizes:
        ids = tuple(torch.randint(3, adapter.config.vocab_size, (size,), generator=generator).tolist())
        ids = ids if segments else adapter.sink_prefix or ids
        key = chunk_key(ids, "benchmark", "benchmark") if kind == "chunk" else None
        segments.append(Segment(kind, "", ids, segments[-1].stop if segments else 0, key))  # type: ignore[arg-type]
        if key is not None and key not in store:
            store.put(key, adapter.ingest([""], [ids])[0])
    return PromptPlan(tuple(segments), Question("", segments[-1].token_ids, segments[-1].start))
