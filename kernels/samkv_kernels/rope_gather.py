"""From stored blocks to a compact cache: gather kept tokens, dequantise, rotate keys to their true positions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from importlib import import_module
from types import ModuleType

import torch
from torch import Tensor

from samkv_kernels.backend import Backend

COPIED = 256 << 20
"""Bytes of blocks copied to a device before they are gathered there: all of a prompt's would be a second cache."""
THREADS = 2
"""Threads of torch's up to which Numba's kernel is faster on one of them than the reference is on all of them, where
only one can run it: 4,096 tokens of 12 layers in float32 take it 76 ms, the reference 200, and 115 on two."""


def halves(numbers: Tensor) -> Tensor:
    """Unpack numbers of four bits `(..., S, D)` from uint8 `(..., S / 2, D)`: the first half of the tokens is in the
    low bits, the other half in the high bits."""
    return torch.cat([numbers & 15, numbers >> 4], -2)


@dataclass(frozen=True, slots=True)
class Stored:
    """B blocks of S tokens: position-free `keys` and `values` `(L, B, G, S, D)`, any strides with D contiguous.

    bf16, fp16, fp32, int8, fp8 e4m3, or uint8 `(L, B, G, S / 2, D)`: numbers of four bits (see `halves`). They stand
    for `key_scale * keys + key_zero` and `value_scale * values + value_zero`, where given; scales and zeros have any
    float dtype and any shape that broadcasts to the blocks' (per channel of a block, per token).
    """

    keys: Tensor
    values: Tensor
    key_scale: Tensor | None = None
    value_scale: Tensor | None = None
    key_zero: Tensor | None = None
    value_zero: Tensor | None = None

    @classmethod
    def of(cls, kv: Tensor) -> Stored:
        """Views of the storage layout `(L, B, 2, G, S, D)`."""
        return cls(kv[:, :, 0], kv[:, :, 1])

    def restored(self, dtype: torch.dtype) -> Tensor:
        """Back in the storage layout `(L, B, 2, G, S, D)`, in `dtype`, dequantised in fp32."""
        keys = _restored(self.keys, self.key_scale, self.key_zero)
        return torch.stack([keys, _restored(self.values, self.value_scale, self.value_zero)], 2).to(dtype)

    @property
    def packed(self) -> bool:
        """Whether each byte holds the numbers of two tokens."""
        return self.keys.dtype == torch.uint8

    @property
    def size(self) -> int:
        """Tokens of a block, S."""
        return self.keys.shape[3] * (2 if self.packed else 1)

    @property
    def scales(self) -> tuple[Tensor | None, ...]:
        """Scales and zeros of the keys, then of the values: views `(L, B, G, S, D)`, None where there are none."""
        shape = (*self.keys.shape[:3], self.size, self.keys.shape[4])
        parts = (self.key_scale, self.key_zero, self.value_scale, self.value_zero)
        return tuple(x if x is None else x.expand(shape) for x in parts)

    def to(self, device: torch.device) -> Stored:
        """The same on another device."""
        return self._each(lambda x: x.to(device))

    def layer(self, index: int) -> Stored:
        """One layer, as views."""
        key_scale, key_zero, value_scale, value_zero = self.scales
        whole = replace(self, key_scale=key_scale, key_zero=key_zero, value_scale=value_scale, value_zero=value_zero)
        return whole._each(lambda x: x[index : index + 1])

    def _each(self, change: Callable[[Tensor], Tensor]) -> Stored:
        parts = (getattr(self, field.name) for field in fields(self))
        return Stored(*(None if x is None else change(x) for x in parts))  # type: ignore[arg-type]


def _restored(numbers: Tensor, scale: Tensor | None, zero: Tensor | None) -> Tensor:
    """What numbers stand for, fp32."""
    found = (halves(numbers) if numbers.dtype == torch.uint8 else numbers).float()
    found = found if scale is None else found * scale.float()
    return found if zero is None else found + zero.float()


@dataclass(frozen=True, slots=True)
class Angles:
    """How keys are rotated: fp32 `cos` and `sin` `(N, T, W / 2)`, N tables of W rotated dimensions, W at most D.

    `table` int32 `(L,)` names each layer's table, -1 a layer whose keys are not rotated; None: all layers use the only
    one. Pairs are (i, i + W / 2), or with `interleaved` (2 i, 2 i + 1); (a, b) becomes (a cos - b sin, b cos + a sin).
    """

    cos: Tensor
    sin: Tensor
    table: Tensor | None = None
    interleaved: bool = False

    def layer(self, index: int) -> tuple[Tensor, Tensor]:
        """One layer's cos and sin `(T, W / 2)`; `(T, 0)` where its keys are not rotated."""
        which = 0 if self.table is None else int(self.table[index])
        return (self.cos[0, :, :0], self.sin[0, :, :0]) if which < 0 else (self.cos[which], self.sin[which])

    def slots(self, start: int, stop: int) -> Angles:
        """The angles of some neighbouring slots."""
        return Angles(self.cos[:, start:stop], self.sin[:, start:stop], self.table, self.interleaved)


