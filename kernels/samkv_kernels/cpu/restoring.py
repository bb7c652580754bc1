"""From stored blocks of 8 and 4 bits into a cache: what they stand for is computed token by token, and written once."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numba import float32, int32, uint32, uint64
from torch import Tensor

from samkv_kernels.cpu.compiling import compiled
from samkv_kernels.cpu.gathering import BITS, fills, read, turned, within
from samkv_kernels.cpu.memory import memory, table
from samkv_kernels.cpu.threads import Shared, items_of, opened, parts_of, shared

if TYPE_CHECKING:
    from samkv_kernels.rope_gather import Angles, Stored

_IN_ORDER = frozenset({"contract", "nsz"})
"""A scale times the power of two, before the number, would be too large for fp32 from 256 on."""
_KINDS = {torch.int8: 0, torch.float8_e4m3fn: 1, torch.uint8: 2}
"""What the bytes of a block hold: integers, floats, or integers of four bits of two tokens each."""


@compiled(inline=True)
def _numbers(codes: Any, at: int, kind: int, high: bool, scale: Any, zero: Any, out: Any) -> None:
    """What the bytes of a token stand for, which begin `at`, in fp32. Indices without a sign need not be looked at."""
    first = uint64(at)
    if kind == 0:
        for i in range(len(out)):
            number = float32(int32(int32(codes[first + uint64(i)]) << int32(24)) >> int32(24))
            out[i] = number * scale[i] + zero[i]
    elif kind == 1:  # exponents of 4 bits with a bias of 7, where those of fp32 have 8 and one of 127
        for i in range(len(out)):
            code = uint32(codes[first + uint64(i)])
            bits = ((code & uint32(128)) << uint32(24)) | ((code & uint32(127)) << uint32(20))
            out[i] = np.uint32(bits).view(np.float32) * float32(2.0**120) * scale[i] + zero[i]
    else:
        shift = int32(4 if high else 0)
        for i in range(len(out)):
            out[i] = float32((int32(codes[first + uint64(i)]) >> shift) & int32(15)) * scale[i] + zero[i]


@compiled(inline=True)
def _steps(memory: Any, at: int, step: int, out: Any) -> None:
    """As many bf16 numbers as `out` has, from `at` on, in fp32; with a `step` of 0 the first one for all."""
    first = uint64(at)
    if step == 0:
        one = read(memory[first])
        for i in range(len(out)):
            out[i] = one
    else:
        for i in range(len(out)):
            out[i] = read(memory[first + uint64(i)])


@cache
def _kernel(cached: torch.dtype) -> Shared:
    """That for caches of a dtype, compiled now: 3 s the first time."""
    angles, steps = "float32[:,::1]", "uint16[::1], int64[::1]"
    kinds = f"uint8[::1], int64[::1], int64, {steps}, {steps}, int64[::1], int64[::1], int64, {angles}, {angles}, int64"
    kinds += f", {BITS[cached]}[:,::1], int64, int64"

    @shared(kinds, fastmath=_IN_ORDER)
    def restore(job: Any) -> None:
        """Tokens, by `block` (-1: zeros) and `offset` `(T,)` in blocks of `size`, into every `step`-th row of a cache's
        heads, which are `per_new` apart in the table `new` `(N, D)`, turned by cos and sin `(T, W / 2)`.

        Each of the others is memory, with the steps from a block, a head, a token and a channel to the next."""
        (
            codes, code_steps, kind, scales, scale_steps, zeros, zero_steps, block, offset, size, cos, sin, interleaved,
            new, per_new, step,
        ) = opened(job, kinds)  # fmt: skip
        dim = new.shape[1]
        found, scale, zero = np.empty(dim, np.float32), np.empty(dim, np.float32), np.empty(dim, np.float32)
        known = -1, -1
        for _, item in items_of(job):
            head, slot = item // len(block), item % len(block)
            row = new[head * per_new + slot * step]
            if block[slot] < 0:
                row[:] = 0
                continue
            own, token, high = block[slot], offset[slot], kind == 2 and 2 * offset[slot] >= size
            if (head, own) != known or scale_steps[2] != 0:
                place = own * scale_steps[0] + head * scale_steps[1] + token * scale_steps[2]
                _steps(scales, place, scale_steps[3], scale)
            if (head, own) != known or zero_steps[2] != 0:
                place = own * zero_steps[0] + head * zero_steps[1] + token * zero_steps[2]
                _steps(zeros, place, zero_steps[3], zero)
            known = head, own
            token -= size // 2 if high else 0
            place = own * code_steps[0] + head * code_steps[1] + token * code_steps[2]
            _numbers(codes, place, kind, high, scale, zero, found)
            turned(found, cos[slot], sin[slot], interleaved, row)

    return restore


def readable(stored: Stored, keys: Tensor, values: Tensor) -> bool:
    """Whether the kernel takes these blocks, and fills a cache's `keys` and `values` of such a dtype and layout."""
    both = stored.keys, stored.values
    if keys.dtype not in BITS or any(x.dtype not in _KINDS or x.stride(-1) != 1 for x in both):
        return False
    steps = all(x is None or (x.dtype == torch.bfloat16 and x.stride(-1) in (0, 1)) for x in stored.scales)
    return steps and stored.keys.dtype == stored.values.dtype and fills(stored, keys, values)


def gather_into(keys: Tensor, values: Tensor, stored: Stored, rows: Tensor, angles: Angles) -> None:
    """As `rope_gather_into`, of what is `readable`. Raises IndexError for a row, slot or angle that is not there."""
    if not within(keys, stored, rows, angles):
        return
    block, offset = torch.where(rows < 0, -1, rows.long() // stored.size), rows.long() % stored.size
    key_scale, key_zero, value_scale, value_zero = stored.scales
    kernel, items, still = _kernel(keys.dtype), keys.shape[1] * len(rows), torch.empty(len(rows), 0)
    parts = parts_of(items, items * keys.shape[3])
    for layer in range(len(keys)):
        turns = tuple(each.contiguous() for each in angles.layer(layer))
        for new, codes, scale, zero, how in (
            (keys, stored.keys, key_scale, key_zero, turns),
            (values, stored.values, value_scale, value_zero, (still, still)),
        ):
            own = new[layer]
            kernel(
                parts, items, *_placed(codes[layer]), _KINDS[codes.dtype], *_parameters(scale, layer, 1.0),
                *_parameters(zero, layer, 0.0), block, offset, stored.size, *how, angles.interleaved, table(own),
                own.stride(0) // own.shape[2], own.stride(1) // own.shape[2],
            )  # fmt: skip


def _placed(x: Tensor) -> tuple[Tensor, Tensor]:
    """The memory that `x` `(B, G, S, D)` lies in, and its steps."""
    return memory(x), torch.tensor(x.stride())


def _parameters(x: Tensor | None, layer: int, otherwise: float) -> tuple[Tensor, Tensor]:
    """A layer's scales or zeros, or one number for all tokens."""
    if x is not None:
        return _placed(x[layer])
    return _placed(torch.full((1,), otherwise, dtype=torch.bfloat16).as_strided((1, 1, 1, 1), (0, 0, 0, 0)))
