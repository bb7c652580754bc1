"""Give heads that attend to the right places something to carry: `python -m training.carry {pair NUMBER | name}`.

A question that asks whose a value is needs the beginning of a name at its end: `source` has to bring it to the value,
and `seek` from there to the question. Neither is of use without the other, and next-token loss alone taught them
nothing in 1,000 updates. Here both are fitted in closed form, in the checkpoint: by ridge regression on fresh rows,
`source` reads the token that it attends to, as leading directions of the output matrix, and writes these where the
residual stream of values has the least variance; `seek` reads them there and writes them as logits. Run it once both
attend to the right places (a pair's number is its place in the configuration, from 0).

`name` is also given what to attend to: the beginnings of names whose token is, roughly, the one that `seek` has
brought; it copies them whole. Run it before it is taught. Training continues from there.
"""

from __future__ import annotations

import random
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from training.attention import as_bias
from training.data import Batch, make_batch
from training.model import Attention, Reader
from training.passages import sizes_of
from training.pointing import NAME, SEEK, SOURCE
from training.train import Run, read_config

BATCHES, STAGE = 80, 1
STAGES = (1, 2, 4, 5)
RIDGE = 0.5
SHARP, MARK = (
    2.8,
    torch.tensor([10.0]),
)  # of the queries of `name`: half the codes' product, and for beginnings of names
STRENGTH = 14.0  # of the logits; of 2, 5, 10, 20 and 40 those around it gave the lowest first-token loss


@dataclass(frozen=True)
class Seen:
    """Residual streams: of the name beginnings that `source` should attend to `[N, hidden]`, with their token ids, and
    of the values as `seek` finds them `[M, hidden]`."""

    names: Tensor
    ids: Tensor
    values: Tensor


@torch.no_grad()
def watch(run: Run, source: int, seek: int) -> Seen:
    """Run fresh rows up to the layers `source` and `seek`."""
    names, ids, values = list[Tensor](), list[Tensor](), list[Tensor]()
    for number in range(BATCHES):
        batch = make_batch(random.Random(f"carry-{number}"), run.encode, sizes_of(run.config["stages"][STAGE]))
        at, golds = batch.points[SOURCE].flat()
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
    """Map tokens to those of the same text after a space: a chunk's first word has no space before it."""
    spaced = {piece[1:]: token for token, piece in enumerate(pieces) if re.fullmatch(r" [A-Z]\w*", piece)}
    return {token: spaced[piece] for token, piece in enumerate(pieces) if piece in spaced}


@torch.no_grad()
def fit_pair(run: Run, number: int) -> None:
    """Overwrite the values and outputs of a pair of heads; heads that share their values are silenced."""
    (source, reads), (seek, finds) = (run.config["heads"][kind][number] for kind in (SOURCE, SEEK))
    seen, reader = watch(run, source, seek), run.reader
    code = Code.of(run, seen.ids)
    first, then = reader.model.blocks[source], reader.model.blocks[seek]
    read, offset = ridge(first.input_layernorm(seen.names), code.said)
    quiet = torch.linalg.eigh(seen.values.T @ seen.values)[1][:, : code.width]
    level = seen.values.pow(2).mean(-1).sqrt().mean()
    carry(first.self_attn, reads, read, offset, quiet)
    carry(then.self_attn, finds, level * quiet.T / then.input_layernorm.weight, torch.zeros(code.width), code.write)


@dataclass(frozen=True)
class Code:
    """Tokens in the leading directions of the output matrix: `said` `[N, width]`, of the tokens that it was made for in
    their form after a space, and `write` `[hidden, width]`, which turns a code into logits."""

    said: Tensor
    write: Tensor

    @property
    def width(self) -> int:
        return self.said.shape[1]

    @classmethod
    def of(cls, run: Run, ids: Tensor, width: int | None = None) -> Code:
        """The code that best tells the tokens `ids` apart, in as many numbers as a head has."""
        pieces = [run.encode.tokenizer.decode([i]) for i in range(run.config["vocab"])]
        other, table = with_space(pieces), run.reader.lm_head.weight
        said = torch.tensor([other.get(token, token) for token in ids.tolist()])
        width = width or run.reader.shape.head_dim
        centre = table[said.unique()].mean(0)
        directions, strengths, _ = torch.linalg.svd((table[said.unique()] - centre).T, full_matrices=False)
        directions, strengths = directions[:, :width], strengths[:width] / len(said.unique()) ** 0.5
        write = STRENGTH * directions * strengths / run.reader.model.norm.weight[:, None]
        return cls((table[said] - centre) @ directions / strengths, write)


