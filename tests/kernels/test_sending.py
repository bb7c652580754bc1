"""What is sent without waiting: to CUDA alone, which copies what the host has let go of."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

from samkv_kernels.sending import few, sent


class Sent(Exception):
    """Ends a transfer, with how it was asked for."""


class Asked(TorchFunctionMode):
    """Says how transfers are asked for, instead of making them; memory is not pinned."""

    def __torch_function__(self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        name = getattr(function, "__name__", "")
        if name == "pin_memory":
            return args[0]
        if name == "to":
            raise Sent((kwargs or {}).get("non_blocking", False))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("send", [few, sent])
@pytest.mark.parametrize(("device", "at_once"), [("cuda", True), ("mps", False), ("xpu", False), ("cpu", False)])
def test_only_cuda_is_told_not_to_wait(send: Any, device: str, at_once: bool) -> None:
    with Asked(), pytest.raises(Sent) as how:
        send(torch.ones(3), torch.device(device))
    assert how.value.args == (at_once,)


def test_what_is_sent_is_the_same() -> None:
    x = torch.arange(3)
    assert torch.equal(few(x, x.device), x) and torch.equal(sent(x, x.device), x)
