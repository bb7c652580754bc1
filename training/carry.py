"""Give the heads `source` and `seek` something to carry: `python -m training.carry [config.toml]`.

To be run once both look where they should. A question that asks whose a value is needs the beginning of a name at its
end: `source` has to bring it to the value, and `seek` from there to the question. Neither is of use without the other,
and next-token loss alone taught them nothing in 1,000 updates. Here both are fitted in closed form, in the checkpoint:
`source` reads, by ridge regression on fresh rows, the leading directions of the output matrix of the token it looks at,
and writes them where the residual stream of values has the least variance; `seek` reads them there and writes them as
logits. Training goes on from that.
"""

from __future__ import annotations

import random
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from training.attention import as_bias
from training.data import Batch, make_batch
from training.model import Attention, Reader
from training.pointing import SEEK, SOURCE
from training.train import CONFIG, Run, read_config, sizes_of

BATCHES, STAGE = 80, 1
RIDGE = 0.5
STRENGTH = 14.0  # of the logits; of 2, 5, 10, 20 and 40 the ones around it gave the lowest first-token loss


@dataclass(frozen=True)
class Seen:
    """Residual streams: of the name beginnings `source` should look at `[N, hidden]`, with their token ids, and of the
    values as `seek` finds them `[M, hidden]`."""

    names: Tensor
    ids: Tensor
    values: Tensor


@torch.no_grad()
def watch(run: Run, source: int, seek: int) -> Seen:
    """Run fresh rows up to the layers `source` and `seek`."""
    names, ids, values = list[Tensor](), list[Tensor](), list[Tensor]()
    for number in range(BATCHES):
        batch = make_batch(random.Random(f"carry-{number}"), run.encode, sizes_of(run.config, STAGE))
        at, golds = batch.points[SOURCE]
        streams = residuals(run.reader, batch)
        which, place = golds.nonzero().unbind(1)
        row = at[which] // batch.ids.shape[1]
        names.append(streams[source][row, place])
        ids.append(batch.ids[row, place])
        values.append(streams[seek].flatten(0, 1)[at])
    return Seen(torch.cat(names), torch.cat(ids), torch.cat(values))


def residuals(reader: Reader, batch: Batch) -> list[Tensor]:
    """What enters every layer, `[B, T, hidden]`."""
    model = reader.model
    cos, sin = model.angles(batch.positions)
    streams, bias = [model.embed_tokens(batch.ids)], as_bias(batch.mask)
    for layer in model.blocks[:-1]:
        streams.append(layer(streams[-1], cos, sin, bias, batch.split))
    return streams


def with_space(pieces: list[str]) -> dict[int, int]:
    """Which token says the same as another one after a space: a chunk's first word has none in front."""
    spaced = {piece[1:]: token for token, piece in enumerate(pieces) if re.fullmatch(r" [A-Z]\w*", piece)}
    return {token: spaced[piece] for token, piece in enumerate(pieces) if piece in spaced}


@torch.no_grad()
def fit(run: Run) -> None:
    """Overwrite the values and outputs of both heads; heads that share their values fall silent."""
    (source, reads), (seek, finds) = (run.config["heads"][kind] for kind in (SOURCE, SEEK))
    seen, reader = watch(run, source, seek), run.reader
    pieces = [run.encode.tokenizer.decode([i]) for i in range(run.config["vocab"])]
    other = with_space(pieces)
    said = torch.tensor([other.get(token, token) for token in seen.ids.tolist()])
    width, table = reader.shape.head_dim, reader.lm_head.weight
    centre = table[said.unique()].mean(0)
    directions, strengths, _ = torch.linalg.svd((table[said.unique()] - centre).T, full_matrices=False)
    directions, strengths = directions[:, :width], strengths[:width] / len(said.unique()) ** 0.5
    first, then = reader.model.blocks[source], reader.model.blocks[seek]
    read, offset = ridge(first.input_layernorm(seen.names), (table[said] - centre) @ directions / strengths)
    quiet = torch.linalg.eigh(seen.values.T @ seen.values)[1][:, :width]
    level = seen.values.pow(2).mean(-1).sqrt().mean()
    carry(first.self_attn, reads, read, offset, quiet)
    write = STRENGTH * directions * strengths / reader.model.norm.weight[:, None]
    carry(then.self_attn, finds, level * quiet.T / then.input_layernorm.weight, torch.zeros(width), write)


def ridge(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Weights `[Y, X]` and offsets `[Y]` that predict `y` from `x`."""
    x = torch.cat([x, torch.ones(len(x), 1)], 1)
    found = torch.linalg.solve(x.T @ x + RIDGE * torch.eye(x.shape[1]), x.T @ y)
    return found[:-1].T, found[-1]


def carry(attention: Attention, head: int, read: Tensor, offset: Tensor, write: Tensor) -> None:
    """Let a head bring `read @ x + offset` of what it looks at to `write`."""
    width, shared = attention.shape.head_dim, attention.shape.heads // attention.shape.kv_heads
    group = head // shared
    values = slice(group * width, (group + 1) * width)
    attention.v_proj.weight[values], attention.v_proj.bias[values] = read, offset
    attention.o_proj.weight[:, group * shared * width : (group + 1) * shared * width] = 0
    attention.o_proj.weight[:, head * width : (head + 1) * width] = write


def main() -> None:
    run = Run(read_config(Path(sys.argv[1]) if len(sys.argv) > 1 else CONFIG))
    run.resume()
    fit(run)
    run.save()


if __name__ == "__main__":
    main()
