"""Ablations by name, as lines for `samkv-rag eval --methods`: the paper's, and ours one at a time.

`python -m benchmarks.ablations paper` prints one of the two tables as a single `--methods` argument:

    samkv-rag eval --data two_hop --out out/ablations --methods "$(python -m benchmarks.ablations paper)"

The sink prefix is not a method's: chunks are stored anew for it (`samkv-rag eval --sink-prefix none`).
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator

PAPER_SWITCHES = {
    "middle": ("true", "false"),
    "bias": ("true", "false"),
    "recompute": ("1", "0"),
}


def _paper() -> Iterator[tuple[str, str]]:
    """The paper's 2 x 2 x 2: select between the anchors or not, personalised bias or not, recompute or not."""
    for values in itertools.product(*PAPER_SWITCHES.values()):
        options = dict(zip(PAPER_SWITCHES, values, strict=True))
        name = " ".join(f"{'no ' if value in ('false', '0') else ''}{switch}" for switch, value in options.items())
        yield name, "samkv.paper:" + ",".join(f"{switch}={value}" for switch, value in options.items())


PAPER = dict(_paper())

OURS = {
    "default": "samkv",
    "paper's recipe": "samkv.paper",
    "settled before the recompute": "samkv:settle=before",
    "settled before, single tokens": "samkv:settle=before,block=1",
    "nothing around what was looked at": "samkv:around=0+0",
    "less around": "samkv:around=0+4",
    "more around": "samkv:around=4+8",
    "nothing that the first look's best look at": "samkv:followed=0",
    "what is recomputed sees all on all layers": "samkv:wide=1",
    "on half of the layers, and nothing else above": "samkv:wide=0.5,sees=0",
    "on a quarter of the layers, and nothing else above": "samkv:sees=0",
    "two stages": "samkv:look=two_stage",
    "two stages, twice the budget": "samkv:look=two_stage,candidates=2",
    "two stages, settled before": "samkv:settle=before,look=two_stage",
    "bounds of keys": "samkv:look=bound",
    "mean keys": "samkv:look=mean",
    "pooled query": "samkv:look=pooled",
    "pooled query, no bias": "samkv:look=pooled,bias=false",
    "pooled query, question behind the chunk": "samkv:look=pooled,frame=adjacent",
    "pooled query, cosine with the chunk's own": "samkv:look=pooled,partner=local",
    "blocks of 4": "samkv:block=4",
    "blocks of 16": "samkv:block=16",
    "blocks of 64": "samkv:block=64",
    "anchors of 4": "samkv:initial=4,local=4",
    "anchors of 16": "samkv:initial=16,local=16",
    "no cross-context filter": "samkv:filtered=false",
    "scores compared chunk by chunk": "samkv:per_chunk=true",
    "dynamic shares": "samkv:dynamic=true,fill=false",
    "fused, 0.9 new": "samkv:theta=0.9",
    "fused, 0.5 new": "samkv:theta=0.5",
    "fused by cosine": "samkv:theta=cosine",
    "a third recomputed": "samkv:recompute=0.333",
    "a third recomputed, heads of runs": "samkv:recompute=0.333,recompute_by=head",
    "a tenth recomputed": "samkv:recompute=0.1",
    "nothing recomputed": "samkv:recompute=0",
    "settled before, a third recomputed": "samkv:settle=before,recompute=0.333",
    "settled before, layer alignment": "samkv:settle=before,aligned=true",
    "first layer": "samkv:layers=0",
    "last layer": "samkv:layers=-1",
    "layers 0 and 1": "samkv:layers=0+1",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=("paper", "ours"))
    tables = {"paper": PAPER, "ours": OURS}
    print(",".join(tables[parser.parse_args().table].values()))


if __name__ == "__main__":
    main()
