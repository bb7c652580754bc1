"""From stored blocks into a cache: every number is read once and written once, keys are turned on the way."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numba import types
from numba.extending import overload
from torch import Tensor

from samkv_kernels.cpu.compiling import compiled
from samkv_kernels.cpu.memory import in_rows, table
from samkv_kernels.cpu.threads import Shared, items_of, opened, parts_of, shared

if TYPE_CHECKING:
    from samkv_kernels.rope_gather import Angles, Stored

BITS = {torch.float32: "float32", torch.bfloat16: "uint16"}
"""What is read and written, by dtype; NumPy has no bfloat16, so its bits are."""
_PAIRS = (
    (torch.float32, torch.float32),
    (torch.bfloat16, torch.bfloat16),
    (torch.bfloat16, torch.float32),
)
"""Of which blocks, and for which caches, there are kernels: for those that a store keeps. Each compiles for 0.7 s."""
_NAN = 0x7FC0


def read(number: Any) -> Any:
    """A number in fp32."""


def written(number: Any, like: Any) -> Any:
    """An fp32 number in the type of another, rounded to the nearest, ties to even."""


@overload(read, strict=False)
def _reading(number: Any) -> Any:
    if number == types.uint16:
        return lambda number: np.uint32(np.uint32(number) << np.uint32(16)).view(np.float32)
    return lambda number: number


@overload(written, strict=False)
def _writing(number: Any, like: Any) -> Any:
    if like != types.uint16:
        return lambda number, like: number

    def rounded(number: Any, like: Any) -> Any:
        bits = np.float32(number).view(np.uint32)
        even = (bits >> np.uint32(16)) & np.uint32(1)
        nearest = np.uint16((bits + np.uint32(0x7FFF) + even) >> np.uint32(16))
        return nearest if number == number else np.uint16(_NAN)

    return rounded


@compiled(inline=True)
def turned(old: Any, cos: Any, sin: Any, interleaved: bool, new: Any) -> None:
    """Write a key `(D,)`, turned by angles `(W / 2,)`."""
    half, like = len(cos), new[0]
    if interleaved:
        for i in range(half):
            x, y, even, odd = read(old[2 * i]), read(old[2 * i + 1]), 2 * i, 2 * i + 1
            new[even], new[odd] = written(x * cos[i] - y * sin[i], like), written(y * cos[i] + x * sin[i], like)
    else:
        for i in range(half):
            x, y = read(old[i]), read(old[half + i])
            new[i], new[half + i] = written(x * cos[i] - y * sin[i], like), written(y * cos[i] + x * sin[i], like)
    for i in range(2 * half, len(new)):
        new[i] = written(read(old[i]), like)


def _kernel(stored: torch.dtype, cached: torch.dtype) -> Shared:
    old, new = f"{BITS[stored]}[:,::1]", f"{BITS[cached]}[:,::1]"
    kinds = f"{old}, {old}, int64[::1], int64, float32[:,::1], float32[:,::1], int64, {new}, {new}, int64, int64"

    @shared(kinds, fastmath=frozenset({"nsz"}))
    def gather(job: Any) -> None:
        """Rows `at` `(T,)` of the stored ones, for each head `per_head` further on, into every `step`-th row of a
        cache's heads, which are `per_new` apart: all are tables `(N, D)`. -1 gives zeros; `cos` and `sin` are `(T, W /
        2)`."""
        old_keys, old_values, at, per_head, cos, sin, interleaved, keys, values, per_new, step = opened(job, kinds)
        like = keys[0, 0]
        for _, item in items_of(job):
            head, slot = item // len(at), item % len(at)
            place = head * per_new + slot * step
            key, value = keys[place], values[place]
            if at[slot] < 0:
                key[:], value[:] = 0, 0
                continue
            old, plain = old_keys[at[slot] + head * per_head], old_values[at[slot] + head * per_head]
            turned(old, cos[slot], sin[slot], interleaved, key)
            for i in range(len(value)):
                value[i] = written(read(plain[i]), like)

    return gather


_KERNELS = {pair: _kernel(*pair) for pair in _PAIRS}


def readable(stored: Stored, keys: Tensor, values: Tensor) -> bool:
    """Whether the kernel takes these blocks, and fills a cache's `keys` and `values` of such a dtype and layout."""
    if (stored.keys.dtype, keys.dtype) not in _KERNELS or any(scale is not None for scale in stored.scales):
        return False
    alike = _layout(stored.keys) == _layout(stored.values)
    return alike and all(map(in_rows, (stored.keys, stored.values))) and fills(stored, keys, values)


def fills(stored: Stored, keys: Tensor, values: Tensor) -> bool:
    """Whether blocks have the shape of a cache, and this has rows that can be filled."""
    layers, _, heads, _, dim = stored.keys.shape
    fitting = (layers, heads, dim) == (*keys.shape[:2], keys.shape[3]) and _layout(keys) == _layout(values)
    return fitting and all(map(in_rows, (keys, values)))


def _layout(x: Tensor) -> tuple[torch.dtype, torch.Size, tuple[int, ...]]:
    return x.dtype, x.shape, x.stride()


def gather_into(keys: Tensor, values: Tensor, stored: Stored, rows: Tensor, angles: Angles) -> None:
    """As `rope_gather_into`, of what is `readable`. Raises IndexError for a row, slot or angle that is not there."""
    if not within(keys, stored, rows, angles):
        return
    _, per_block, per_head, per_token, _ = (step // keys.shape[3] for step in stored.keys.stride())
    block, offset = rows.long() // stored.size, rows.long() % stored.size
    at = torch.where(rows < 0, -1, block * per_block + offset * per_token)
    kernel, items = _KERNELS[stored.keys.dtype, keys.dtype], keys.shape[1] * len(rows)
    parts = parts_of(items, 2 * items * keys.shape[3])
    for layer in range(len(keys)):
        turns = (each.contiguous() for each in angles.layer(layer))
        old, new = (stored.keys[layer], stored.values[layer]), (keys[layer], values[layer])
        kernel(
            parts, items, *map(table, old), at, per_head, *turns, angles.interleaved, *map(table, new),
            new[0].stride(0) // keys.shape[3], new[0].stride(1) // keys.shape[3],
        )  # fmt: skip


def within(keys: Tensor, stored: Stored, rows: Tensor, angles: Angles) -> bool:
    """Whether there is anything to gather. Raises IndexError for what is not there: compiled loops do not look."""
    if not len(rows) or not keys.numel():
        return False
    room = min(keys.shape[2], angles.cos.shape[1], angles.sin.shape[1])
    beyond = int(rows.max()) >= stored.keys.shape[1] * stored.size or len(rows) > room
    if beyond or 2 * angles.cos.shape[2] > keys.shape[3]:
        raise IndexError("a row, a slot or an angle lies outside of what there is")
    return True
