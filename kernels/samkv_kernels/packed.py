"""Keys and values packed into four bits per number, and attention over these together with unpacked ones.

Keys are rounded channel by channel over neighbouring tokens, since some of their channels are large in every token;
values, which have no such channels, token by token (KIVI: Liu et al., ICML 2024). A product with rounded numbers is one
with integers: their scale is applied to the query, or to the weights.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from samkv_kernels.backend import Backend
from samkv_kernels.groups import GROUP, HALF, MOST
from samkv_kernels.softmax import PLAIN, Softmax

FEW = 16
"""Rows that Numba multiplies with packed numbers faster than torch, whose matrix products like many."""


@dataclass(frozen=True, slots=True)
class Rounded:
    """Integers of four bits, two in a byte, and what they stand for: `scale` times the integer, plus `low`.

    `codes` uint8 `(G, B, 16, D)`: of each 32 neighbouring tokens, the first 16 in the low bits, the others in the high
    bits, with the highest bit of each flipped: as signed numbers they are the integers less 8. `steps` fp16
    `(G, B, 2, X)` hold scale and low, divided by `2 ** exponent` so that they fit: per channel over 32 tokens (X = D,
    `along` -2), or per token (X = 32, `along` -1).
    """

    codes: Tensor
    steps: Tensor
    exponent: int
    along: int

    @classmethod
    def of(cls, entries: Tensor, at: Tensor, along: int, backend: Backend = "torch") -> Rounded:
        """Round those of `entries` `(G, T, D)` that are `at` `(N,)`, in groups of 32 `(G, B, 32, D)`, with one scale
        for all numbers along an axis of these. Either backend gives the same; torch gets what is not finite."""
        if backend == "numba" and bool(entries.sum(dtype=torch.float32).isfinite()):
            from samkv_kernels.cpu.rounding import codes, extremes

            exact = entries.float()
            exponent, low, scale = _steps(*extremes(exact, at, along))
            found = codes(exact, at, along, *(_wide(each, exponent, along).squeeze(along) for each in (low, scale)))
        else:
            exact = _grouped(entries, at)
            exponent, low, scale = _steps(exact.amin(along), exact.amax(along))  # on a CPU, aminmax is slow: 30 times
            found = _codes(exact, *(_wide(each, exponent, along) for each in (low, scale)))
        return cls(found, torch.stack([scale, low], 2), exponent, along)

    @property
    def centred(self) -> tuple[Tensor, Tensor]:
        """What the numbers of `by_head` are multiplied by, and what is added to them: each fp32 `(G, B, 1, D)`, or `(G,
        B, 32, 1)` where scales are per token. With a middle, not the low, sums of the two parts hardly cancel: as
        precise as fp32 is without packing."""
        sixteenth = _wide(self.steps[:, :, 0], self.exponent - 4, self.along)
        return sixteenth, _wide(self.steps[:, :, 1], self.exponent, self.along).add_(sixteenth, alpha=128)

    def by_head(self) -> Iterator[tuple[slice, Tensor]]:
        """Yield the heads in groups, with their integers less 8, times 16, fp32 `(g, B, 32, D)`: that is what the high
        bits of signed bytes are. Use each group's before taking the next."""
        pieces = list(_pieces(self.codes))
        signed = self.codes.view(torch.int8)
        bits = torch.empty_like(signed[pieces[0]])
        room = bits.new_empty(*bits.shape[:2], 2, *bits.shape[2:], dtype=torch.float32)
        for own in pieces:
            room[:, :, 0] = torch.mul(signed[own], 16, out=bits)
            room[:, :, 1] = torch.bitwise_and(signed[own], -16, out=bits)
            yield own, room.flatten(2, 3)

    def entries(self, backend: Backend = "torch") -> Tensor:
        """What the integers stand for, fp32 `(G, 32 * B, D)`."""
        if backend == "numba":
            from samkv_kernels.cpu.packed import entries

            return entries(self)
        groups, blocks, _, dim = self.codes.shape
        out = torch.empty(groups, blocks, GROUP, dim, device=self.codes.device)
        scale, middle = self.centred
        for heads, numbers in self.by_head():
            torch.addcmul(middle[heads], numbers, scale[heads], out=out[heads])
        return out.flatten(1, 2)

    @property
    def nbytes(self) -> int:
        return self.codes.nbytes + self.steps.nbytes


@dataclass(frozen=True, slots=True)
class Packed:
    """The keys and values of `count` tokens in a layer, in four bits per number."""

    keys: Rounded
    values: Rounded
    count: int

    @classmethod
    def of(cls, keys: Tensor, values: Tensor, at: Tensor | None = None, backend: Backend = "torch") -> Packed:
        """Pack those of keys and values `(G, T, D)` that are `at` `(N,)`, by default all; at least one token's."""
        at = torch.arange(keys.shape[1], device=keys.device) if at is None else at
        return cls(Rounded.of(keys, at, -2, backend), Rounded.of(values, at, -1, backend), len(at))

    def entries(self, backend: Backend = "torch") -> tuple[Tensor, Tensor]:
        """The keys and values that the integers stand for, fp32 `(G, N, D)`: the reference."""
        return self.keys.entries(backend)[:, : self.count], self.values.entries(backend)[:, : self.count]

    @property
    def nbytes(self) -> int:
        return self.keys.nbytes + self.values.nbytes

    def scores(self, rows: Tensor, backend: Backend = "torch") -> Tensor:
        """Products of `rows` `(G, R, D)` with every head's keys: `(G, R, N)`."""
        if backend == "numba" and rows.shape[1] <= FEW:
            from samkv_kernels.cpu.packed import scores

            return scores(self.keys, rows)[..., : self.count]
        rows, (scale, middle) = rows[:, None], self.keys.centred
        scaled, found = rows * scale, rows @ middle.mT
        products = [scaled[heads] @ numbers.mT for heads, numbers in self.keys.by_head()]
        return (torch.cat(products) + found).transpose(1, 2).flatten(2)[..., : self.count]

    def mixed(self, weights: Tensor, backend: Backend = "torch") -> Tensor:
        """Sums of every head's values, weighted by `weights` `(G, R, N)`: `(G, R, D)`."""
        if backend == "numba" and weights.shape[1] <= FEW:
            from samkv_kernels.cpu.packed import mixed

            return mixed(self.values, weights)
        scale, middle = (each.flatten(1)[:, : self.count] for each in self.values.centred)
        scaled, found = weights * scale[:, None], weights @ middle[..., None]
        numbers = ((heads, own.flatten(1, 2)[:, : self.count]) for heads, own in self.values.by_head())
        return torch.cat([scaled[heads] @ own for heads, own in numbers]) + found


