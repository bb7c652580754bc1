"""Counting the calls of a function that goes on as before."""

from __future__ import annotations

from typing import Any

import pytest


def counted(patch: pytest.MonkeyPatch, owner: Any, name: str) -> list[int]:
    """A list that grows by one with every call of a module's function, while `patch` lasts."""
    calls, real = list[int](), getattr(owner, name)

    def call(*args: Any) -> Any:
        calls.append(1)
        return real(*args)

    patch.setattr(owner, name, call)
    return calls
