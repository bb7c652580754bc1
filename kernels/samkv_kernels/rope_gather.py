"""From stored blocks to a compact cache: gather kept tokens, dequantise, turn keys to their true positions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from samkv_kernels.backend import Backend


@dataclass(frozen=True, slots=True)
class Stored:
    """B blocks of S tokens: position-free `keys` and `values` `(L, B, G, S, D)`, any strides with D contiguous.

    bf16, fp16, fp32, int8 or fp8 e4m3. What they mean: `key_scale * keys + key_zero` and `value_scale * values`, where
    given; scales have any float dtype and any shape that broadcasts to the blocks' (per channel of a block, per token).
    """

    keys: Tensor
    values: Tensor
    key_scale: Tensor | None = None
    value_scale: Tensor | None = None
    key_zero: Tensor | None = None

    @classmethod
    def of(cls, kv: Tensor) -> Stored:
        """Views of the storage layout `(L, B, 2, G, S, D)`."""
        return cls(kv[:, :, 0], kv[:, :, 1])

    def layer(self, index: int) -> Stored:
        """One layer of it, as views."""
        parts = (self.keys, self.values, self.key_scale, self.value_scale, self.key_zero)
        shape = self.keys.shape
        return Stored(*(x if x is None else x.expand(shape)[index : index + 1] for x in parts))  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class Angles:
    """How keys turn: fp32 `cos` and `sin` `(N, T, W / 2)`, N tables of W turning dimensions, W at most D.

    `table` int32 `(L,)` names each layer's table, -1 a layer whose keys do not turn; None: all layers use the only one.
    Pairs are (i, i + W / 2), or with `interleaved` (2 i, 2 i + 1); (a, b) becomes (a cos - b sin, b cos + a sin).
    """

    cos: Tensor
    sin: Tensor
    table: Tensor | None = None
    interleaved: bool = False

    def layer(self, index: int) -> Angles:
        """One layer's angles."""
        table = None if self.table is None else self.table[index : index + 1]
        return Angles(self.cos, self.sin, table, self.interleaved)


def rope_gather(
    stored: Stored, rows: Tensor, angles: Angles, dtype: torch.dtype, room: int = 0, backend: Backend = "torch"
) -> tuple[Tensor, Tensor]:
    """Keys and values `(L, G, T + room, D)` in `dtype`, on the device of `rows` and `angles`.

    `rows` int `(T,)` names the stored token of every slot, `block * S + offset`; -1 gives zeros. The last `room` slots
    are left as they come. `stored` may lie in pinned host memory, from which the kernel reads over the bus.
    """
    shape = (*stored.keys.shape[:1], stored.keys.shape[2], len(rows) + room, stored.keys.shape[4])
    keys, values = (torch.empty(shape, dtype=dtype, device=rows.device) for _ in range(2))
    if backend == "triton":
        from samkv_kernels.jit.rope_gather import gather_into

        gather_into(keys, values, stored, rows, angles)
    else:
        for layer in range(len(keys)):  # what a layer takes on the way stays in the processor's caches
            plain_keys, plain_values = _gathered(stored.layer(layer), rows)
            keys[layer, :, : len(rows)] = _turned(plain_keys, angles.layer(layer))[0]
            values[layer, :, : len(rows)] = plain_values[0]
    return keys, values


def _gathered(stored: Stored, rows: Tensor) -> tuple[Tensor, Tensor]:
    """fp32 keys and values `(L, G, T, D)` of the tokens `rows`, dequantised, zeros for -1."""
    keys, values = _tokens(stored.keys, rows), _tokens(stored.values, rows)
    if stored.key_scale is not None:
        keys = keys * _tokens(stored.key_scale, rows)
    if stored.key_zero is not None:
        keys = keys + _tokens(stored.key_zero, rows)
    if stored.value_scale is not None:
        values = values * _tokens(stored.value_scale, rows)
    if not len(rows) or rows.min() >= 0:
        return keys, values
    missing = (rows < 0)[:, None]
    return keys.masked_fill(missing, 0), values.masked_fill(missing, 0)


def _tokens(x: Tensor, rows: Tensor) -> Tensor:
    """`(L, B, G, S, D)` -> `(L, G, T, D)`, fp32, on the device of `rows`."""
    blocks, size = x.shape[1], x.shape[3]
    rows, device = rows.clamp(min=0).to(x.device), rows.device
    raw = x.view(torch.int8) if x.dtype.itemsize == 1 else x  # indexing knows no fp8
    if blocks == 1:
        whole = torch.equal(rows, torch.arange(size, device=rows.device))
        tokens = raw[:, 0] if whole else raw[:, 0].index_select(2, rows)
    else:
        tokens = raw[:, rows.div(size, rounding_mode="floor"), :, rows % size].permute(1, 2, 0, 3)
    return tokens.view(x.dtype).to(device).float()


def _turned(keys: Tensor, angles: Angles) -> Tensor:
    """Keys `(L, G, T, D)` in fp32 with every layer turned by its table."""
    half = angles.cos.shape[-1]
    if half == 0:
        return keys
    cos, sin = _by_layer(angles.cos, angles.table, 1.0), _by_layer(angles.sin, angles.table, 0.0)
    part, rest = keys[..., : 2 * half], keys[..., 2 * half :]
    if angles.interleaved:
        a, b = part[..., ::2], part[..., 1::2]
        turned = torch.stack([a * cos - b * sin, b * cos + a * sin], -1).flatten(-2)
    else:
        a, b = part[..., :half], part[..., half:]
        turned = torch.cat([a * cos - b * sin, b * cos + a * sin], -1)
    return torch.cat([turned, rest], -1) if rest.shape[-1] else turned


def _by_layer(x: Tensor, table: Tensor | None, fixed: float) -> Tensor:
    """Tables `(N, T, W / 2)` -> `(L, 1, T, W / 2)`, `fixed` for layers that do not turn; `(1, 1, T, W / 2)` for one."""
    if table is None:
        return x[:, None]
    return torch.where((table < 0)[:, None, None], fixed, x[table.clamp(min=0)])[:, None]
