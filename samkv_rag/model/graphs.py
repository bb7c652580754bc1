"""Work that a GPU repeats without the host: functions recorded as CUDA graphs.

What a recording reads, it reads from tensors, so that the same launches serve what comes next: tokens (`steps`) and
prompts (`recorded`). `SAMKV_GRAPHS=off` turns this off.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor

from samkv_kernels.backend import Backend
from samkv_rag.options import of_environment

VARIABLE = "SAMKV_GRAPHS"
Result = TypeVar("Result")


def wanted(backend: Backend, device: torch.device, unfit: str | None) -> bool:
    """Whether to record, as SAMKV_GRAPHS says: "on", "off", or "auto" (the default), if possible. Raises `SamKVError`
    on anything else."""
    choice = of_environment(VARIABLE, "auto", "on", "off")
    return choice == "on" or (choice == "auto" and obstacle(backend, device, unfit) is None)


def obstacle(backend: Backend, device: torch.device, unfit: str | None) -> str | None:
    """What keeps a model from being recorded, if anything; `unfit`: what about the model itself does."""
    if device.type != "cuda":
        return f"the model is on {device.type}"
    if backend != "triton":
        return "the backend torch waits for the GPU within a step; use the backend 'triton'"
    return unfit


def tell(warning: str) -> None:
    """Warn of what is not recorded."""
    warnings.warn(warning, RuntimeWarning, stacklevel=3)


class Graphs:
    """Records functions as CUDA graphs of a device, on one stream. Graphs share memory for what they need only while
    they run; what they return is their own."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._keeper: torch.cuda.CUDAGraph | None = None

    def __call__(self, run: Callable[[], Result]) -> Callable[[], Result]:
        """Record `run` as a graph, after one run on the recording stream, so that what is made only once, such as a
        workspace for products, is not part of it. Raises RuntimeError where the replay differs from that run: a part of
        it may depend on the host, or happen where nothing is recorded."""
        if self._keeper is None:
            self._begin()
        with self._aside():
            ran = run()
        graph, out = self._capture(run)
        graph.replay()
        if differ(ran, out):
            raise RuntimeError("what is played differs from what ran")

        def again() -> Result:
            graph.replay()
            return out

        return again

    def _begin(self) -> None:
        with torch.cuda.device(self._device):
            self._stream, self._pool = torch.cuda.Stream(), torch.cuda.graph_pool_handle()
        self._keeper, _ = self._capture(lambda: torch.zeros(1, device=self._device))  # a pool dies with its last graph

    def _capture(self, run: Callable[[], Result]) -> tuple[torch.cuda.CUDAGraph, Result]:
        with self._aside(), _same_draws():
            graph = torch.cuda.CUDAGraph()
            # other threads may ask for memory meanwhile
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                out = run()
            finally:
                graph.capture_end()
        return graph, out

    @contextmanager
    def _aside(self) -> Iterator[None]:
        """Within the block, work goes to the recording stream, after earlier work and before later work."""
        with torch.cuda.device(self._device):
            before = torch.cuda.current_stream()
            self._stream.wait_stream(before)
            try:
                with torch.cuda.stream(self._stream):
                    yield
            finally:
                before.wait_stream(self._stream)


def differ(one: object, other: object) -> bool:
    """Whether results, tensors or tuples of them, differ by more than rounding."""
    if isinstance(one, tuple) and isinstance(other, tuple):
        return any(differ(*pair) for pair in zip(one, other, strict=True))
    if not isinstance(one, Tensor) or not isinstance(other, Tensor):
        return one is not other
    if not one.numel():
        return False
    a, b = (torch.nan_to_num(x.float(), 0, 0, 0) for x in (one, other))
    return not torch.equal(one.isfinite(), other.isfinite()) or bool((a - b).abs().amax() > 0.1 * a.abs().amax())


@contextmanager
def _same_draws() -> Iterator[None]:
    """After a recording that fails, go on with a copy of the device's random number generator: the original is left as
    if it were still being recorded, and cannot draw any more."""
    generator = torch.cuda.default_generators[torch.cuda.current_device()]
    spare = generator.clone_state()
    try:
        yield
    except BaseException:  # ctrl-C too: an interrupted step can be taken again
        generator.graphsafe_set_state(spare)
        raise
