"""Memory that one answer takes, measured: at its peak, and while it is written. `python -m benchmarks.memory`

Every system answers the same prompt in a process of its own (`benchmarks.probe`), on a random 12 x 768 Llama, from a
store on disk, through the engine. On a CPU the kernel's high-water mark of the process is read, less what the model and
the loaded store took before the question; on a GPU, torch's allocator. "model alone" asks nothing: what it shows is the
error of the measurement. Nothing is reported when the exactness gate is red. `peak` is what must fit, `held` what an
answer occupies while others are prepared; the number that counts is full prefill's divided by it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.harness import in_turns, options_of, publish
from benchmarks.probe import CHILDREN, FILL, NOTHING, Reading
from benchmarks.rows import quantiles, where
from benchmarks.systems import METHODS

ROOT = Path(__file__).parent.parent
MIB = 2**20


def asked_in_a_child(folder: Path, options: Sequence[str], system: str) -> Reading:
    """What the probe reads for `system` in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.probe", str(folder), system, *options]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | CHILDREN, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{system}: no memory is reported.\n{done.stderr}")
    *said, last = done.stdout.splitlines()
    print("\n".join(said), end="\n" if said else "")
    return Reading(**json.loads(last))


def rows(
    tokens: int, seen: dict[str, list[Reading]], device: str = "cpu", label: str = "random"
) -> list[dict[str, Any]]:  # fmt: skip
    """One row per system: MiB at the peak and held, and how much more full prefill takes in the same run."""
    digests = {reading.digest for found in seen.values() for reading in found if reading.digest}
    if len(digests) != 1:
        raise SystemExit("The systems did not answer the same prompt: no memory is reported.")
    out, full = [], _medians(seen["full"])
    for name, found in seen.items():
        row: dict[str, Any] = {"model": label, "tokens": tokens, "method": name}
        for what, median in _medians(found).items():
            timing = quantiles([getattr(reading, what) / MIB for reading in found], "mib")
            row |= {f"{what}_{key}": value for key, value in timing.items()}
            row[f"{what}_full_over"] = "" if name == NOTHING else full[what] / median
        row["model_mib"] = max(reading.model for reading in found) / MIB
        out.append(row | {"rounds": len(found)} | where(device))
    return out


def _medians(found: Sequence[Reading]) -> dict[str, float]:
    return {what: quantiles([getattr(r, what) for r in found], "b")["median_b"] for what in ("peak", "held")}


def main() -> None:
    parser = options_of(__doc__, rounds=3, devices=True)
    parser.add_argument("--tokens", nargs="+", type=int, default=[4096])
    parser.add_argument("--new", type=int, default=32, help="tokens that the answer has room for")
    parser.add_argument("--systems", nargs="+", default=list(METHODS), choices=list(METHODS))
    options = parser.parse_args()
    systems = [NOTHING, *(name for name in METHODS if name == "full" or name in options.systems)]
    for tokens in options.tokens:
        common = [f"--{name}={getattr(options, name)}" for name in ("new", "threads", "device")]
        with tempfile.TemporaryDirectory() as folder:
            ask = partial(asked_in_a_child, Path(folder), [*common, f"--tokens={tokens}"])
            ask(FILL)
            seen = in_turns({name: partial(ask, name) for name in systems}, options.rounds, warm_ups=0)
        publish("memory", rows(tokens, seen, options.device), 12, options.dry)


if __name__ == "__main__":
    main()
