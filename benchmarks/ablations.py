"""Ablations by name, as values for `samkv-rag eval --methods`: the paper's, and ours one at a time.

`python -m benchmarks.ablations paper` prints one of the two tables as a single `--methods` argument:

    samkv-rag eval --data two_hop --out out/ablations --methods "$(python -m benchmarks.ablations paper)"

The sink prefix is not part of a method: chunks are stored anew for it (`samkv-rag eval --sink-prefix none`).
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
    "the rest dropped, here and below": "samkv:rest=drop",
    "paper's recipe": "samkv.paper",
    "settled before the recompute": "samkv:settle=before",
    "settled before, single tokens": "samkv:settle=before,block=1",
    "nothing around what was looked at": "samkv:rest=drop,around=0+0",
    "less around": "samkv:rest=drop,around=0+4",
    "more around": "samkv:rest=drop,around=4+8",
    "nothing that the first look's best look at": "samkv:rest=drop,followed=0",
    "what is recomputed sees all on all layers": "samkv:rest=drop,wide=1",
    "on half of the layers, and nothing else above": "samkv:rest=drop,wide=0.5,sees=0",
    "on a quarter of the layers, and nothing else above": "samkv:rest=drop,sees=0",
    "two stages": "samkv:rest=drop,look=two_stage",
    "two stages, twice the budget": "samkv:rest=drop,look=two_stage,candidates=2",
    "two stages, settled before": "samkv:settle=before,look=two_stage",
    "bounds of keys": "samkv:rest=drop,look=bound",
    "mean keys": "samkv:rest=drop,look=mean",
    "pooled query": "samkv:rest=drop,look=pooled",
    "pooled query, no bias": "samkv:rest=drop,look=pooled,bias=false",
    "pooled query, question behind the chunk": "samkv:rest=drop,look=pooled,frame=adjacent",
    "pooled query, cosine with the chunk's own": "samkv:rest=drop,look=pooled,partner=local",
    "blocks of 4": "samkv:rest=drop,block=4",
    "blocks of 16": "samkv:rest=drop,block=16",
    "blocks of 64": "samkv:rest=drop,block=64",
    "anchors of 4": "samkv:rest=drop,initial=4,local=4",
    "anchors of 16": "samkv:rest=drop,initial=16,local=16",
    "no cross-context filter": "samkv:rest=drop,filtered=false",
    "scores compared chunk by chunk": "samkv:rest=drop,per_chunk=true",
    "dynamic shares": "samkv:rest=drop,dynamic=true,fill=false",
    "fused, 0.9 new": "samkv:rest=drop,theta=0.9",
    "fused, 0.5 new": "samkv:rest=drop,theta=0.5",
    "fused by cosine": "samkv:rest=drop,theta=cosine",
    "a third recomputed": "samkv:rest=drop,recompute=0.333",
    "a third recomputed, heads of runs": "samkv:rest=drop,recompute=0.333,recompute_by=head",
    "a tenth recomputed": "samkv:rest=drop,recompute=0.1",
    "nothing recomputed": "samkv:rest=drop,recompute=0",
    "settled before, a third recomputed": "samkv:settle=before,recompute=0.333",
    "settled before, layer alignment": "samkv:settle=before,aligned=true",
    "first layer": "samkv:rest=drop,layers=0",
    "last layer": "samkv:rest=drop,layers=-1",
    "layers 0 and 1": "samkv:rest=drop,layers=0+1",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=("paper", "ours"))
    tables = {"paper": PAPER, "ours": OURS}
    print(",".join(tables[parser.parse_args().table].values()))


if __name__ == "__main__":
    main()
