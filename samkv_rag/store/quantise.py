"""K and V in fewer bytes: how each `kv_dtype` is stored, block by block, and what comes back.

`int8`: keys asymmetric per (layer, block, head, channel), values symmetric per (layer, block, head, token); after
KIVI (Liu et al., 2024): a few key channels are large for all tokens, while values have no such channels. `fp8`: e4m3
with one scale per (layer, head, token) for K and for V: its precision is relative, so a large channel costs the others
nothing, but costs itself precision where it is equally large in every token (Qwen 2.5, whose keys have biases of
hundreds): the middle of every key channel in a block is subtracted first. `int4`: both asymmetric, keys as in int8,
values per (layer, block, head, token), two tokens per byte.

Stored keys are position-free, and their parameters are stored with them. A summary's `low` and `high` would not do:
they bound the keys *rotated* at the chunk's own positions, and a rotation mixes the channels of a pair, so a range of
rotated keys does not bound the same keys before rotation. Keeping rotated keys instead would tie an entry to one
set of frequencies (longrope has two) and cost another rotation at every read.

One block of one layer is one record: `keys | values | parameters`, so it takes one read and has one checksum.
Parameters are bf16 and scales rounded up: no value is clipped, and the error is at most half a step.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from samkv_kernels.rope_gather import Stored
from samkv_rag.store.errors import StoreError
from samkv_rag.types import BLOCK, KV_DTYPES

CASTS = {
    "fp64": torch.float64,
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "i8": torch.int8,
    "u8": torch.uint8,
}
"""Dtypes stored as plain numbers, by name; `i8` and `u8` are integers that were put as such, without parameters."""

_NAMES = {dtype: name for name, dtype in CASTS.items()}
_FP8 = torch.float8_e4m3fn
_FP8_MAX = torch.finfo(_FP8).max
_LARGEST = 2.0**126
"""Two numbers of opposite signs, which may lie so far apart, are within fp32 yet, rounded up as well."""


@dataclass(frozen=True, slots=True)
class Quantiser:
    """How one `kv_dtype` is stored: which fields a record has (for G heads of width D), and what fills them."""

    fields: Callable[[int, int], dict[str, tuple[torch.dtype, tuple[int, int, int]]]]
    parts: Callable[[Tensor], Stored]

    def record_bytes(self, heads: int, width: int) -> int:
        """Bytes of one block of one layer, parameters included."""
        return sum(dtype.itemsize * math.prod(shape) for dtype, shape in self.fields(heads, width).values())

    def pack(self, kv: Tensor) -> Tensor:
        """`(L, B, 2, G, BLOCK, D)` -> records, uint8 `(L, B, bytes)`."""
        parts = self.parts(kv.float())
        filled = [getattr(parts, name) for name in self.fields(kv.shape[3], kv.shape[5])]
        return torch.cat([field.contiguous().flatten(2).view(torch.uint8) for field in filled], -1)

    def unpack(self, records: Tensor, heads: int, width: int) -> Stored:
        """Views into records uint8 `(L, B, bytes)`; nothing is copied."""
        found, at = {}, 0
        for name, (dtype, shape) in self.fields(heads, width).items():
            stop = at + dtype.itemsize * math.prod(shape)
            found[name] = records[..., at:stop].view(dtype).unflatten(-1, shape)
            at = stop
        return Stored(**found)


def int8_parts(kv: Tensor) -> Stored:
    """fp32 `(L, B, 2, G, BLOCK, D)` as int8, keys per channel and values per token."""
    keys, values = kv.unbind(2)
    low, high = keys.amin(-2, keepdim=True), keys.amax(-2, keepdim=True)
    zero = (low / 2 + high / 2).bfloat16()
    key_scale = _scale(torch.maximum(high - zero.float(), zero.float() - low), 127)
    value_scale = _scale(values.abs().amax(-1, keepdim=True), 127)
    return Stored(
        keys=_steps(keys - zero.float(), key_scale).round().to(torch.int8),
        values=_steps(values, value_scale).round().to(torch.int8),
        key_scale=key_scale,
        value_scale=value_scale,
        key_zero=zero,
    )


def fp8_parts(kv: Tensor) -> Stored:
    """fp32 `(L, B, 2, G, BLOCK, D)` as e4m3, with one scale per token and head."""
    low, high = _ends_of_channels(kv)
    zero = (low / 2 + high / 2).bfloat16()
    moved = torch.stack([kv[:, :, 0] - zero.float(), kv[:, :, 1]], 2)
    scale = _scale(moved.abs().amax(-1, keepdim=True), _FP8_MAX)
    steps = _steps(moved, scale).clamp(-_FP8_MAX, _FP8_MAX).to(_FP8)
    return Stored(steps[:, :, 0], steps[:, :, 1], scale[:, :, 0], scale[:, :, 1], zero)


def int4_parts(kv: Tensor) -> Stored:
    """fp32 `(L, B, 2, G, BLOCK, D)` in four bits, keys per channel and values per token."""
    keys, values = kv.unbind(2)
    key_zero, key_scale = _range(*_ends_of_channels(kv))
    value_zero, value_scale = _range(values.amin(-1, keepdim=True), values.amax(-1, keepdim=True))
    return Stored(
        _four_bits(keys, key_scale, key_zero), _four_bits(values, value_scale, value_zero),
        key_scale, value_scale, key_zero, value_zero,
    )  # fmt: skip


def _ends_of_channels(kv: Tensor) -> tuple[Tensor, Tensor]:
    """The minimum and maximum of every key channel of a block `(L, B, G, 1, D)`. Zeros that pad a block do not count:
    there are too few steps to spend any on what is never read. Where there is nothing else, both are 0."""
    there = (kv != 0).any(-1).any(2).any(2)[:, :, None, :, None]  # of some head, a key or a value
    low = kv[:, :, 0].where(there, torch.inf).amin(-2, keepdim=True)
    high = kv[:, :, 0].where(there, -torch.inf).amax(-2, keepdim=True)
    return low.where(low <= high, 0), high.where(low <= high, 0)


def _range(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """A lower bound in bf16, and the scale with which 15 steps from there reach the maximum."""
    zero = low.bfloat16()
    zero = torch.where(zero.float() > low, torch.nextafter(zero, torch.full_like(zero, -math.inf)), zero)
    return zero, _scale(high - zero.float(), 15)


def _four_bits(x: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    numbers = _steps(x - zero.float(), scale).round().clamp(0, 15).to(torch.uint8)
    return numbers[..., : BLOCK // 2, :] | numbers[..., BLOCK // 2 :, :] << 4


def _scale(largest: Tensor, steps: float) -> Tensor:
    """`largest / steps` rounded up to bf16, so that `steps` of it reach `largest`; 0 where that is 0."""
    exact = largest / steps
    scale = exact.bfloat16()
    up = torch.nextafter(scale, torch.full_like(scale, math.inf))
    return torch.where(scale.float() * steps < largest, up, scale)


def _steps(x: Tensor, scale: Tensor) -> Tensor:
    return x / torch.where(scale == 0, 1, scale.float())


def _int8_fields(heads: int, width: int) -> dict[str, tuple[torch.dtype, tuple[int, int, int]]]:
    block, channels, tokens = (heads, BLOCK, width), (heads, 1, width), (heads, BLOCK, 1)
    bf16 = torch.bfloat16
    return {
        "keys": (torch.int8, block), "values": (torch.int8, block),
        "key_scale": (bf16, channels), "key_zero": (bf16, channels), "value_scale": (bf16, tokens),
    }  # fmt: skip


def _fp8_fields(heads: int, width: int) -> dict[str, tuple[torch.dtype, tuple[int, int, int]]]:
    block, channels, scale = (heads, BLOCK, width), (heads, 1, width), (torch.bfloat16, (heads, BLOCK, 1))
    return {
        "keys": (_FP8, block), "values": (_FP8, block),
        "key_scale": scale, "value_scale": scale, "key_zero": (torch.bfloat16, channels),
    }  # fmt: skip


def _int4_fields(heads: int, width: int) -> dict[str, tuple[torch.dtype, tuple[int, int, int]]]:
    half = torch.uint8, (heads, BLOCK // 2, width)
    channels, tokens = (torch.bfloat16, (heads, 1, width)), (torch.bfloat16, (heads, BLOCK, 1))
    return {
        "keys": half, "values": half,
        "key_scale": channels, "key_zero": channels, "value_scale": tokens, "value_zero": tokens,
    }  # fmt: skip


QUANTISERS = {
    "int8": Quantiser(_int8_fields, int8_parts),
    "fp8": Quantiser(_fp8_fields, fp8_parts),
    "int4": Quantiser(_int4_fields, int4_parts),
}


@dataclass(frozen=True, slots=True)
class KVForm:
    """How an entry's K and V are stored (`kv_dtype`), and what they are returned as: `dtype`, G heads of width D."""

    kv_dtype: str
    dtype: torch.dtype
    heads: int
    width: int

    @classmethod
    def of(cls, kv: Tensor, kv_dtype: str) -> KVForm:
        """The form in which `kv` `(L, B, 2, G, BLOCK, D)` is stored; "model" is its own dtype."""
        return cls(stored_as(kv_dtype, kv.dtype), kv.dtype, kv.shape[3], kv.shape[5])

    @property
    def block_bytes(self) -> int:
        """Bytes of one block of one layer as stored."""
        if self.kv_dtype in QUANTISERS:
            return QUANTISERS[self.kv_dtype].record_bytes(self.heads, self.width)
        return 2 * self.heads * BLOCK * self.width * CASTS[self.kv_dtype].itemsize

    def encode(self, kv: Tensor) -> Tensor:
        """What is stored for `kv`: numbers of its shape, or records uint8 `(L, B, bytes)`. StoreError if `kv` has
        numbers that `kv_dtype` cannot hold."""
        if self.kv_dtype in QUANTISERS:
            self._check_size(kv, _LARGEST)
            return QUANTISERS[self.kv_dtype].pack(kv)
        stored = kv.to(CASTS[self.kv_dtype])
        if stored.dtype != kv.dtype:
            self._check_size(stored, torch.finfo(stored.dtype).max)
        return stored

    def decode(self, stored: Tensor) -> Tensor:
        """What `encode` stored, of all or of some layers and blocks, as `(L, B, 2, G, BLOCK, D)` in `dtype`."""
        if self.kv_dtype in QUANTISERS:
            return QUANTISERS[self.kv_dtype].unpack(stored, self.heads, self.width).restored(self.dtype)
        return stored.to(self.dtype)

    def _check_size(self, kv: Tensor, most: float) -> None:
        if not (kv.abs() <= most).all():  # which what is not a number is neither
            raise StoreError(
                f"Keys or values of this chunk are too large for kv_dtype={self.kv_dtype!r}, or not numbers at all: "
                "use kv_dtype='model'."
            )


def stored_as(kv_dtype: str, dtype: torch.dtype) -> str:
    """The name of what is stored for `kv_dtype` ("model" or a name) if the model computes in `dtype`. ValueError for
    an unknown name."""
    if kv_dtype == "model":
        return _NAMES[dtype]
    if kv_dtype not in KV_DTYPES:
        raise ValueError(f"There is no kv_dtype {kv_dtype!r}: use one of {', '.join(KV_DTYPES)}.")
    return kv_dtype


@dataclass(frozen=True, slots=True)
class StoredBlocks:
    """Some blocks of some layers as they were read: `data` `(L, B, ...)`."""

    form: KVForm
    data: Tensor

    @property
    def nbytes(self) -> int:
        """Bytes read, parameters included."""
        return self.data.numel() * self.data.element_size()

    @property
    def parts(self) -> Stored | None:
        """The numbers and parameters of quantised blocks, as views; None for plain numbers."""
        quantiser = QUANTISERS.get(self.form.kv_dtype)
        return None if quantiser is None else quantiser.unpack(self.data, self.form.heads, self.form.width)

    def restored(self) -> Tensor:
        """K and V `(L, B, 2, G, BLOCK, D)` in the dtype that was put."""
        return self.form.decode(self.data)