def packed_attention(
    query: Tensor, key: Tensor, value: Tensor, packed: Packed, seen: Tensor | None = None,
    packed_seen: Tensor | None = None, softmax: Softmax = PLAIN, backend: Backend = "torch",
) -> Tensor:  # fmt: skip
    """`softmax(q . k) v` of `query` `(1, H, Q, D)` over `key` and `value` `(1, G, T, D)` and what is `packed`: `(1, H,
    Q, D)` in the query's dtype, computed in fp32.

    `seen` `(Q, T)` and `packed_seen` `(Q, N)` say what a query attends to, by default everything; at least one token.
    The `backend` "triton" has no kernel for this function: only for `rows_attention`.
    """
    groups, (asked, dim) = key.shape[1], query.shape[2:]
    rows: Tensor = (query[0].float() * softmax.scale_for(dim)).reshape(groups, -1, dim)
    parts = (packed.scores(rows, backend), packed_seen), (rows @ key[0].float().mT, seen)
    scores = torch.cat([_capped(*part, softmax.softcap) for part in parts], -1)
    weights = softmax.weights(scores.view(-1, asked, scores.shape[2])).view_as(scores)
    out = packed.mixed(weights[..., : packed.count], backend) + weights[..., packed.count :] @ value[0].float()
    return out.view_as(query).to(query.dtype)


def _capped(scores: Tensor, seen: Tensor | None, softcap: float | None) -> Tensor:
    """Cap scores `(g, rep * Q, T)`, and set them to -inf where a query does not attend to a key."""
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if seen is not None:
        scores.unflatten(1, (-1, len(seen))).masked_fill_(~seen, -torch.inf)
    return scores


def _wide(steps: Tensor, exponent: int, along: int) -> Tensor:
    """What fp16 steps stand for, in a shape that broadcasts to the numbers that share them along an axis."""
    return (steps.float() * 2.0**exponent).unsqueeze(along)


def _pieces(entries: Tensor) -> Iterator[slice]:
    """Heads that are computed together: on a CPU one at a time, so that it stays in the cache, and in memory that is
    already there; new memory costs more than what is computed in it."""
    if entries.is_cpu:
        return (slice(head, head + 1) for head in range(len(entries)))
    return iter([slice(None)])


def _steps(low: Tensor, high: Tensor) -> tuple[int, Tensor, Tensor]:
    """The exponent, and the lows and scales in fp16, of numbers from `low` to `high`."""
    exponent = _exponent(torch.maximum(low.abs(), high.abs()))
    low, high = low * 2.0**-exponent, high * 2.0**-exponent
    low = _half(low, (high - low) / (4 * MOST))
    return exponent, low, ((high - low.float()) / MOST).clamp_(min=torch.finfo(torch.half).tiny).half()


def _codes(entries: Tensor, low: Tensor, scale: Tensor) -> Tensor:
    """The integers of `(G, B, 32, D)`, two in a byte: uint8 `(G, B, 16, D)`."""
    codes = entries.new_empty(*entries.shape[:2], HALF, entries.shape[3], dtype=torch.uint8)
    for own in _pieces(entries):
        exact = (entries[own] - low[own]).div_(scale[own]).round_().clamp_(0, MOST)
        numbers = exact.to(torch.int8).view(torch.uint8)  # a CPU takes seven times as long to convert to unsigned
        torch.bitwise_or(numbers[..., :HALF, :], numbers[..., HALF:, :] << 4, out=codes[own]).bitwise_xor_(0x88)
    return codes


def _half(numbers: Tensor, above: Tensor) -> Tensor:
    """fp16 of fp32 numbers, larger by at most `above`: where a channel's numbers are close together and far from 0, one
    that is rounded up would exceed them all."""
    nearest = numbers.half()
    return nearest.where(nearest <= numbers + above, (numbers - numbers.abs() * 2.0**-11).half())


def _exponent(sizes: Tensor) -> int:
    """The exponent of the power of two that, dividing the largest of some sizes, leaves it just below 2 ** 15."""
    most = float(sizes.amax())
    return max(math.frexp(most)[1] - 15, -100) if math.isfinite(most) else 0


def _grouped(entries: Tensor, at: Tensor) -> Tensor:
    """Entries `at` `(N,)` of `(G, T, D)`: fp32 `(G, B, 32, D)`, the last of them repeated to fill the last group."""
    filled = torch.cat([at, at[-1:].expand(-len(at) % GROUP)])
    return entries.index_select(1, filled).float().reshape(len(entries), -1, GROUP, entries.shape[2])
