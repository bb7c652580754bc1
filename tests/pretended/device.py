"""CUDA's streams, events, graphs and memory, pretended; `install` puts them in their places."""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_flatten, tree_unflatten

from tests.pretended.tensors import (
    CUDA,
    Dispatching,
    Now,
    Pretended,
    carry_out,
    inner,
    is_here,
    is_there,
    mixed,
    on_gpu,
    pin,
    pinned,
    waits,
)

CUDA_KIND, META_KIND, KINDS = 1, 14, 15
"""Numbers of `c10::DeviceType`: torch's guard for the meta device, which does nothing, serves as a GPU's."""


class Calling(TorchFunctionMode):
    """What asks CUDA's library before any operation is dispatched."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = {name: numbered(x) for name, x in (kwargs or {}).items()}
        args = tuple(numbered(x) for x in args)
        if func is torch.nn.functional.scaled_dot_product_attention and any(map(is_there, args)):
            return attention(func, args, kwargs)
        if func in (Tensor.__getitem__, Tensor.__setitem__) and is_there(args[0]):
            return func(args[0], listed(args[1]), *args[2:])
        if func is torch.empty and kwargs.pop("pin_memory", False):
            return pin(func(*args, **kwargs))
        if func is Tensor.pin_memory:
            return pin(torch.empty_like(args[0]).copy_(args[0]))
        if func is Tensor.is_pinned:
            return is_here(args[0]) and pinned(args[0])
        if func in (torch.tensor, torch.as_tensor) and on_gpu(kwargs.get("device")):
            return func(*args, **{**kwargs, "device": "cpu"}).to(CUDA)
        return func(*args, **kwargs)


def numbered(x: Any) -> Any:
    """A device with its number: torch would ask the driver for it."""
    return CUDA if isinstance(x, str | torch.device) and str(x) == "cuda" else x


def listed(places: Any) -> Any:
    """Lists of places as tensors of the host: torch would send them by itself."""
    if isinstance(places, tuple):
        return tuple(map(listed, places))
    return torch.tensor(list(places)) if isinstance(places, list | range) else places


def attention(func: Any, args: Any, kwargs: dict[str, Any]) -> Tensor:
    flat, spec = tree_flatten((args, kwargs))
    if any(map(is_here, flat)):
        raise mixed("attention")
    return Pretended(carry_out(func, *tree_unflatten([inner(x) for x in flat], spec)))


class Stream:
    """All streams are one."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def wait_stream(self, other: Any) -> None: ...

    def synchronize(self) -> None:
        waits("a stream is synchronised")


class Event:
    """A moment, on the host's clock."""

    at = 0.0

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def record(self, *_: Any) -> None:
        self.at = time.perf_counter()

    def synchronize(self) -> None:
        waits("an event is synchronised")

    def elapsed_time(self, later: Event) -> float:
        return (later.at - self.at) * 1e3


class Graph:
    """Operations, with the memory that they read and wrote."""

    def capture_begin(self, **_: Any) -> None:
        Now.recording = []

    def capture_end(self) -> None:
        self._done, Now.recording = Now.recording or [], None

    def replay(self) -> None:
        Now.replayed += 1
        with torch._C.DisableTorchFunction(), _disable_current_modes(), torch.inference_mode():
            for run, args, kwargs, out in self._done:
                pairs = zip(tree_flatten(out)[0], tree_flatten(run(*args, **kwargs))[0], strict=True)
                for old, new in pairs:  # results that are new memory here were memory of the graph's
                    if isinstance(old, Tensor) and old.numel() and old.data_ptr() != new.data_ptr():
                        old.copy_(new)


class Generator(torch.Generator):
    """Draws on the host."""

    def __new__(cls, device: Any = "cpu") -> Any:
        return super().__new__(cls, "cpu")


@contextmanager
def nothing(*_: Any) -> Iterator[None]:
    yield


@contextmanager
def pretending() -> Iterator[None]:
    """Within the block, tensors of this thread can be put on the pretended GPU."""
    with Dispatching(), Calling():
        yield


def launched(launch: Callable[..., Any], executor: Any, *args: Any, **kwargs: Any) -> None:
    """A kernel's launch, interpreted."""
    given = [*args, *kwargs.values()]
    if not any(map(is_there, given)):
        return launch(executor, *args, **kwargs)  # type: ignore[no-any-return]
    if any(is_here(x) and not pinned(x) for x in given):
        raise ValueError("a pointer argument cannot be accessed by the device: it is memory of the host, not pinned")
    plain = {name: inner(x) for name, x in kwargs.items()}
    carry_out(lambda *args, **kwargs: launch(executor, *args, **kwargs) and None, [inner(x) for x in args], plain)


def install() -> None:
    """Pretend from now on, in this process: in this thread within `pretending`, and in all threads begun later."""
    c10 = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"))
    guards = (ctypes.c_void_p * KINDS).in_dll(c10, "_ZN3c104impl26device_guard_impl_registryE")
    guards[CUDA_KIND] = guards[META_KIND]
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    still = SimpleNamespace(clone_state=lambda: None, graphsafe_set_state=lambda state: None)
    facts = SimpleNamespace(shared_memory_per_block_optin=232_448, multi_processor_count=132, major=9, minor=0)
    mine: dict[str, Any] = {
        "_lazy_init": lambda: None, "is_available": lambda: True, "device_count": lambda: 1,
        "current_device": lambda: 0, "get_device_name": lambda *_: "a pretended GPU",
        "get_device_capability": lambda *_: (9, 0), "get_device_properties": lambda *_: facts,
        "Stream": Stream, "Event": Event, "CUDAGraph": Graph, "current_stream": Stream, "stream": nothing,
        "device": nothing, "graph_pool_handle": lambda: 0, "default_generators": [still],
        "synchronize": lambda *_: waits("synchronize"),
        "set_sync_debug_mode": lambda mode: setattr(Now, "strict", mode == "error"),
    }  # fmt: skip
    for name, own in mine.items():
        setattr(torch.cuda, name, own)
    torch.Generator = Generator  # type: ignore[misc]
    _patch_threads_and_launches()


def _patch_threads_and_launches() -> None:
    run = threading.Thread.run

    def running(thread: threading.Thread) -> None:
        with pretending():
            run(thread)

    threading.Thread.run = running  # type: ignore[method-assign]
    from triton.runtime.interpreter import GridExecutor

    launch = GridExecutor.__call__
    GridExecutor.__call__ = lambda executor, *args, **kwargs: launched(launch, executor, *args, **kwargs)