@dataclass(frozen=True, slots=True)
class Piece:
    """Stored tokens for neighbouring slots, from slot `start` on: `rows` int `(T,)` of `stored`, as in
    `rope_gather`."""

    start: int
    stored: Stored
    rows: Tensor

    @property
    def stop(self) -> int:
        """The slot after them."""
        return self.start + len(self.rows)


def rope_gather(
    stored: Stored, rows: Tensor, angles: Angles, dtype: torch.dtype, room: int = 0, backend: Backend = "torch"
) -> tuple[Tensor, Tensor]:
    """Keys and values `(L, G, T + room, D)` in `dtype`, on the device of `rows` and `angles`.

    `rows` int `(T,)` names the stored token of every slot, `block * S + offset`; -1 gives zeros. The last `room` slots
    are left uninitialised. `stored` may be in pinned host memory, from which the kernel reads over the bus.
    """
    shape = (*stored.keys.shape[:1], stored.keys.shape[2], len(rows) + room, stored.keys.shape[4])
    keys, values = (torch.empty(shape, dtype=dtype, device=rows.device) for _ in range(2))
    rope_gather_into(keys, values, stored, rows, angles, backend)
    return keys, values


def rope_gather_into(
    keys: Tensor, values: Tensor, stored: Stored, rows: Tensor, angles: Angles, backend: Backend = "torch"
) -> None:
    """As `rope_gather`, into the first slots of `keys` and `values` `(L, G, >= T, D)`, whose D is contiguous."""
    if backend == "triton":
        from samkv_kernels.jit.rope_gather import gather_into

        gather_into(keys, values, [Piece(0, stored, rows)], angles)
        return
    if backend == "numba" and _by_numba(keys, values, stored, rows, angles):
        return
    tokens = Tokens.of(rows, stored)
    for layer in range(len(keys)):  # one layer's intermediate results stay in the processor's caches
        plain_keys, plain_values = _gathered(stored.layer(layer), tokens)  # where the blocks are, which may be the host
        turned = keys[layer, :, : len(rows)]
        _turn_into(turned, plain_keys.to(keys.device), *angles.layer(layer), angles.interleaved)
        values[layer, :, : len(rows)] = plain_values


def _by_numba(keys: Tensor, values: Tensor, stored: Stored, rows: Tensor, angles: Angles) -> bool:
    """Gather by the kernel for a CPU, if it takes this and is faster; whether it has."""
    from samkv_kernels.cpu.threads import several

    if torch.get_num_threads() > THREADS and not several():
        return False
    kernel = _kernel_for(stored)
    taken: bool = kernel.readable(stored, keys, values)
    if taken:
        kernel.gather_into(keys, values, stored, rows, angles)
    return taken


def _kernel_for(stored: Stored) -> ModuleType:
    """The module that gathers such blocks; what few stores need is compiled when it is first needed."""
    return import_module(f"samkv_kernels.cpu.{'restoring' if stored.keys.dtype.itemsize == 1 else 'gathering'}")


def rope_gather_pieces_into(
    keys: Tensor, values: Tensor, pieces: Iterable[Piece], angles: Angles, backend: Backend = "torch"
) -> None:
    """Fill all slots of `keys` and `values` `(L, G, T, D)`: from `pieces`, which come in order and do not overlap, and
    with zeros where there is none. `angles` are those of all slots. What the kernel cannot read in place is copied,
    some `COPIED` bytes before each launch; the reference fills what has come so far."""
    if backend == "triton":
        from samkv_kernels.jit.rope_gather import gather_into

        for begin, end, run in _launches(pieces, keys):
            here = keys[:, :, begin:end], values[:, :, begin:end]
            gather_into(*here, run, angles.slots(begin, end), _gaps(run, end - begin))
        return
    end = 0
    for piece in pieces:
        for buffer in (keys, values):
            buffer[:, :, end : piece.start] = 0
        begin, end = piece.start, piece.stop
        here = keys[:, :, begin:end], values[:, :, begin:end]
        rope_gather_into(*here, piece.stored.to(keys.device), piece.rows, angles.slots(begin, end), backend)
    for buffer in (keys, values):
        buffer[:, :, end:] = 0


