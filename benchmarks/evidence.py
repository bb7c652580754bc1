"""Repeat every evaluation behind docs/results.md: `python -m benchmarks.evidence [NAME ...]`

By default all of them, which takes hours on one core; each continues where it was stopped, and several may run at the
same time under different names. `--pack` writes what is done to `benchmarks/results/eval`, from which `make results`
makes the document. `--real FOLDER` adds the real question sets in that folder, together. All use the bundled reader.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.ablations import OURS, PAPER
from samkv_rag.cli.evaluate import Request, run
from samkv_rag.eval.results import pack
from samkv_rag.reader import BUNDLED

FOLDER, PACKED = Path("build/eval"), Path("benchmarks/results/eval")
DROPPED = "samkv:rest=drop"
SIBLINGS = "multi_infllm,random,random_rest,anchors_only,no_context,cacheblend,prophetkv,epic"
ALL = f"reuse,samkv,{DROPPED},{DROPPED},recompute=0.333,samkv.paper,samkv:settle=before,{SIBLINGS}"
FEW = f"reuse,samkv,{DROPPED},random_rest"
READ = f"full,samkv,{DROPPED},cacheblend,reuse,random_rest"


@dataclass(frozen=True)
class Asked:
    """One evaluation: its questions, its methods and what they keep."""

    data: str
    limit: int
    methods: str
    seed: int
    keep: str = "0.15"
    chunks: int | None = 12
    chunk_tokens: int | None = None
    sink_prefix: str = "head"

    def run(self, out: Path) -> None:
        """Answer what is missing in `out`."""
        run(
            Request(
                BUNDLED, [self.data], self.methods, self.keep, self.limit, self.chunks, self.chunk_tokens,
                self.seed, None, self.sink_prefix, out,
            )
        )  # fmt: skip


LATER = f"samkv,samkv:hold=0.7,samkv:hold=0.5,{DROPPED},{DROPPED},settle_at=8,cacheblend"
"""How much is held, and when the rest is dropped: with the first token or eight tokens later."""
LATEST = f"{LATER},{DROPPED},settle_at=4,{DROPPED},settle_at=64"
SINKS = ("head", "bos", "none")
SHARES = "0.05,0.1,0.15,0.25,0.5,1"
RUNS = {
    "earlier": Asked("earlier_chunk", 1000, FEW, 17),
    "twohop": Asked("two_hop", 1000, FEW, 17),
    "onehop": Asked("one_hop", 400, FEW, 17),
    "unanswerable": Asked("unanswerable", 300, FEW, 17),
    "comparison": Asked("comparison", 300, FEW, 17),
    "listing": Asked("listing", 400, FEW, 17),
    "needle": Asked("needle", 200, FEW, 17, chunks=8, chunk_tokens=256),
    "lists-long": Asked("listing", 100, FEW, 17, chunks=8, chunk_tokens=256),
    "lists-late": Asked("listing", 200, LATEST, 37),
    "late": Asked("earlier_chunk,two_hop,one_hop,unanswerable,comparison", 100, LATER, 37),
    "methods": Asked("earlier_chunk,two_hop,one_hop", 100, ALL, 31),
    "sweep": Asked("earlier_chunk,two_hop,listing", 60, f"{DROPPED},{DROPPED},recompute=0.333", 23, SHARES),
    "ablation": Asked("two_hop", 50, ",".join([*OURS.values(), *PAPER.values()]), 9),
    **{f"sink-{sink}": Asked("earlier_chunk", 100, f"samkv,{DROPPED}", 29, sink_prefix=sink) for sink in SINKS},
}


def wanted(names: list[str], real: Path | None) -> dict[str, Asked]:
    """The evaluations with these names, by default all; a folder `real` adds those of its question sets."""
    sets = [] if real is None else sorted(map(str, real.glob("*.jsonl")))
    read = {"real": (150, READ), "real-late": (60, LATER)} if sets else {}
    runs = RUNS | {name: Asked(",".join(sets), *asked, 0, chunks=None) for name, asked in read.items()}
    unknown = [name for name in names if name not in runs]
    if unknown:
        raise SystemExit(f"There is no evaluation {unknown[0]!r}; there are: {', '.join(runs)}.")
    return {name: runs[name] for name in names or runs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--real", type=Path, metavar="FOLDER")
    parser.add_argument("--pack", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name, asked in wanted(options.names, options.real).items():
        asked.run(FOLDER / name)
        if options.pack:
            print(pack(FOLDER / name, PACKED))


if __name__ == "__main__":
    main()
