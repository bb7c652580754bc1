"""What the tests of kernels for the CPU share: with how many threads they run."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.kernels.inputs import on


@pytest.fixture(params=[1, 3], ids=["one thread", "three threads"])
def on_threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """Run a test on one thread, and on several that share the work."""
    with on(request.param):
        yield request.param