def _launches(pieces: Iterable[Piece], keys: Tensor) -> Iterator[tuple[int, int, list[Piece]]]:
    """Yield runs of neighbouring slots, (first, stop), that make up all of `keys`, and the pieces of each, their slots
    counted from the run's first and their blocks where the kernel can read them."""
    begin, copied, run = 0, 0, list[Piece]()
    for piece in pieces:
        stored, start = piece.stored, piece.start - begin
        if not stored.keys.is_pinned() and stored.keys.device != keys.device:
            stored, copied = stored.to(keys.device), copied + stored.keys.nbytes + stored.values.nbytes
        run.append(Piece(start, stored, piece.rows))
        if copied > COPIED:
            yield begin, piece.stop, run
            begin, copied, run = piece.stop, 0, []
    yield begin, keys.shape[2], run


def _gaps(pieces: Sequence[Piece], slots: int) -> list[tuple[int, int]]:
    """Runs of slots, (first, count), that belong to no piece."""
    ends = [0, *(piece.stop for piece in pieces)]
    starts = [*(piece.start for piece in pieces), slots]
    return [(end, start - end) for end, start in zip(ends, starts, strict=True) if start > end]


@dataclass(frozen=True, slots=True)
class Tokens:
    """Which tokens to take from stored blocks of `size`: `block` and `offset` `(T,)`, or None for the first `count` in
    order; `missing` `(T, 1)` marks those that are not stored, None if all are."""

    count: int
    size: int
    block: Tensor | None
    offset: Tensor | None
    missing: Tensor | None

    @classmethod
    def of(cls, rows: Tensor, stored: Stored) -> Tokens:
        """What `rows` mean for blocks of this size."""
        size, rows = stored.size, rows.to(stored.keys.device)
        if torch.equal(rows, torch.arange(len(rows), device=rows.device, dtype=rows.dtype)):
            return cls(len(rows), size, None, None, None)
        missing = (rows < 0)[:, None]
        rows = rows.clamp(min=0).long()
        return cls(len(rows), size, rows // size, rows % size, missing if missing.any() else None)

    def take(self, x: Tensor) -> Tensor:
        """One layer `(1, B, G, S, D)` -> fp32 `(G, T, D)`."""
        if x.shape[3] != self.size:
            return self._take_packed(x[0])
        raw = x[0].view(torch.int8) if x.dtype.itemsize == 1 else x[0]  # indexing does not support fp8
        if self.block is None:
            found = raw.transpose(0, 1).flatten(1, 2)[:, : self.count]
        else:
            found = raw[self.block, :, self.offset].transpose(0, 1)
        return found.view(x.dtype).float()

    def _take_packed(self, x: Tensor) -> Tensor:
        """As `take`, from numbers of four bits, uint8 `(B, G, S / 2, D)`."""
        if self.block is None or self.offset is None:
            return halves(x).transpose(0, 1).flatten(1, 2)[:, : self.count].float()
        found = x[self.block, :, self.offset % x.shape[2]] >> 4 * (self.offset // x.shape[2])[:, None, None]
        return (found & 15).transpose(0, 1).float()


def _gathered(stored: Stored, tokens: Tokens) -> tuple[Tensor, Tensor]:
    """fp32 keys and values `(G, T, D)` of one layer, dequantised, zeros for what is not stored."""
    keys, values = tokens.take(stored.keys), tokens.take(stored.values)
    if stored.key_scale is not None:
        keys = keys * tokens.take(stored.key_scale)
    if stored.key_zero is not None:
        keys = keys + tokens.take(stored.key_zero)
    if stored.value_scale is not None:
        values = values * tokens.take(stored.value_scale)
    if stored.value_zero is not None:
        values = values + tokens.take(stored.value_zero)
    if tokens.missing is None:
        return keys, values
    return keys.masked_fill(tokens.missing, 0), values.masked_fill(tokens.missing, 0)


def _turn_into(out: Tensor, keys: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> None:
    """Write one layer's keys `(G, T, D)`, rotated, to `out`, in its dtype."""
    half = cos.shape[-1]
    neighbours = slice(0, 2 * half, 2), slice(1, 2 * half, 2)
    first, second = neighbours if interleaved else (slice(0, half), slice(half, 2 * half))
    a, b = keys[..., first], keys[..., second]
    out[..., first] = (a * cos).addcmul_(b, sin, value=-1)
    out[..., second] = (b * cos).addcmul_(a, sin)
    out[..., 2 * half :] = keys[..., 2 * half :]
