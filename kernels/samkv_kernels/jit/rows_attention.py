"""Put a new token's keys and values into the cache of every row, in one launch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import triton
import triton.language as tl
from torch import Tensor

from samkv_kernels.jit.launching import on_device, power_of_2, require_one_device

if TYPE_CHECKING:
    from samkv_kernels.rows_attention import Places


@triton.jit
def put_kernel(
    keys, values, into_keys, into_values, places, slots, k_strides, v_strides, token_stride, DIM: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1).to(tl.int64)
    at = tl.arange(0, WIDE)
    real = at < DIM
    place = places + row * 4
    slot = tl.load(slots + row).to(tl.int64) * token_stride
    key = tl.load(keys + row * k_strides[0] + head * k_strides[1] + at, mask=real, other=0).to(tl.float32)
    value = tl.load(values + row * v_strides[0] + head * v_strides[1] + at, mask=real, other=0).to(tl.float32)
    into = into_keys + tl.load(place) + head * tl.load(place + 2) + slot + at
    tl.store(into, key.to(into_keys.dtype.element_ty), mask=real)
    into = into_values + tl.load(place + 1) + head * tl.load(place + 3) + slot + at
    tl.store(into, value.to(into_values.dtype.element_ty), mask=real)


def put(places: Places, slots: Tensor, keys: Tensor, values: Tensor) -> None:
    """See `samkv_kernels.rows_attention.put_rows`."""
    into, dim = (places.keys, places.values), keys.shape[3]
    require_one_device(into[0], keys, values, slots, places.table)
    keys, values = (x if x.stride(-1) == 1 else x.contiguous() for x in (keys, values))
    with on_device(keys):
        put_kernel[keys.shape[:2]](
            keys, values, *into, places.table, slots, keys.stride()[:2], values.stride()[:2], into[0].stride(2),
            DIM=dim, WIDE=power_of_2(dim),
        )  # fmt: skip
