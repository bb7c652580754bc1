"""What choosing costs: summaries against all keys, rotated queries against rotated keys. `python -m benchmarks.scores`

A question's logits over all its chunks, on random tensors of a 12 x 768 Llama's shape, in plain torch as the engine
uses it on a CPU: over block means ("summaries"); over every key, with the queries rotated back to each chunk ("all
keys"); over every key, with all keys rotated to their places in the prompt ("keys turned"). The last two are the same
numbers computed in two ways: if they differ, nothing is reported. All take turns in one process.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness import in_turns, options_of, publish, wait
from benchmarks.rows import spread, where
from benchmarks.shapes import model_named
from samkv_kernels.block_scores import block_logits
from samkv_rag.model.adapter import ModelAdapter
from samkv_rag.model.rounding import apart
from samkv_rag.types import BLOCK

TOLERANCE = 1e-4


@dataclass(frozen=True)
class Asked:
    """A question of `asked` tokens after `chunks` chunks of `size` tokens; position-free random queries and keys."""

    adapter: ModelAdapter
    chunks: int
    size: int
    asked: int

    def _random(self, heads: int, tokens: int) -> Tensor:
        (stack,) = self.adapter.shape.stacks
        draws = torch.Generator().manual_seed(heads)
        return torch.randn(len(stack.layers), heads, tokens, stack.head_dim, generator=draws).to(self.adapter.device)

    @cached_property
    def queries(self) -> Tensor:
        """`(L, H, Q, D)`."""
        return self._random(self.adapter.shape.stacks[0].heads, self.asked)

    @cached_property
    def keys(self) -> Tensor:
        """`(L, G, T, D)` of all chunks' tokens."""
        return self._random(self.adapter.shape.stacks[0].kv_heads, self.chunks * self.size)

    @cached_property
    def own(self) -> Tensor:
        """The keys as ingestion would rotate them, every chunk in its own frame: `(L, T, G, D)`."""
        at = torch.arange(self.size).repeat(self.chunks)
        turned: Tensor = self.adapter.table(at).rotate(self.keys)
        return turned.transpose(1, 2).contiguous()

    @cached_property
    def means(self) -> Tensor:
        """Means of blocks of `own`: `(L, B, G, D)`."""
        blocks: Tensor = self.own.unflatten(1, (-1, BLOCK))
        return blocks.mean(2)

    def _turned(self) -> Tensor:
        """The queries in every chunk's frame: `(C, L, H, Q, D)`."""
        behind = torch.arange(self.asked) + self.chunks * self.size
        places = behind - self.size * torch.arange(self.chunks)[:, None]
        turned: Tensor = self.adapter.table(places.flatten()).rotate(self.queries.repeat(1, 1, self.chunks, 1))
        apart: Tensor = turned.unflatten(2, (self.chunks, self.asked))
        return apart.permute(2, 0, 1, 3, 4)

    def summaries(self) -> Tensor:
        """Logits `(L, H, Q, B)` over block means."""
        return block_logits(self._turned(), self.means, [self.size // BLOCK] * self.chunks)

    def all_keys(self) -> Tensor:
        """Logits `(L, H, Q, T)` over every key in its chunk's frame."""
        return block_logits(self._turned(), self.own, [self.size] * self.chunks)

    def keys_turned(self) -> Tensor:
        """The same logits, with every key rotated to its place in the prompt."""
        total = self.chunks * self.size
        keys = self.adapter.table(torch.arange(total)).rotate(self.keys).transpose(1, 2)
        queries = self.adapter.table(torch.arange(self.asked) + total).rotate(self.queries)
        return block_logits(queries[None], keys, [total])

    def check(self) -> float:
        """The RMS difference of the two ways over every key, relative to their RMS; `SystemExit` if they differ."""
        one, other = self.all_keys(), self.keys_turned()
        error = apart(one, other)
        if not error <= TOLERANCE:
            raise SystemExit(f"Turned queries and turned keys differ by {error:.1e}: nothing is reported.")
        return error

    def timed(self, score: Callable[[], Tensor]) -> float:
        """Seconds that one way takes."""
        start = time.perf_counter()
        score()
        wait(self.adapter.device)
        return time.perf_counter() - start


def measure(asked: Asked, rounds: int) -> dict[str, list[float]]:
    """Seconds of all three ways, in turns."""
    scores = {"summaries": asked.summaries, "all keys": asked.all_keys, "keys turned": asked.keys_turned}
    return in_turns({name: partial(asked.timed, score) for name, score in scores.items()}, rounds)


def rows(asked: Asked, error: float, seen: dict[str, list[float]], device: str = "cpu") -> list[dict[str, Any]]:
    """One row per way, with how much longer rotating all keys takes."""
    slow, out = spread(seen["keys turned"])["median_ms"], []
    for name, seconds in seen.items():
        timing = spread(seconds)
        row = {"model": "random", "chunks": asked.chunks, "chunk_tokens": asked.size, "way": name, **timing}
        row |= {"keys_turned_over": slow / timing["median_ms"], "error": f"{error:.1e}", "rounds": len(seconds)}
        out.append(row | where(device))
    return out


def main() -> None:
    parser = options_of(__doc__, rounds=9, devices=True)
    parser.add_argument("--tokens", nargs="+", type=int, default=[1024, 4096])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    adapter = model_named("random", options.device)
    for tokens in options.tokens:
        asked = Asked(adapter, 8, tokens // 8, 32)
        error = asked.check()
        publish("scores", rows(asked, error, measure(asked, options.rounds), options.device), 9, options.dry)


if __name__ == "__main__":
    main()
