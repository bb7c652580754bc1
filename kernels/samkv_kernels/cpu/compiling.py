"""How the kernels are compiled: once, at import, and kept on disk."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import config, njit

ANY_ORDER = frozenset({"reassoc", "contract", "nsz", "arcp"})
"""Sums may be taken in any order, as vectors need it; what is not finite stays so."""


def compiled(*types: str, fastmath: frozenset[str] = ANY_ORDER, inline: bool = False) -> Callable[[Any], Any]:
    """Compile a function, at once if the types of its arguments are given; kept on disk where there is a place.
    Dividing by zero is no error: a test for it would keep divisions out of vectors. Raises RuntimeError where Numba is
    told not to compile: in Python these loops would take minutes."""
    if config.DISABLE_JIT:  # type: ignore[attr-defined]
        raise RuntimeError("NUMBA_DISABLE_JIT is set")
    signature = [f"void({', '.join(types)})"] if types else []

    def compile_it(function: Any) -> Any:
        make: Any = njit
        options = {"nogil": True, "fastmath": set(fastmath), "error_model": "numpy"}
        options |= {"inline": "always"} if inline else {}
        try:
            return make(*signature, **options, cache=True)(function)
        except RuntimeError:  # neither the package's folder nor the user's can be written to
            return make(*signature, **options)(function)

    return compile_it
