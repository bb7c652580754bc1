"""The reader as plain PyTorch, shaped for training: one passage, many questions that do not see each other.

Parameter names are those of transformers' LlamaForCausalLM, so that the weights export without renaming.
Rows are (context | questions): the context is causal; every question sees the context and itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, silu

from training.attention import as_bias, attend

Look = tuple[int, int, Tensor]
"""Layer, head and flat token places [P]: where attention is to be seen."""


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
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5) * self.weight


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions on x [B, H, T, head_dim], halves convention; cos and sin are [B, 1, T, head_dim / 2]."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


class Attention(nn.Module):
    """Grouped-query attention; the first `split` tokens of a row are its context."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.q_proj = nn.Linear(shape.hidden, shape.heads * shape.head_dim)
        self.k_proj = nn.Linear(shape.hidden, shape.kv_heads * shape.head_dim)
        self.v_proj = nn.Linear(shape.hidden, shape.kv_heads * shape.head_dim)
        self.o_proj = nn.Linear(shape.heads * shape.head_dim, shape.hidden)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, bias: Tensor, split: int) -> Tensor:
        rows, length, _ = x.shape
        heads = (rows, length, -1, self.shape.head_dim)
        q = rotate(self.q_proj(x).view(heads).transpose(1, 2), cos, sin)
        k = rotate(self.k_proj(x).view(heads).transpose(1, 2), cos, sin)
        v = self.v_proj(x).view(heads).transpose(1, 2)
        out = attend(q, k, v, bias, split)
        return cast(Tensor, self.o_proj(out.transpose(1, 2).reshape(rows, length, -1)))

    def look(self, x: Tensor, cos: Tensor, sin: Tensor, at: Tensor, head: int) -> Tensor:
        """Attention logits [P, T] of one head at the flat places `at` [P] over all tokens of their rows."""
        dim, length = self.shape.head_dim, x.shape[1]
        group = head // (self.shape.heads // self.shape.kv_heads)
        q_rows, k_rows = slice(head * dim, (head + 1) * dim), slice(group * dim, (group + 1) * dim)
        keys = linear(x, self.k_proj.weight[k_rows], self.k_proj.bias[k_rows])
        keys = rotate(keys[:, None], cos, sin)[:, 0]
        asking = linear(x.flatten(0, 1)[at], self.q_proj.weight[q_rows], self.q_proj.bias[q_rows])
        asking = rotate(asking, cos.flatten(0, 2)[at], sin.flatten(0, 2)[at])
        found: Tensor = torch.zeros(len(at), length)
        for row in range(x.shape[0]):
            inside = (at // length == row).nonzero()[:, 0]
            found = found.index_add(0, inside, (asking[inside] @ keys[row].T).float())
        return cast(Tensor, found * dim**-0.5)


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

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, bias: Tensor, split: int) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, bias, split)
        return x + cast(Tensor, self.mlp(self.post_attention_layernorm(x)))


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
        """cos and sin [B, 1, T, head_dim / 2] of positions [B, T]."""
        turns = positions[:, None, :, None].float() * self.frequencies
        return turns.cos(), turns.sin()

    def forward(
        self, ids: Tensor, positions: Tensor, mask: Tensor, split: int, looks: Sequence[Look] = ()
    ) -> tuple[Tensor, list[Tensor]]:
        """Hidden states [B, T, hidden], and the logits of every look."""
        cos, sin = self.angles(positions)
        x: Tensor = self.embed_tokens(ids)
        bias = as_bias(mask)
        found = dict[int, Tensor]()
        for index, layer in enumerate(self.blocks):
            for number, (where, head, at) in enumerate(looks):
                if where == index:
                    found[number] = layer.self_attn.look(layer.input_layernorm(x), cos, sin, at, head)
            x = layer(x, cos, sin, bias, split)
        return cast(Tensor, self.norm(x)), [found[number] for number in range(len(looks))]


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
        """Logits [N, vocab] at the N flat token places `where` of ids [B, T], and attention logits [P, T] of `looks`.

        positions [B, T]; mask [B, 1, U, T].
        """
        hidden, found = self.model(ids, positions, mask, split, looks)
        return cast(Tensor, self.lm_head(hidden.flatten(0, 1)[where])), found
