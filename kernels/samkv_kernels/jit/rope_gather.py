"""One launch for all layers: kept tokens out of their blocks, dequantised, keys turned, into the compact cache.

A program copies `TOKENS` slots of one head of one layer, K and V. Slots are read token by token, so a block may be kept
in part; a token's D elements are contiguous. Everything is upcast as it is loaded: Triton's interpreter computes bf16
wrongly otherwise.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from samkv_kernels.jit.launching import on_device, power_of_2, require_one_device

if TYPE_CHECKING:
    from samkv_kernels.rope_gather import Angles, Stored

TOKENS = 16
WARPS = 4


@triton.jit
def _place(layer, block, head, offset, strides):
    return layer * strides[0] + block * strides[1] + head * strides[2] + offset * strides[3]


@triton.jit
def _load(source, mask):
    # Not load(other=0): it cannot make a zero of every type in every release.
    return tl.where(mask, tl.load(source, mask=mask).to(tl.float32), 0.0)


@triton.jit
def _put(out, x, mask):
    tl.store(out, x.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _key(key, scale, zero, scale_step, zero_step, at, mask, SCALED: tl.constexpr, ZERO: tl.constexpr):
    x = _load(key + at, mask)
    if SCALED:
        x = x * _load(scale + at * scale_step, mask)
    if ZERO:
        x = x + _load(zero + at * zero_step, mask)
    return x


@triton.jit(do_not_specialize=["slots"])
def gather_kernel(
    keys, values, key_scale, key_zero, value_scale, out_keys, out_values, rows, cos, sin, table, slots,
    key_strides, value_strides, key_scale_strides, key_zero_strides, value_scale_strides, out_strides,
    SIZE: tl.constexpr, DIM: tl.constexpr, HALF: tl.constexpr, WIDE: tl.constexpr, WIDE_HALF: tl.constexpr,
    WIDE_REST: tl.constexpr, TOKENS: tl.constexpr, INTERLEAVED: tl.constexpr, BY_LAYER: tl.constexpr,
    KEY_SCALED: tl.constexpr, KEY_ZERO: tl.constexpr, VALUE_SCALED: tl.constexpr,
):  # fmt: skip
    slot = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)[:, None]
    head = tl.program_id(1).to(tl.int64)
    layer = tl.program_id(2).to(tl.int64)
    inside = slot < slots
    row = tl.load(rows + slot, mask=inside, other=-1).to(tl.int64)
    there = row >= 0
    row = tl.maximum(row, 0)
    block = row // SIZE
    offset = row % SIZE
    key = keys + _place(layer, block, head, offset, key_strides)
    scale = key_scale + _place(layer, block, head, offset, key_scale_strides)
    zero = key_zero + _place(layer, block, head, offset, key_zero_strides)
    target = layer * out_strides[0] + head * out_strides[1] + slot.to(tl.int64) * out_strides[2]
    if HALF > 0:
        pair = tl.arange(0, WIDE_HALF)[None, :]
        first = pair * 2 if INTERLEAVED else pair
        second = first + 1 if INTERLEAVED else pair + HALF
        real = there & (pair < HALF)
        a = _key(key, scale, zero, key_scale_strides[4], key_zero_strides[4], first, real, KEY_SCALED, KEY_ZERO)
        b = _key(key, scale, zero, key_scale_strides[4], key_zero_strides[4], second, real, KEY_SCALED, KEY_ZERO)
        which = tl.load(table + layer).to(tl.int64) if BY_LAYER else layer * 0
        angle = (tl.maximum(which, 0) * slots + slot) * HALF + pair
        c = tl.where(which >= 0, tl.load(cos + angle, mask=real, other=1.0), 1.0)
        s = tl.where(which >= 0, tl.load(sin + angle, mask=real, other=0.0), 0.0)
        _put(out_keys + target + first, a * c - b * s, inside & (pair < HALF))
        _put(out_keys + target + second, b * c + a * s, inside & (pair < HALF))
    if WIDE_REST > 0:
        still = 2 * HALF + tl.arange(0, WIDE_REST)[None, :]
        real = there & (still < DIM)
        x = _key(key, scale, zero, key_scale_strides[4], key_zero_strides[4], still, real, KEY_SCALED, KEY_ZERO)
        _put(out_keys + target + still, x, inside & (still < DIM))
    at = tl.arange(0, WIDE)[None, :]
    real = there & (at < DIM)
    v = _load(values + _place(layer, block, head, offset, value_strides) + at, real)
    if VALUE_SCALED:
        scale = value_scale + _place(layer, block, head, offset, value_scale_strides)
        v = v * _load(scale + at * value_scale_strides[4], real)
    _put(out_values + target + at, v, inside & (at < DIM))


def sizes(stored: Stored, angles: Angles) -> dict[str, Any]:
    """The constants of a launch."""
    size, dim = stored.keys.shape[3:]
    half = angles.cos.shape[-1]
    rest = dim - 2 * half
    return {
        "SIZE": size, "DIM": dim, "HALF": half, "WIDE": power_of_2(dim), "WIDE_HALF": power_of_2(max(half, 1)),
        "WIDE_REST": power_of_2(rest) if rest else 0, "TOKENS": TOKENS, "INTERLEAVED": angles.interleaved,
        "BY_LAYER": angles.table is not None, "KEY_SCALED": stored.key_scale is not None,
        "KEY_ZERO": stored.key_zero is not None, "VALUE_SCALED": stored.value_scale is not None,
    }  # fmt: skip


def gather_into(keys: Tensor, values: Tensor, stored: Stored, rows: Tensor, angles: Angles) -> None:
    """Fill the first `len(rows)` slots of `keys` and `values` `(L, G, >= T, D)`. Raises ValueError on tensors that the
    device cannot read."""
    scales = [
        stored.keys if x is None else x.expand(stored.keys.shape)
        for x in (stored.key_scale, stored.key_zero, stored.value_scale)
    ]
    table = rows if angles.table is None else angles.table
    blocks = [stored.keys, stored.values, *scales]
    require_one_device(keys, rows, angles.cos, angles.sin, table)
    _require_readable(keys, blocks)
    grid = (triton.cdiv(len(rows), TOKENS), *keys.shape[1::-1])
    if 0 in grid:
        return
    with on_device(keys):
        gather_kernel[grid](
            *blocks[:2], *scales, keys, values, rows, angles.cos.contiguous(), angles.sin.contiguous(), table,
            len(rows), *(x.stride() for x in blocks), keys.stride(), **sizes(stored, angles), num_warps=WARPS,
        )  # fmt: skip


def _require_readable(keys: Tensor, blocks: list[Tensor]) -> None:
    if blocks[0].stride(-1) != 1 or blocks[1].stride(-1) != 1:
        raise ValueError("stored keys and values need contiguous heads; call .contiguous() on the blocks")
    if any(x.device != keys.device and not x.is_pinned() for x in blocks):
        raise ValueError(f"stored blocks must be on {keys.device} or in pinned memory; call .pin_memory() on them")
    fp8 = torch.float8_e4m3fn in (blocks[0].dtype, blocks[1].dtype)
    if fp8 and keys.is_cuda and torch.cuda.get_device_capability(keys.device) < (8, 9):
        raise ValueError("fp8 blocks need a GPU of compute capability 8.9 or newer; store them as int8")
