"""What every test shares: which tests this machine can run."""

from __future__ import annotations

import os

import pytest
import torch


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker also where `pyproject.toml` is not read: under an older pytest, on a borrowed GPU."""
    config.addinivalue_line("markers", "gpu: needs a CUDA device")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip, with the reason, what needs a device or rights that this run does not have."""
    no_gpu = pytest.mark.skip(reason="needs a CUDA device")
    no_root = pytest.mark.skip(reason="needs root or Debian packages: make test-root")
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(no_gpu)
        if item.get_closest_marker("root") and not os.environ.get("SAMKV_TEST_ROOT"):
            item.add_marker(no_root)
