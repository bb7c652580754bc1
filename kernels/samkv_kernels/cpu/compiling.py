"""How kernels are compiled for the CPU: once, at import, and kept on disk."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import cfunc, config, njit

ANY_ORDER = frozenset({"reassoc", "contract", "nsz", "arcp"})
"""Sums may be taken in any order, as vectors need it; what is not finite stays so."""


def compiled(fastmath: frozenset[str] = ANY_ORDER, inline: bool = False) -> Callable[[Any], Any]:
    """Compile a function as a part of those that call it."""
    decorator: Callable[[Any], Any] = njit(
        fastmath=set(fastmath), error_model="numpy", inline="always" if inline else "never"
    )
    return decorator


def called(signature: Any, fastmath: frozenset[str]) -> Callable[[Any], Any]:
    """Compile a function that C can call, at once; kept on disk where there is a place. Dividing by zero is no error: a
    test for it would keep divisions out of vectors. Raises RuntimeError where Numba is told not to compile: in Python
    these loops would take minutes."""
    if config.DISABLE_JIT:
        raise RuntimeError("NUMBA_DISABLE_JIT is set")

    def compile_it(function: Any) -> Any:
        options: Any = {"fastmath": set(fastmath), "error_model": "numpy"}
        try:
            return cfunc(signature, cache=True, **options)(function)
        except RuntimeError:  # neither the package's folder nor the user's can be written to
            return cfunc(signature, **options)(function)

    return compile_it
