"""Initial weights that already copy, as plain Llama weights.

Copying an answer takes a known circuit: a head that attends to the previous token, and a head in a later layer that
attends to places whose previous token is the current one, and brings what is there to the output. Gradient descent
alone finds it only after thousands of steps on a flat loss, in a small model; written into the initial weights it costs
none. The same holds for heads that gather the last few words, which is how the end of a question comes to know the
question. The residual stream starts out in five parts: of 192, this token (64), the previous one (32), the last few
tokens (32), the one two back (16), and the output (48). All of this is only a starting point: all weights are trained,
and nothing keeps the parts apart.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from training.model import Attention, Reader, Shape


@dataclass(frozen=True)
class Parts:
    """Where the parts of a stream begin (this token's comes first, at 0), and how wide those for nearby tokens are:
    `near`, as wide as a head."""

    before: int
    recent: int
    farther: int
    output: int
    near: int

    @classmethod
    def of(cls, shape: Shape) -> Parts:
        """The parts for this shape; its heads must be a sixth as wide as its stream."""
        unit, rest = divmod(shape.hidden, 192)
        if rest or shape.head_dim != 32 * unit:
            raise ValueError(f"initial weights need a multiple of 192 units in heads of a sixth, not {shape}")
        return cls(*(unit * place for place in (64, 96, 128, 144, 32)))

    @property
    def half(self) -> int:
        """How much of the output each half of its code fills; the halves begin at 0 and `near` in this token's part."""
        return self.near * 3 // 4


def initialise(reader: Reader, pieces: list[str], seed: int, match: float = 4.0, copy: float = 0.15) -> None:
    """Fill all weights; `pieces` are the texts of the tokens, so that " Oslo" and "oslo" start out alike."""
    generator = torch.Generator().manual_seed(seed)
    for name, weight in reader.named_parameters():
        if weight.dim() > 1:
            weight.data.normal_(0, 0.02, generator=generator)
        elif "norm" not in name:
            weight.data.zero_()
    _embeddings(reader, pieces, generator)
    layers = [block.self_attn for block in reader.model.blocks]
    _previous_token_heads(layers[0], 0.6 * copy)
    _window_heads(layers[0], 1, (4.0, 1.0), 0.6 * copy)
    _induction_heads(layers[1], (0, 1), match, copy)
    _window_heads(layers[1], 2, (2.0, 0.5), 0.6 * copy)
    _induction_heads(layers[2], (0,), match, copy)
    _similar_place_heads(layers[2], (1, 2), 2 * match, copy / 3)
    _similar_place_heads(layers[3], (0, 1), 2 * match, copy / 3)
    _alike_heads(layers[3], (2,), generator)
    for attention in layers[4:]:
        _alike_heads(attention, range(reader.shape.kv_heads), generator)
    for attention in layers:
        _tell_apart(attention, generator)


def _embeddings(reader: Reader, pieces: list[str], generator: torch.Generator) -> None:
    """Codes in THIS for reading and in OUTPUT for writing; a leading space or case changes a code only in part."""
    table, head = reader.model.embed_tokens.weight.data, reader.lm_head.weight.data
    shared, parts = dict[str, Tensor](), Parts.of(reader.shape)
    table *= 0.5
    for row, piece in enumerate(pieces):
        base = shared.setdefault(piece.strip().lower() or piece, torch.randn(parts.before, generator=generator))
        code = 0.7 * base + 0.7 * torch.randn(parts.before, generator=generator)
        table[row, : parts.before] = 0.1 * code
        for number in range(2):
            written, start = parts.output + number * parts.half, number * parts.near
            head[row, written : written + parts.half] = 0.15 * code[start : start + parts.half]


def _rows(number: int, dim: int) -> slice:
    return slice(number * dim, (number + 1) * dim)


def _previous_token_heads(attention: Attention, copy: float) -> None:
    """Heads 0 and 1 attend one and two tokens back: constant query and key whose rotation peaks at that offset."""
    dim, half = attention.shape.head_dim, attention.shape.head_dim // 2
    fast = torch.arange(half // 4)
    frequencies = attention.shape.theta ** -(fast * 2 / dim)
    attention.k_proj.weight.data[:dim] = 0
    attention.k_proj.bias.data[fast] = 7.0
    attention.v_proj.weight.data[:dim] = torch.eye(dim, attention.shape.hidden)
    parts = Parts.of(attention.shape)
    for head, (offset, place, width) in enumerate(((1, parts.before, dim), (2, parts.farther, half))):
        rows = _rows(head, dim)
        attention.q_proj.weight.data[rows] = 0
        attention.q_proj.bias.data[rows][fast] = 7.0 * (frequencies * offset).cos()
        attention.q_proj.bias.data[rows][half + fast] = -7.0 * (frequencies * offset).sin()
        attention.o_proj.weight.data[:, rows] = 0
        attention.o_proj.weight.data[place : place + width, rows] = copy * torch.eye(width, dim)


def _slow_rows(shape: Shape) -> Tensor:
    """Rows of a head that rotate so slowly that a match there hardly depends on the distance."""
    half, first = shape.head_dim // 2, shape.head_dim * 3 // 16
    return torch.cat([torch.arange(first, half), torch.arange(half + first, 2 * half)])


def _near_rows(dim: int) -> Tensor:
    """Rows of a head whose rotation tells near from far."""
    return torch.arange(dim * 3 // 32, dim * 3 // 16)


def _window_heads(attention: Attention, group: int, sharpness: tuple[float, float], copy: float) -> None:
    """The heads of a group average the last tokens, the sharper the fewer, and write them to RECENT."""
    dim, recent = attention.shape.head_dim, Parts.of(attention.shape).recent
    medium = torch.arange(dim // 16, dim * 7 // 32)
    _clear(attention, group)
    attention.k_proj.bias.data[group * dim + medium] = 1.0
    attention.v_proj.weight.data[_rows(group, dim)] = torch.eye(dim, attention.shape.hidden).roll(dim, 1)
    for head, sharp in zip(_heads(attention.shape, group), sharpness, strict=True):
        attention.q_proj.bias.data[head * dim + medium] = sharp * 5 / len(medium) * dim**0.5
        attention.o_proj.weight.data[recent : recent + dim, _rows(head, dim)] = copy * torch.eye(dim)


def _heads(shape: Shape, group: int) -> range:
    per_group = shape.heads // shape.kv_heads
    return range(group * per_group, (group + 1) * per_group)


def _clear(attention: Attention, group: int) -> None:
    dim = attention.shape.head_dim
    for projection in (attention.k_proj, attention.v_proj):
        projection.weight.data[_rows(group, dim)] = 0
    for head in _heads(attention.shape, group):
        attention.q_proj.weight.data[_rows(head, dim)] = 0
        attention.o_proj.weight.data[:, _rows(head, dim)] = 0


def _induction_heads(attention: Attention, groups: tuple[int, ...], match: float, copy: float) -> None:
    """These groups attend to places whose previous token is the current one, and copy what is there."""
    slow, dim = _slow_rows(attention.shape), attention.shape.head_dim
    places = torch.arange(len(slow))
    for group in groups:
        _clear(attention, group)
        code = places + group * (dim - len(slow))
        attention.k_proj.weight.data[group * dim + slow, Parts.of(attention.shape).before + code] = match**0.5
        for head in _heads(attention.shape, group):
            attention.q_proj.weight.data[head * dim + slow, code] = match**0.5
        _copy_out(attention, group, group % 2, copy)


def _copy_out(attention: Attention, group: int, part: int, copy: float) -> None:
    """What a group's heads attend to becomes more likely as the next token; `part` says which half of the code."""
    shape, dim, parts = attention.shape, attention.shape.head_dim, Parts.of(attention.shape)
    value = torch.arange(parts.half)
    attention.v_proj.weight.data[group * dim + value, part * parts.near + value] = 1.0
    for head in _heads(shape, group):
        attention.o_proj.weight.data[parts.output + part * parts.half + value, head * dim + value] = copy


def _similar_place_heads(attention: Attention, groups: tuple[int, ...], match: float, copy: float) -> None:
    """These groups attend, not too near, to places with similar recent words, and lean towards what is there."""
    slow, dim = _slow_rows(attention.shape), attention.shape.head_dim
    near, places = _near_rows(dim), torch.arange(len(slow))
    for part, group in enumerate(groups):
        _clear(attention, group)
        code = Parts.of(attention.shape).recent + places + part * (dim - len(slow))
        attention.k_proj.weight.data[group * dim + slow, code] = match**0.5
        attention.k_proj.bias.data[group * dim + near] = 1.0
        for head in _heads(attention.shape, group):
            attention.q_proj.weight.data[head * dim + slow, code] = match**0.5
            attention.q_proj.bias.data[head * dim + near] = -1.5 * 3 / len(near) * dim**0.5
        _copy_out(attention, group, part, copy)


def _alike_heads(attention: Attention, groups: Iterable[int], generator: torch.Generator) -> None:
    """These groups attend, not too near, to places whose whole state is like the present one in a few directions.

    With small random queries and keys the heads of the upper layers attend to everything alike, and their gradients are
    so small that this does not change.
    """
    slow, dim, hidden = _slow_rows(attention.shape), attention.shape.head_dim, attention.shape.hidden
    near = _near_rows(dim)
    for group in groups:
        directions = 1.2 * torch.linalg.qr(torch.randn(hidden, len(slow), generator=generator))[0].T
        attention.k_proj.weight.data[group * dim + slow] = directions
        attention.k_proj.bias.data[group * dim + near] = 1.0
        attention.v_proj.weight.data[_rows(group, dim)].normal_(0, hidden**-0.5, generator=generator)
        for head in _heads(attention.shape, group):
            attention.q_proj.weight.data[head * dim + slow] = directions
            attention.q_proj.bias.data[head * dim + near] = -3 / len(near) * dim**0.5


def _tell_apart(attention: Attention, generator: torch.Generator) -> None:
    """Perturb the queries: heads of a group that begin equal get equal gradients, and stay equal for ever."""
    weight = attention.q_proj.weight.data
    weight += 0.3 * weight.std(dim=1, keepdim=True) * torch.randn(weight.shape, generator=generator)
