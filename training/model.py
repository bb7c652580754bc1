"""The reader in plain PyTorch, shaped for training: one passage, many questions that do not attend to each other.

Parameter names are those of transformers' LlamaForCausalLM, so that the weights export without renaming.
Rows are (context | questions): the context is causal; every question attends to the context and itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, rms_norm, silu

from training.attention import as_bias, attend

Look = tuple[int, int, Tensor]
"""Layer, head and places [B, P] in every row whose attention is wanted."""


@dataclass(frozen=True)
class Shape:
    """Sizes of the reader; `head_dim` is independent of `hidden`."""

    vocab: int = 3072
    hidden: int = 192
    layers: int = 6
    heads: int = 6
    kv_heads: int = 3
    head_dim: int = 32
    mlp: int = 320
    theta: float = 10_000_000.0
    max_positions: int = 4096


class Norm(nn.Module):
    """Root mean square norm over the last dimension."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        return (rms_norm(x.float(), self.weight.shape, eps=1e-5) * self.weight).to(x.dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions on x [..., head_dim], halves convention; cos and sin [..., head_dim / 2]."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1).to(x.dtype)


class Attention(nn.Module):
    """Grouped-query attention; the first `split` tokens of a row are its context."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.q_proj = nn.Linear(shape.hidden, shape.heads * shape.head_dim)
        self.k_proj = nn.Linear(shape.hidden, shape.kv_heads * shape.head_dim)
        self.v_proj = nn.Linear(shape.hidden, shape.kv_heads * shape.head_dim)
        self.o_proj = nn.Linear(shape.heads * shape.head_dim, shape.hidden)

    def project(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [N, heads, head_dim], keys and values [N, kv_heads, head_dim] of flat states [N, hidden]."""
        heads = (len(x), -1, self.shape.head_dim)
        q, k = self.q_proj(x).view(heads), self.k_proj(x).view(heads)
        return rotate(q, cos, sin), rotate(k, cos, sin), self.v_proj(x).view(heads)

    def look(self, x: Tensor, cos: Tensor, sin: Tensor, at: Tensor, head: int) -> Tensor:
        """Attention logits [B, P, T] of one head at the places `at` [B, P] of each row of x [B, T, hidden]."""
        dim = self.shape.head_dim
        group = head // (self.shape.heads // self.shape.kv_heads)
        q_rows, k_rows = slice(head * dim, (head + 1) * dim), slice(group * dim, (group + 1) * dim)
        keys = rotate(linear(x, self.k_proj.weight[k_rows], self.k_proj.bias[k_rows]), cos, sin)
        places = at[..., None]
        asking = x.gather(1, places.expand(-1, -1, x.shape[-1]))
        turns = (turn.gather(1, places.expand(-1, -1, dim // 2)) for turn in (cos, sin))
        asking = rotate(linear(asking, self.q_proj.weight[q_rows], self.q_proj.bias[q_rows]), *turns)
        return cast(Tensor, (asking @ keys.mT).float() * dim**-0.5)


class Mlp(nn.Module):
    """Gated feed-forward layer."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden, shape.mlp, bias=False)
        self.up_proj = nn.Linear(shape.hidden, shape.mlp, bias=False)
        self.down_proj = nn.Linear(shape.mlp, shape.hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.down_proj(silu(self.gate_proj(x)) * self.up_proj(x)))


class Layer(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.self_attn, self.mlp = Attention(shape), Mlp(shape)
        self.input_layernorm, self.post_attention_layernorm = Norm(shape.hidden), Norm(shape.hidden)

    def before(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of flat states [N, hidden], rotated by cos and sin [N, 1, head_dim / 2]."""
        return self.self_attn.project(self.input_layernorm(x), cos, sin)

    def after(self, x: Tensor, seen: Tensor) -> Tensor:
        """The states after the layer, from what attention has brought [N, heads * head_dim]."""
        x = x + self.self_attn.o_proj(seen).to(x.dtype)
        return x + cast(Tensor, self.mlp(self.post_attention_layernorm(x))).to(x.dtype)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, bias: Tensor, split: int) -> Tensor:
        """States [B, T, hidden] after the layer; cos and sin [B, T, head_dim / 2]."""
        turns = (turn.flatten(0, 1)[:, None] for turn in (cos, sin))
        parts = self.before(x.flatten(0, 1), *turns)
        q, k, v = (part.view(*x.shape[:2], *part.shape[1:]).transpose(1, 2) for part in parts)
        seen = attend(q, k, v, bias, split).transpose(1, 2).flatten(0, 1).flatten(1)
        return self.after(x.flatten(0, 1), seen).view(x.shape)


class Decoder(nn.Module):
    """Embedding, blocks and the last norm."""

    frequencies: Tensor

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocab, shape.hidden)
        self.blocks = [Layer(shape) for _ in range(shape.layers)]
        self.layers = nn.ModuleList(self.blocks)
        self.norm = Norm(shape.hidden)
        half = torch.arange(0, shape.head_dim, 2) / shape.head_dim
        self.register_buffer("frequencies", shape.theta**-half, persistent=False)

    def angles(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin [B, T, head_dim / 2] of positions [B, T]."""
        turns = positions[..., None].float() * self.frequencies
        return turns.cos(), turns.sin()

    def forward(
        self, ids: Tensor, positions: Tensor, mask: Tensor, split: int, looks: Sequence[Look] = ()
    ) -> tuple[Tensor, list[Tensor]]:
        """Hidden states [B, T, hidden], and the logits of every look."""
        cos, sin = self.angles(positions)
        x: Tensor = self.embed_tokens(ids).to(state_type(ids.device))
        bias = as_bias(mask)
        found = dict[int, Tensor]()
        for index, layer in enumerate(self.blocks):
            for number, (where, head, at) in enumerate(looks):
                if where == index:
                    found[number] = layer.self_attn.look(layer.input_layernorm(x), cos, sin, at, head)
            x = layer(x, cos, sin, bias, split)
        return cast(Tensor, self.norm(x)), [found[number] for number in range(len(looks))]


def state_type(device: torch.device) -> torch.dtype:
    """The dtype in which states pass from layer to layer: half the bytes on a GPU, where training waits for memory."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


class Reader(nn.Module):
    """The language model; embedding and output matrices are separate."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.model = Decoder(shape)
        self.lm_head = nn.Linear(shape.hidden, shape.vocab, bias=False)

    def forward(
        self, ids: Tensor, positions: Tensor, mask: Tensor, split: int, where: Tensor, looks: Sequence[Look] = ()
    ) -> tuple[Tensor, list[Tensor]]:
        """Logits [N, vocab] at the flat token places `where` [N] of ids [B, T], attention logits [B, P, T] of `looks`.

        positions [B, T]; mask [B, 1, U, T].
        """
        hidden, found = self.model(ids, positions, mask, split, looks)
        return cast(Tensor, self.lm_head(hidden.flatten(0, 1).index_select(0, where))), found
