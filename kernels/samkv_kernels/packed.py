"""Keys and values in four bits each, and attention over these beside others as they are.

Keys are rounded channel by channel over neighbouring tokens, since some of their channels are large in every token;
values, of which none are, token by token (KIVI: Liu et al., ICML 2024). A product with what was rounded is one with
whole numbers: what these are multiplied by goes to the query, or to the weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from samkv_kernels.softmax import PLAIN, Softmax

GROUP = 32
"""Neighbouring tokens whose keys share the scales of their channels. With 128 a small model lost half as much again."""
HALF = GROUP // 2
MOST = 15


@dataclass(frozen=True, slots=True)
class Rounded:
    """Whole numbers of four bits, two in a byte, and what they stand for: `scale` times the number, and `low` more.

    `codes` uint8 `(G, B, 16, D)`: of each 32 neighbouring tokens the first 16 in the low bits, the others in the high
    ones. `scale` and `low` are `(G, B, 1, D)` by channels or `(G, B, 32, 1)` by tokens, in fp16 if that holds them.
    """

    codes: Tensor
    scale: Tensor
    low: Tensor

    @classmethod
    def of(cls, entries: Tensor, dim: int) -> Rounded:
        """Of `(G, B, 32, D)`, with one scale for all along `dim`."""
        low = _short(entries.amin(dim, keepdim=True).float())
        scale = (entries.amax(dim, keepdim=True).float() - low.float()) / MOST
        scale = _short(scale.clamp_(min=torch.finfo(torch.half).tiny))
        numbers = ((entries - low.float()) / scale.float()).round_().clamp_(0, MOST)
        codes = numbers.to(torch.int8).view(torch.uint8)  # a CPU takes seven times as long to make it unsigned
        return cls(codes[..., :HALF, :] | codes[..., HALF:, :] << 4, scale, low)

    def numbers(self, heads: slice = slice(None), room: Tensor | None = None) -> Tensor:
        """The whole numbers of some heads, fp32 `(g, B, 32, D)`, in memory that is lent (`room`) or new."""
        codes = self.codes[heads]
        if room is None:
            room = codes.new_empty(*codes.shape[:2], 2, *codes.shape[2:], dtype=torch.float32)
        room[:, :, 0] = codes & MOST
        room[:, :, 1] = codes >> 4
        return room.flatten(2, 3)

    def entries(self) -> Tensor:
        """What they stand for, fp32 `(G, 32 * B, D)`."""
        return (self.numbers() * self.scale.float() + self.low.float()).flatten(1, 2)

    @property
    def nbytes(self) -> int:
        return self.codes.nbytes + self.scale.nbytes + self.low.nbytes


@dataclass(frozen=True, slots=True)
class Packed:
    """The keys and values of `count` tokens in a layer, in four bits each."""

    keys: Rounded
    values: Rounded
    count: int

    @classmethod
    def of(cls, keys: Tensor, values: Tensor) -> Packed:
        """Of keys and values `(G, N, D)`, of one token at least."""
        return cls(Rounded.of(_grouped(keys), -2), Rounded.of(_grouped(values), -1), keys.shape[1])

    def entries(self) -> tuple[Tensor, Tensor]:
        """The keys and values that they stand for, fp32 `(G, N, D)`: the reference."""
        return self.keys.entries()[:, : self.count], self.values.entries()[:, : self.count]

    @property
    def nbytes(self) -> int:
        return self.keys.nbytes + self.values.nbytes

    def scores(self, rows: Tensor, heads: slice, room: Tensor | None = None) -> Tensor:
        """Products of `rows` `(g, R, D)` with the keys of as many heads: `(g, R, N)`."""
        rows = rows[:, None]
        scale, low = (each[heads].float() for each in (self.keys.scale, self.keys.low))
        found = (rows * scale) @ self.keys.numbers(heads, room).mT + rows @ low.mT
        return found.transpose(1, 2).flatten(2)[..., : self.count]

    def mixed(self, weights: Tensor, heads: slice, room: Tensor | None = None) -> Tensor:
        """Sums of the values of some heads by `weights` `(g, R, N)`: `(g, R, D)`."""
        scale, low = (each[heads].float().flatten(1)[:, : self.count] for each in (self.values.scale, self.values.low))
        numbers = self.values.numbers(heads, room).flatten(1, 2)[:, : self.count]
        out: Tensor = (weights * scale[:, None]) @ numbers + weights @ low[..., None]
        return out

    def parts(self, device: torch.device) -> Iterator[tuple[slice, Tensor | None]]:
        """Which heads are computed together, and room for their numbers: on a CPU they stay in its cache."""
        if device.type != "cpu":
            yield slice(None), None
            return
        _, blocks, half, dim = self.keys.codes.shape
        room = torch.empty(1, blocks, 2, half, dim)
        yield from ((slice(head, head + 1), room) for head in range(len(self.keys.codes)))


def packed_attention(
    query: Tensor, key: Tensor, value: Tensor, packed: Packed, seen: Tensor | None = None,
    packed_seen: Tensor | None = None, softmax: Softmax = PLAIN,
) -> Tensor:  # fmt: skip
    """`softmax(q . k) v` of `query` `(1, H, Q, D)` over `key` and `value` `(1, G, T, D)` and what is `packed`: `(1, H,
    Q, D)` in the query's dtype, computed in fp32.

    `seen` `(Q, T)` and `packed_seen` `(Q, N)` say what a query sees, by default all; one thing at least.
    """
    groups, dim = key.shape[1], query.shape[3]
    shared = query.shape[1] // groups
    rows: Tensor = (query[0].float() * softmax.scale_for(dim)).reshape(groups, -1, dim)
    out, count = torch.empty_like(rows), packed.count
    for heads, room in packed.parts(query.device):
        own = slice(0, len(rows) * shared) if room is None else slice(heads.start * shared, heads.stop * shared)
        parts = packed.scores(rows[heads], heads, room), rows[heads] @ key[0, heads].float().mT
        masks = packed_seen, seen
        scores = torch.cat([_capped(*each, softmax.softcap) for each in zip(parts, masks, strict=True)], -1)
        by_head = scores.view(-1, query.shape[2], scores.shape[2])
        weights = softmax.of_heads(own).weights(by_head).view(scores.shape)
        out[heads] = packed.mixed(weights[..., :count], heads, room) + weights[..., count:] @ value[0, heads].float()
    return out.view_as(query).to(query.dtype)


def _capped(scores: Tensor, seen: Tensor | None, softcap: float | None) -> Tensor:
    """Scores `(g, rep * Q, T)`, -inf where a query does not see."""
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if seen is not None:
        scores.unflatten(1, (-1, len(seen))).masked_fill_(~seen, -torch.inf)
    return scores


def _short(numbers: Tensor) -> Tensor:
    """In fp16, unless some are too large for it."""
    short = numbers.half()
    return short if bool(short.isfinite().all()) else numbers


def _grouped(entries: Tensor) -> Tensor:
    """`(G, N, D)` -> fp32 `(G, B, 32, D)`, the last token again and again behind it."""
    more = -entries.shape[1] % GROUP
    if more:
        entries = torch.cat([entries, entries[:, -1:].expand(-1, more, -1)], 1)
    return entries.float().reshape(len(entries), -1, GROUP, entries.shape[2])