def ridge(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Weights `[Y, X]` and offsets `[Y]` that predict `y` from `x`."""
    x = torch.cat([x, torch.ones(len(x), 1)], 1)
    found = torch.linalg.solve(x.T @ x + RIDGE * torch.eye(x.shape[1]), x.T @ y)
    return found[:-1].T, found[-1]


def carry(attention: Attention, head: int, read: Tensor, offset: Tensor, write: Tensor) -> None:
    """Make a head read `read @ x + offset` from what it attends to, and write it by `write`."""
    width, shared = attention.shape.head_dim, attention.shape.heads // attention.shape.kv_heads
    group = head // shared
    values = slice(group * width, (group + 1) * width)
    attention.v_proj.weight[values], attention.v_proj.bias[values] = read, offset
    attention.o_proj.weight[:, group * shared * width : (group + 1) * shared * width] = 0
    attention.o_proj.weight[:, head * width : (head + 1) * width] = write


@dataclass(frozen=True)
class Named:
    """Residual streams before a layer, normalised: of the beginnings of names `[N, hidden]` with their ids, of other
    tokens of contexts `[M, hidden]`, and of the ends of questions that ask for a name `[P, hidden]`, with the ids that
    the names begin with."""

    names: Tensor
    ids: Tensor
    others: Tensor
    ends: Tensor
    asked: Tensor


@torch.no_grad()
def watch_names(run: Run, layer: int) -> Named:
    """Run fresh rows up to `layer`."""
    norm, parts = run.reader.model.blocks[layer].input_layernorm, list[tuple[Tensor, ...]]()
    for number in range(BATCHES):
        batch = make_batch(
            random.Random(f"name-{number}"), run.encode, sizes_of(run.config["stages"][STAGES[number % len(STAGES)]])
        )
        stream, ids = norm(residuals(run.reader, batch)[layer]).flatten(0, 1), batch.ids.flatten()
        length = batch.ids.shape[1]
        at, golds = batch.points[SOURCE].flat()
        which, place = golds.nonzero().unbind(1)
        begun = torch.unique(at[which] // length * length + place)
        context = (torch.arange(len(ids)) % length < batch.split).index_fill(0, begun, False)
        at, golds = batch.points[NAME].flat()
        at, golds = at[~golds[:, 0]], golds[~golds[:, 0]]
        first = at // length * length + golds.int().argmax(1)
        parts.append((stream[begun], ids[begun], stream[context][::5], stream[at], ids[first]))
    return Named(*(torch.cat(part) for part in zip(*parts, strict=True)))


def slowest_rows(width: int, left_out: int = 5) -> Tensor:
    """Rows of a head, from the slowest rotating pairs on; the `left_out` fastest are of no use for a distant match."""
    half = width // 2
    return torch.tensor([row for pair in reversed(range(left_out, half)) for row in (pair, pair + half)])


@torch.no_grad()
def fit_name(run: Run) -> None:
    """Overwrite the head `name`: what it attends to, and that it copies it. Heads that share its keys are silenced."""
    ((layer, head),) = run.config["heads"][NAME]
    attention = run.reader.model.blocks[layer].self_attn
    seen, width = watch_names(run, layer), attention.shape.head_dim
    slow = slowest_rows(width)
    code = Code.of(run, torch.cat([seen.asked, seen.ids]), len(slow) - 1)
    asked, begun = code.said.split([len(seen.asked), len(seen.ids)])
    marks = torch.cat([torch.ones(len(seen.names), 1), -torch.ones(len(seen.others), 1)])
    ask, ask_offset = ridge(seen.ends, asked)
    key, key_offset = ridge(seen.names, begun)
    mark, mark_offset = ridge(torch.cat([seen.names, seen.others]), marks)
    group = head // (attention.shape.heads // attention.shape.kv_heads)
    for projection, place, weight, offset in (
        (
            attention.q_proj,
            head,
            SHARP * torch.cat([torch.zeros_like(mark), ask]),
            SHARP * torch.cat([MARK, ask_offset]),
        ),
        (attention.k_proj, group, torch.cat([mark, key]), torch.cat([mark_offset, key_offset])),
    ):
        rows = slice(place * width, (place + 1) * width)
        projection.weight[rows], projection.bias[rows] = 0, 0
        projection.weight[rows][slow], projection.bias[rows][slow] = weight, offset
    copied = Code.of(run, seen.ids)
    carry(attention, head, *ridge(seen.names, copied.said), copied.write)


def main() -> None:
    match sys.argv[1:]:
        case ["name"]:
            fit: Callable[[Run], None] = fit_name
        case ["pair", number] if number.isdigit():
            fit = partial(fit_pair, number=int(number))
        case _:
            raise SystemExit("python -m training.carry name, or: python -m training.carry pair NUMBER (from 0)")
    run = Run(read_config())
    run.resume()
    fit(run)
    run.save()


if __name__ == "__main__":
    main()
