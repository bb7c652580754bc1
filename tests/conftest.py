"""What every test shares: which tests this machine can run. With SAMKV_TEST_PRETEND=1 it pretends to have a GPU."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import nullcontext

import pytest
import torch

from tests.pretended import device
from tests.pretended.tensors import Now

PRETENDS = os.environ.get("SAMKV_TEST_PRETEND") == "1"


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker also where `pyproject.toml` is not read: under an older pytest, on a borrowed GPU."""
    config.addinivalue_line("markers", "gpu: needs a CUDA device")
    if PRETENDS:
        device.install()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None, object, object]:
    """Let a test put its tensors on the pretended GPU, if there is one."""
    with device.pretending() if PRETENDS else nullcontext():
        return (yield)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip, with the reason, what needs a device or rights that this run does not have."""
    no_gpu = pytest.mark.skip(reason="needs a CUDA device")
    no_root = pytest.mark.skip(reason="needs root or Debian packages: make test-root")
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(no_gpu)
        if item.get_closest_marker("root") and not os.environ.get("SAMKV_TEST_ROOT"):
            item.add_marker(no_root)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what the pretended GPU was used for."""
    if PRETENDS:
        terminalreporter.write_line(f"pretended GPU: {Now.replayed} graphs replayed")
