"""One launch for all layers and chunks: gather kept tokens from blocks, dequantise, rotate keys, fill the cache.

A program copies `TOKENS` slots of one head of one layer, K and V. Slots are read token by token, so a block may be kept
in part; a token's D elements are contiguous. Everything is upcast as it is loaded: otherwise Triton's interpreter
computes bf16 wrongly. The place of a piece's blocks is given as their distance from those of the first piece: any two
tensors are some number of elements apart, however they were allocated.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from samkv_kernels.jit.launching import on_device, power_of_2, require_one_device
from samkv_kernels.offsets import apart, hint
from samkv_kernels.repeating import repeated
from samkv_kernels.sending import sent

if TYPE_CHECKING:
    from samkv_kernels.rope_gather import Angles, Piece, Stored

TOKENS = 16
WARPS = 4

Laid = tuple["Piece", list[Tensor]]
"""A piece and its `_blocks`."""


@triton.jit
def _load(source, mask):
    # Not load(other=0): in some releases it cannot make a zero of every type.
    return tl.where(mask, tl.load(source, mask=mask).to(tl.float32), 0.0)


@triton.jit
def _numbers(source, high, mask, PACKED: tl.constexpr):
    # Four bits each if PACKED: those of a block's first half in the low bits, those of its second in the `high` ones.
    if PACKED:
        x = (tl.load(source, mask=mask).to(tl.int32) >> high) & 15
        return tl.where(mask, x.to(tl.float32), 0.0)
    else:
        return _load(source, mask)


@triton.jit
def _put(out, x, mask):
    tl.store(out, x.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _entry(
    numbers, high, scale, zero, scale_step, zero_step, at, mask, PACKED: tl.constexpr, SCALED: tl.constexpr,
    ZERO: tl.constexpr,
):  # fmt: skip
    x = _numbers(numbers + at, high, mask, PACKED)
    if SCALED:
        x = x * _load(scale + at * scale_step, mask)
    if ZERO:
        x = x + _load(zero + at * zero_step, mask)
    return x


@triton.jit
def _place(first, layer, block, head, offset, pieces, piece, strides, PART: tl.constexpr, HINT: tl.constexpr):
    base = tl.multiple_of(tl.load(pieces + piece * 13 + 2 * PART + 1), HINT)
    deep = layer * tl.multiple_of(tl.load(pieces + piece * 13 + 2 * PART + 2), HINT)
    return first + base + deep + block * strides[1] + head * strides[2] + offset * strides[3]


@triton.jit(do_not_specialize=["slots"])
def gather_kernel(
    keys, values, key_scale, key_zero, value_scale, value_zero, out_keys, out_values, rows, cos, sin, table, tiles,
    pieces, slots, key_strides, value_strides, key_scale_strides, key_zero_strides, value_scale_strides,
    value_zero_strides, out_strides,
    SIZE: tl.constexpr, DIM: tl.constexpr, HALF: tl.constexpr, WIDE: tl.constexpr, WIDE_HALF: tl.constexpr,
    WIDE_REST: tl.constexpr, TOKENS: tl.constexpr, INTERLEAVED: tl.constexpr, BY_LAYER: tl.constexpr,
    PACKED: tl.constexpr, KEY_SCALED: tl.constexpr, KEY_ZERO: tl.constexpr, VALUE_SCALED: tl.constexpr,
    VALUE_ZERO: tl.constexpr, HINT: tl.constexpr, SCALE_HINT: tl.constexpr,
):  # fmt: skip
    # A tile is (piece, first slot, slots); piece -1: zeros. A piece is where its rows are and, for each of the six
    # kinds of blocks, where they begin and the step from one layer to the next, multiples of the hints.
    tile = tiles + tl.program_id(0) * 3
    piece = tl.load(tile).to(tl.int64)
    count = tl.load(tile + 2)
    stored = tl.where(piece >= 0, count, 0)
    piece = tl.maximum(piece, 0)
    at = tl.arange(0, TOKENS)[:, None]
    slot = tl.load(tile + 1) + at
    head = tl.program_id(1).to(tl.int64)
    layer = tl.program_id(2).to(tl.int64)
    inside = at < count
    row = tl.load(rows + tl.load(pieces + piece * 13) + slot, mask=at < stored, other=-1).to(tl.int64)
    there = row >= 0
    row = tl.maximum(row, 0)
    block = row // SIZE
    offset = row % SIZE
    line, high = offset, 0
    if PACKED:
        line, high = offset % (SIZE // 2), (offset // (SIZE // 2) * 4).to(tl.int32)
    key = _place(keys, layer, block, head, line, pieces, piece, key_strides, 0, HINT)
    scale = _place(key_scale, layer, block, head, offset, pieces, piece, key_scale_strides, 2, SCALE_HINT)
    zero = _place(key_zero, layer, block, head, offset, pieces, piece, key_zero_strides, 3, SCALE_HINT)
    scale_step, zero_step = key_scale_strides[4], key_zero_strides[4]
    target = layer * out_strides[0] + head * out_strides[1] + slot.to(tl.int64) * out_strides[2]
    if HALF > 0:
        pair = tl.arange(0, WIDE_HALF)[None, :]
        first = pair * 2 if INTERLEAVED else pair
        second = first + 1 if INTERLEAVED else pair + HALF
        real = there & (pair < HALF)
        a = _entry(key, high, scale, zero, scale_step, zero_step, first, real, PACKED, KEY_SCALED, KEY_ZERO)
        b = _entry(key, high, scale, zero, scale_step, zero_step, second, real, PACKED, KEY_SCALED, KEY_ZERO)
        which = tl.load(table + layer).to(tl.int64) if BY_LAYER else layer * 0
        angle = (tl.maximum(which, 0) * slots + slot) * HALF + pair
        c = tl.where(which >= 0, tl.load(cos + angle, mask=real, other=1.0), 1.0)
        s = tl.where(which >= 0, tl.load(sin + angle, mask=real, other=0.0), 0.0)
        _put(out_keys + target + first, a * c - b * s, inside & (pair < HALF))
        _put(out_keys + target + second, b * c + a * s, inside & (pair < HALF))
    if WIDE_REST > 0:
        still = 2 * HALF + tl.arange(0, WIDE_REST)[None, :]
        real = there & (still < DIM)
        x = _entry(key, high, scale, zero, scale_step, zero_step, still, real, PACKED, KEY_SCALED, KEY_ZERO)
        _put(out_keys + target + still, x, inside & (still < DIM))
    at = tl.arange(0, WIDE)[None, :]
    real = there & (at < DIM)
    value = _place(values, layer, block, head, line, pieces, piece, value_strides, 1, HINT)
    scale = _place(value_scale, layer, block, head, offset, pieces, piece, value_scale_strides, 4, SCALE_HINT)
    zero = _place(value_zero, layer, block, head, offset, pieces, piece, value_zero_strides, 5, SCALE_HINT)
    scale_step, zero_step = value_scale_strides[4], value_zero_strides[4]
    v = _entry(value, high, scale, zero, scale_step, zero_step, at, real, PACKED, VALUE_SCALED, VALUE_ZERO)
    _put(out_values + target + at, v, inside & (at < DIM))


def sizes(stored: Stored, angles: Angles) -> dict[str, Any]:
    """The constants of a launch."""
    size, dim = stored.size, stored.keys.shape[4]
    half = angles.cos.shape[-1]
    rest = dim - 2 * half
    return {
        "SIZE": size, "DIM": dim, "HALF": half, "WIDE": power_of_2(dim), "WIDE_HALF": power_of_2(max(half, 1)),
        "WIDE_REST": power_of_2(rest) if rest else 0, "TOKENS": TOKENS, "INTERLEAVED": angles.interleaved,
        "BY_LAYER": angles.table is not None, "KEY_SCALED": stored.key_scale is not None,
        "KEY_ZERO": stored.key_zero is not None, "VALUE_SCALED": stored.value_scale is not None,
        "VALUE_ZERO": stored.value_zero is not None, "PACKED": stored.packed,
    }  # fmt: skip


def gather_into(
    keys: Tensor, values: Tensor, pieces: Sequence[Piece], angles: Angles, gaps: Sequence[tuple[int, int]] = ()
) -> None:
    """Fill slots of `keys` and `values` `(L, G, T, D)` from the `pieces`, and those of the `gaps`, (first, count), with
    zeros. Raises ValueError on tensors that the device cannot read."""
    alike: dict[Any, list[Laid]] = defaultdict(list)
    for piece in pieces:
        blocks = _blocks(piece.stored)
        alike[_kind(piece, blocks)].append((piece, blocks))
    for few in alike.values():
        _launch(keys, values, few, gaps, angles)
        gaps = ()
    for start, count in gaps:  # there is no piece
        keys[:, :, start : start + count], values[:, :, start : start + count] = 0, 0


def _kind(piece: Piece, blocks: Sequence[Tensor]) -> Any:
    """What pieces must have in common to share a launch."""
    parts = [(x.dtype, x.shape[2:], x.stride()[1:]) for x in blocks]
    return piece.rows.dtype, tuple(x is None for x in piece.stored.scales), tuple(parts)


def _blocks(stored: Stored) -> list[Tensor]:
    """Keys, values, and their `scales`; the keys stand in for any that are missing."""
    return [stored.keys, stored.values, *(stored.keys if x is None else x for x in stored.scales)]


def _launch(
    keys: Tensor, values: Tensor, laid: Sequence[Laid], gaps: Sequence[tuple[int, int]], angles: Angles
) -> None:
    pieces, blocks = zip(*laid, strict=True)
    first, rows = pieces[0].stored, pieces[0].rows
    table = rows if angles.table is None else angles.table
    require_one_device(keys, angles.cos, angles.sin, table, *(piece.rows for piece in pieces))
    for each in blocks:
        _require_readable(keys, each)
    spans = [(number, piece.start, len(piece.rows)) for number, piece in enumerate(pieces)]
    tiles = _tiles([*spans, *((-1, *gap) for gap in gaps)])
    grid = (len(tiles), *keys.shape[1::-1])
    if 0 in grid:
        return
    places = [_line(*each, *laid[0]) for each in laid]
    hints = {
        "HINT": hint(chain.from_iterable(line[1:5] for line in places)),
        "SCALE_HINT": hint(chain.from_iterable(line[5:] for line in places)),
    }
    with on_device(keys):
        gather_kernel[grid](
            *blocks[0], keys, values, rows, angles.cos.contiguous(), angles.sin.contiguous(), table,
            sent(tiles, keys.device), sent(torch.tensor(places), keys.device), angles.cos.shape[1],
            *(x.stride() for x in blocks[0]), keys.stride(), **sizes(first, angles), **hints, num_warps=WARPS,
        )  # fmt: skip


def _tiles(spans: Sequence[tuple[int, int, int]]) -> Tensor:
    """Split spans of any length into tiles int32 `(N, 3)` of (piece, first slot, slots)."""
    whole = torch.tensor(spans, dtype=torch.int32)
    counts = -(-whole[:, 2] // TOKENS)
    tiles = repeated(whole, counts)
    before = TOKENS * (torch.arange(len(tiles)) - repeated(counts.cumsum(0) - counts, counts)).int()
    tiles[:, 1] += before
    tiles[:, 2] = (tiles[:, 2] - before).clamp_(max=TOKENS)
    return tiles


def _line(piece: Piece, blocks: Sequence[Tensor], first: Piece, first_blocks: Sequence[Tensor]) -> list[int]:
    """Where a piece is, in 13 numbers: see the kernel."""
    steps = ((apart(x, other), x.stride(0)) for x, other in zip(blocks, first_blocks, strict=True))
    return [apart(piece.rows, first.rows) - piece.start, *chain.from_iterable(steps)]


def _require_readable(keys: Tensor, blocks: Sequence[Tensor]) -> None:
    if blocks[0].stride(-1) != 1 or blocks[1].stride(-1) != 1:
        raise ValueError("stored keys and values need contiguous heads; call .contiguous() on the blocks")
    if any(x.device != keys.device and not x.is_pinned() for x in blocks):
        raise ValueError(f"stored blocks must be on {keys.device} or in pinned memory; call .pin_memory() on them")
    fp8 = torch.float8_e4m3fn in (blocks[0].dtype, blocks[1].dtype)
    if fp8 and keys.is_cuda and torch.cuda.get_device_capability(keys.device) < (8, 9):
        raise ValueError("fp8 blocks need a GPU of compute capability 8.9 or newer; store them as int8")
