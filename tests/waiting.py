"""Waiting in tests: for a condition, never for a time."""

from __future__ import annotations

import time
from collections.abc import Callable

SOON = 120.0


def wait_until(condition: Callable[[], bool]) -> None:
    """Return when the condition holds; a test that waits for what never happens fails."""
    deadline = time.monotonic() + SOON
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.002)
