"""Tensors of the pretended GPU, and the operations on them: what a GPU would refuse is refused."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

CUDA = torch.device("cuda", 0)
PAGEABLE = 64 << 10
"""Bytes up to which a copy from memory that is not pinned does not make the host wait."""
WAITING = {"_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero", "masked_select", "_unique2", "bincount"}
ON_THE_HOST = {"_local_scalar_dense", "item", "is_nonzero", "equal"}
"""What of these returns no tensor on the device."""
INDEXING = {"index", "_unsafe_index", "index_put", "index_put_", "_index_put_impl_"}


class Now:
    """What the pretended GPU is told to do."""

    strict = False
    recording: list[tuple[Callable[..., Any], Any, Any, Any]] | None = None
    replayed = 0


class Pretended(Tensor):
    """A tensor on the pretended GPU; `inner` has its numbers."""

    inner: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: Tensor) -> Any:
        """No inference tensor: torch wants views of other tensors to be none, and these are all alike."""
        with torch.inference_mode(False):
            one = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
                cls, inner.size(), strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
                layout=inner.layout, device=CUDA,
            )  # fmt: skip
        one.inner = inner
        return one

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return dispatched(func, args, kwargs or {})

    def data_ptr(self) -> int:
        return self.inner.data_ptr()

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.inner.untyped_storage()

    def is_pinned(self, device: Any = None) -> bool:
        return False

    def tolist(self) -> Any:
        waits("tolist")
        return self.inner.tolist()

    def numpy(self, **_: Any) -> Any:
        raise TypeError("can't convert a tensor of cuda:0 to numpy; use Tensor.cpu() first")

    def __deepcopy__(self, memo: Any) -> Any:
        copy = Pretended(self.inner.clone())
        return torch.nn.Parameter(copy, self.requires_grad) if isinstance(self, torch.nn.Parameter) else copy

    def __repr__(self, **_: Any) -> str:
        return f"Pretended({self.inner!r})"


def waits(what: str) -> None:
    """The host waits for the device: raise RuntimeError where it must not."""
    if Now.recording is not None:
        raise RuntimeError(f"operation not permitted while a graph is recorded: {what}")
    if Now.strict:
        raise RuntimeError(f"the host waits for the device: {what}")


def mixed(what: str) -> RuntimeError:
    """The error of an operation on tensors of the host and of the device."""
    return RuntimeError(f"{what}: expected all tensors to be on one device, but found cuda:0 and cpu")


def pinned(x: Tensor) -> bool:
    """Whether a tensor of the host is in memory that the device reads by itself."""
    return bool(getattr(x.untyped_storage(), "pinned", False))


def pin(x: Tensor) -> Tensor:
    """The same tensor; its memory is pinned from now on."""
    x.untyped_storage().pinned = True  # type: ignore[attr-defined]
    return x


def on_gpu(device: Any) -> bool:
    return device is not None and torch.device(device).type == "cuda"


def is_there(x: Any) -> bool:
    return isinstance(x, Pretended)


def is_here(x: Any) -> bool:
    return isinstance(x, Tensor) and not isinstance(x, Pretended)


def inner(x: Any) -> Any:
    return x.inner if isinstance(x, Pretended) else x


def dispatched(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Carry out one of torch's operations."""
    name, target = func._schema.name.removeprefix("aten::"), kwargs.get("device")
    if name in ("to", "type_as"):
        with Dispatching():
            return func.decompose(*args, **kwargs)
    flat, spec = tree_flatten((args, kwargs))
    if not on_gpu(target) and not any(map(is_there, flat)):
        return func(*args, **kwargs)
    stays = refuse(name, args, kwargs, flat)
    plain, options = tree_unflatten([inner(x) for x in flat], spec)
    if target is not None:
        options = {**options, "device": torch.device("cpu")}
    out = carry_out(partial(of_numbers, func), plain, options)
    known = {id(x.inner): x for x in flat if isinstance(x, Pretended)}  # what is written in place is what was given

    def there(x: Any) -> Any:
        return (known[id(x)] if id(x) in known else Pretended(x)) if is_here(x) else x

    return tree_map(there, out) if stays else out


def refuse(name: str, args: Any, kwargs: dict[str, Any], flat: list[Any]) -> bool:
    """Raise RuntimeError at what a GPU would refuse; returns whether the result is on it."""
    here = [x for x in flat if is_here(x)]
    if name in ("copy_", "_to_copy"):
        to = args[0].device if name == "copy_" else torch.device(kwargs.get("device") or args[0].device)
        source = args[1] if name == "copy_" else args[0]
        if on_gpu(to) != on_gpu(source.device):
            refuse_copy(source, kwargs.get("non_blocking", args[2] if name == "copy_" and len(args) > 2 else False))
        return on_gpu(to)
    if name in INDEXING:
        refuse_places(name, args)
    elif any(x.dim() for x in here):
        raise mixed(name)
    if name in WAITING or (name == "repeat_interleave" and kwargs.get("output_size") is None):
        waits(name)
    return name not in ON_THE_HOST


def refuse_copy(source: Tensor, in_time: bool) -> None:
    if not in_time:
        waits("a copy between the host and the device, without non_blocking=True")
    elif is_here(source) and not pinned(source) and (source.nbytes > PAGEABLE or Now.recording is not None):
        waits(f"a copy of {source.nbytes} bytes that are not pinned")


def refuse_places(name: str, args: Any) -> None:
    """Indices may come from the host, which waits until they are sent; a mask must be counted, unless one number is
    written."""
    one = len(args) > 2 and args[2].numel() == 1
    if is_here(args[0]) or (len(args) > 2 and is_here(args[2]) and args[2].dim()):
        raise mixed(name)
    for places in args[1]:
        if is_here(places):
            waits(f"{name} by indices of the host")
        elif places is not None and places.dtype in (torch.bool, torch.uint8) and not one:
            waits(f"{name} by a mask")


def of_numbers(func: Any, *args: Any, **kwargs: Any) -> Any:
    """What a GPU can and a CPU cannot: a histogram of integers, on which mixtures of experts depend."""
    if func is torch.ops.aten.histc.default and not args[0].is_floating_point():
        return func(args[0].float(), *args[1:], **kwargs).to(args[0].dtype)
    return func(*args, **kwargs)


def carry_out(run: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """Run a function of plain tensors, as part of the graph that is being recorded, if one is."""
    with torch._C.DisableTorchFunction(), _disable_current_modes():
        out = run(*args, **kwargs)
    if Now.recording is not None:
        Now.recording.append((run, args, kwargs, out))
    return out


class Dispatching(TorchDispatchMode):
    """New tensors can be on the pretended GPU."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return dispatched(func, args, kwargs or {})
