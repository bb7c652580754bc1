"""Loops that are shared by torch's own threads: others would have to wait for these, which keep the processors busy.

A kernel is a function of a job: numbers in memory, from which it opens its arguments and takes one part of the work
after the other, until none is left. Several threads may do so at once: those of the OpenMP that torch itself uses.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from numba import carray, types
from numba.core.cgutils import pack_array
from numba.core.sigutils import normalize_signature
from numba.extending import intrinsic
from numba.np.arrayobj import make_array, populate_array
from torch import Tensor

from samkv_kernels.cpu.compiling import ANY_ORDER, called, compiled

_JOB = types.CPointer(types.int64)
LEAST = 1 << 17
"""Numbers that are worth a thread: reading fewer takes no longer than it takes to wake one."""
_DTYPES = {
    types.float32: (torch.float32,), types.uint16: (torch.bfloat16,), types.int64: (torch.int64,),
    types.int8: (torch.int8, torch.uint8), types.uint8: (torch.uint8, torch.int8, torch.float8_e4m3fn),
}  # fmt: skip
"""What is read as what: NumPy has no bfloat16, so its bits are."""
_HEAD = 3
"""Words before the arguments: how many parts have been taken, how many there are, and of how many items."""


@intrinsic
def _taken(_context: Any, job: Any) -> Any:
    """How many parts have been taken before; one more is from now on, for all threads."""

    def write(target: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.atomic_rmw("add", arguments[0], _word(target, 1), "monotonic")

    return types.int64(job), write


@compiled()
def items_of(job: Any) -> Any:
    """Yield items of the next part of the work, each with the part's number, and of others until no part is left."""
    part, head = _taken(job), carray(job, _HEAD)
    while part < head[1]:
        for item in range(head[2] * part // head[1], head[2] * (part + 1) // head[1]):
            yield part, item
        part = _taken(job)


@intrinsic(prefer_literal=True)
def opened(_context: Any, job: Any, kinds: Any) -> Any:
    """The arguments of a job: integers, and arrays that are contiguous, as a list of Numba's types names them."""
    asked = _types(kinds.literal_value)

    def write(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        words = (
            builder.load(builder.gep(arguments[0], [_word(target, at)]))
            for at in range(_HEAD, _HEAD + sum(map(_words, asked)))
        )
        found = [_argument(target, builder, kind, [next(words) for _ in range(_words(kind))]) for kind in asked]
        return target.make_tuple(builder, signature.return_type, found)

    return types.Tuple(asked)(job, kinds), write


def _argument(target: Any, builder: Any, kind: Any, words: list[Any]) -> Any:
    """An integer; or an array, whose first word is where it is, and the others its shape."""
    if not isinstance(kind, types.Array):
        return words[0]
    number = target.get_data_type(kind.dtype)
    steps = [_word(target, target.get_abi_sizeof(number))]
    for size in words[:1:-1]:
        steps.insert(0, builder.mul(steps[0], size))
    array, place = make_array(kind)(target, builder), builder.inttoptr(words[0], number.as_pointer())
    populate_array(array, place, pack_array(builder, words[1:]), pack_array(builder, steps), steps[-1], None)
    return array._getvalue()


def _word(target: Any, number: int) -> Any:
    return target.get_constant(types.int64, number)


@cache
def _types(kinds: str) -> tuple[Any, ...]:
    found: tuple[Any, ...] = normalize_signature(f"void({kinds})")[0]
    return found


def _words(kind: Any) -> int:
    return 1 + (kind.ndim if isinstance(kind, types.Array) else 0)


class Shared:
    """A kernel for arguments of some kinds, compiled at once."""

    def __init__(self, function: Any, kinds: str, fastmath: frozenset[str]) -> None:
        self._kinds = _types(kinds)
        self._compiled = called(types.void(_JOB), fastmath)(function)

    def __call__(self, parts: int, items: int, *arguments: Tensor | int) -> None:
        """Do the work on some items, in parts (see `parts_of`), each by a thread. Raises TypeError for an argument that
        the kernel could not read."""
        words = [0, parts, items]
        for kind, argument in zip(self._kinds, arguments, strict=True):
            words += _facts(kind, argument)
        job = (ctypes.c_int64 * len(words))(*words)
        openmp = _openmp() if parts > 1 else None
        if openmp is None:  # one thread takes all parts
            self._compiled.ctypes(job)
        else:
            openmp(self._compiled.address, job, parts, 0)


def shared(kinds: str, fastmath: frozenset[str] = ANY_ORDER) -> Callable[[Any], Shared]:
    """Compile a function of a job, whose arguments are of some kinds, at once."""
    return lambda function: Shared(function, kinds, fastmath)


def parts_of(items: int, numbers: int) -> int:
    """Into how many parts work on so many items and numbers is divided: as torch divides its own, at most."""
    wanted = min(torch.get_num_threads(), items, numbers // LEAST)
    return wanted if wanted > 1 and several() else 1


def several() -> bool:
    """Whether several threads can share a kernel's work here."""
    return _openmp() is not None


def _facts(kind: Any, argument: Tensor | int) -> list[int]:
    """The words of an argument."""
    if not isinstance(kind, types.Array):
        return [int(argument)]
    if not isinstance(argument, Tensor):
        raise TypeError(f"a kernel reads {kind}, not {argument!r}")
    known = argument.is_cpu and argument.is_contiguous() and argument.dtype in _DTYPES[kind.dtype]
    if not known or argument.dim() != kind.ndim:
        raise TypeError(f"a kernel reads {kind}, not {argument.dtype} {tuple(argument.shape)} {argument.stride()}")
    return [argument.data_ptr(), *argument.shape]


@cache
def _openmp() -> Any:
    """The function that runs another on several of torch's threads; None where torch's are not OpenMP's."""
    own = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    if sys.platform != "linux" or not own.exists():
        return None
    for library in (None, str(own)):  # in the order in which torch itself looks for it
        found = getattr(ctypes.CDLL(library), "GOMP_parallel", None)
        if found is not None:
            found.argtypes, found.restype = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint), None
            return found
    return None
