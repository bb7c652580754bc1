"""Where the time of one answer goes up to its first token, operation by operation, by torch's profiler.

Shows which operations take the most time of the processor and of the GPU, how many kernels are launched, how many
copies go to and from the host, and how often the host waits. The profiler's own cost is in the times, not the counts.
"""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

from torch.profiler import ProfilerActivity, profile

from benchmarks.harness import wait
from benchmarks.systems import METHODS, first_token
from samkv_rag.model.adapter import ModelAdapter
from samkv_rag.store import ChunkKVStore
from samkv_rag.types import PromptPlan

KEPT, SHOWN = 25, 9
"""How many operations are written to the file, and printed."""
LAUNCHES = ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx", "cudaGraphLaunch")
COUNTED = {
    "launches": LAUNCHES,
    "copies": ("cudaMemcpyAsync",),
    "waits": ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize"),
}


def counts(averages: Any) -> dict[str, int]:
    """Driver calls, by kind; "items" are single numbers that the host asked for."""
    calls = {event.key: event.count for event in averages}
    found = {kind: sum(calls.get(name, 0) for name in names) for kind, names in COUNTED.items()}
    return found | {"items": calls.get("aten::_local_scalar_dense", 0), "nonzeros": calls.get("aten::nonzero", 0)}


def profiled(
    adapter: ModelAdapter, store: ChunkKVStore, plan: PromptPlan, system: str, out: Path, how: str = ""
) -> dict[str, int]:  # fmt: skip
    """Profile one question by `system`, warm; prints counts and the first operations, and writes both to `out`. `how`
    is added to the name of the system."""
    on_gpu = adapter.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    first_token(adapter, store, plan, METHODS[system])
    start = time.perf_counter()
    first_token(adapter, store, plan, METHODS[system])
    plain = time.perf_counter() - start
    with profile(activities=activities) as seen:
        first_token(adapter, store, plan, METHODS[system])
        wait(adapter.device)
    averages = seen.key_averages()
    found = counts(averages)
    orders = ["self_cpu_time_total", *(["self_device_time_total"] if on_gpu else [])]
    head = f"{system}{how}, {plan.n_tokens} tokens: {1e3 * plain:.1f} ms without the profiler; {found}"
    print(head)
    print("\n".join(line for order in orders for line in _lines(averages, order)))
    tables = [averages.table(sort_by=order, row_limit=KEPT, max_name_column_width=60) for order in orders]
    (out / f"profile-{re.sub('[ ,/]+', '-', system + how)}.txt").write_text("\n".join([head, *tables]))
    return found


def _lines(averages: Any, order: str) -> list[str]:
    """The operations that take the most time, one short line each."""
    rows = sorted(averages, key=lambda event: -getattr(event, order))[:SHOWN]
    return [f"{order}:", *(f"{getattr(row, order) / 1e3:10.2f} ms {row.count:6d} x {row.key[:70]}" for row in rows)]
