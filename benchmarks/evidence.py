"""Every evaluation behind docs/results.md, again: `python -m benchmarks.evidence [NAME ...]`

By default all of them, hours on one core; each goes on where it was stopped, and several may run at a time under
different names. With `--pack` what is done is written to `benchmarks/results/eval`, from which `make results` makes the
document. `--real FOLDER` adds the real question sets that lie there, together. Most are of the small reader: ten
thousand questions cost it an hour on two cores, and the larger one five.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.ablations import OURS, PAPER
from samkv_rag.cli.evaluate import Request, run
from samkv_rag.eval.results import pack
from samkv_rag.reader import BUNDLED, SMALL

FOLDER, PACKED = Path("build/eval"), Path("benchmarks/results/eval")
SIBLINGS = "multi_infllm,random,anchors_only,no_context,cacheblend,prophetkv,epic"
ALL = f"reuse,samkv,samkv:recompute=0.333,samkv.paper,samkv:settle=before,{SIBLINGS}"
FEW = "reuse,samkv,random"
READ = "full,samkv,cacheblend,reuse,random"
WITHIN = ",".join(f"samkv:recompute={share}" for share in ("0.15", "0.3"))


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
    model: str = SMALL

    def run(self, out: Path) -> None:
        """Answer what is missing in `out`."""
        run(
            Request(
                self.model, [self.data], self.methods, self.keep, self.limit, self.chunks, self.chunk_tokens,
                self.seed, None, self.sink_prefix, out,
            )
        )  # fmt: skip


SINKS = ("head", "bos", "none")
SHARES = "0.05,0.1,0.15,0.25,0.5,1"
RUNS = {
    "earlier12": Asked("earlier_chunk", 800, ALL, 7),
    "onehop12": Asked("one_hop", 500, ALL, 7),
    "twohop12": Asked("two_hop", 800, ALL, 7),
    "claim-earlier12": Asked("earlier_chunk", 4000, FEW, 17),
    "claim-onehop12": Asked("one_hop", 1500, FEW, 17),
    "claim-twohop12": Asked("two_hop", 2000, FEW, 17),
    "unanswerable12": Asked("unanswerable", 1000, FEW, 7),
    "listing12": Asked("listing", 1000, FEW, 7),
    "comparison12": Asked("comparison", 1000, FEW, 7),
    "needle": Asked("needle", 1000, FEW, 7, chunks=8, chunk_tokens=256),
    "sweep-earlier12": Asked("earlier_chunk", 150, "samkv,samkv:recompute=0.333", 23, SHARES),
    "sweep-twohop12": Asked("two_hop", 150, "samkv,samkv:recompute=0.333", 23, SHARES),
    "sweep-listing12": Asked("listing", 100, f"samkv,{WITHIN}", 61, "0.15,0.5,1"),
    "ablation-earlier12": Asked("earlier_chunk", 100, ",".join([*OURS.values(), *PAPER.values()]), 9),
    "reader12": Asked("earlier_chunk,two_hop,one_hop,listing,comparison", 120, READ, 5, model=BUNDLED),
    **{f"sink-{sink}12": Asked("earlier_chunk", 250, "samkv", 29, sink_prefix=sink) for sink in SINKS},
}


def wanted(names: list[str], real: Path | None) -> dict[str, Asked]:
    """The evaluations of these names, by default all; `real` is that of the question sets in a folder."""
    sets = [] if real is None else sorted(map(str, real.glob("*.jsonl")))
    runs = RUNS | ({"real": Asked(",".join(sets), 100, READ, 0, chunks=None, model=BUNDLED)} if sets else {})
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
