"""The vocabulary of the package: frozen dataclasses that all its parts share.

Shape letters, used everywhere: L layers, H query heads, G key/value heads, D head dimension,
T tokens, Q question tokens, B storage blocks of `BLOCK` tokens.

Layers whose caches have one shape are a *stack*: one tensor. Most models have one, and L is then all their layers;
where wide layers lie between narrow ones there is a stack of each kind, and L counts the layers of a stack.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import takewhile
from typing import Literal

import torch
from torch import Tensor

BLOCK = 16
"""Tokens in a storage block: the unit that is summarised, checksummed and read."""

KV_DTYPES = ("model", "bf16", "fp16", "int8", "fp8", "int4")
"""How K and V may be stored; "model" is the dtype that the model computes in."""

HEAD_CHARS = 32
TAIL_CHARS = 16


@dataclass(frozen=True, slots=True)
class MatchRecord:
    """What is needed to find a chunk's text in a prompt without keeping the text in memory."""

    length: int
    head: str
    tail: str
    digest: str

    @classmethod
    def of(cls, text: str) -> MatchRecord:
        """The record of `text`: its length, first 32 and last 16 characters, and a 128-bit blake2b digest."""
        return cls(len(text), text[:HEAD_CHARS], text[-TAIL_CHARS:], text_digest(text))


def text_digest(text: str) -> str:
    """Hex blake2b-128 of the UTF-8 bytes of `text` (lone surrogates are kept)."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


@dataclass(frozen=True, slots=True)
class ChunkSummary:
    """The small part of a chunk's cache: all that selection reads.

    `mean`, `low` and `high` are `(L, B, G, D)`: mean, minimum and maximum over each block's keys, the keys
    rotated to the chunk's own positions 0..T-1. `local_query` is `(L, H, D)`: the mean of the position-free
    queries of the last min(T, 32) tokens (SamKV, "local Q cache"), one for each layer that attends to these keys. These
    are the first stack's; `others` has the same for the model's other stacks.
    """

    text: str
    token_ids: Tensor
    mean: Tensor
    low: Tensor
    high: Tensor
    local_query: Tensor
    others: tuple[ChunkSummary, ...] = ()

    @property
    def stacks(self) -> tuple[ChunkSummary, ...]:
        """This one and the others."""
        return self, *self.others

    @property
    def n_tokens(self) -> int:
        return int(self.token_ids.shape[0])

    @property
    def n_blocks(self) -> int:
        return -(-self.n_tokens // BLOCK)

    @property
    def nbytes(self) -> int:
        """Bytes of what is scored: block summaries and local query."""
        own = sum(part.nbytes for part in (self.mean, self.low, self.high, self.local_query))
        return own + sum(other.nbytes for other in self.others)


@dataclass(frozen=True, slots=True)
class ChunkKV:
    """One chunk's cache: `kv` is `(L, B, 2, G, BLOCK, D)`, keys position-free, the last block padded with zeros; it is
    the first stack's, `others` has those of the model's other stacks."""

    summary: ChunkSummary
    kv: Tensor
    others: tuple[Tensor, ...] = ()

    @classmethod
    def of(cls, stacks: Sequence[ChunkKV]) -> ChunkKV:
        """Join `stacks`, made one by one, into one cache."""
        first, *others = stacks
        summary = replace(first.summary, others=tuple(other.summary for other in others))
        return cls(summary, first.kv, tuple(other.kv for other in others))

    @property
    def stacks(self) -> tuple[ChunkKV, ...]:
        """Each stack on its own."""
        alone = (replace(summary, others=()) for summary in self.summary.stacks)
        return tuple(ChunkKV(*both) for both in zip(alone, (self.kv, *self.others), strict=True))

    @property
    def nbytes(self) -> int:
        """Bytes of K and V, without the summary."""
        return sum(kv.numel() * kv.element_size() for kv in (self.kv, *self.others))


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of prompt tokens that belong together: `glue` (always computed fresh) or a cached `chunk`.

    `start` is the true position of the first token. `key` names the store entry of a chunk segment; a chunk cut
    by prompt packing has fewer tokens here than its entry (its prefix is exact).
    """

    kind: Literal["glue", "chunk"]
    text: str
    token_ids: tuple[int, ...]
    start: int
    key: str | None = None

    @property
    def stop(self) -> int:
        return self.start + len(self.token_ids)


@dataclass(frozen=True, slots=True)
class Question:
    """What selection asks for. `start` is the position of its first token; `in_prompt` is False when the caller
    gave a question that is not in the prompt (it is then appended for the question pass only)."""

    text: str
    token_ids: tuple[int, ...]
    start: int
    in_prompt: bool = True


@dataclass(frozen=True, slots=True)
class PromptPlan:
    """Where known chunks are in a prompt, and what the question is. Segments are in prompt order, without gaps; the
    last one is glue.

    `misses` are chunks that the store does not have, as they appear in the prompt; `to_store` are those that appear
    there whole, and can be stored again.
    """

    segments: tuple[Segment, ...]
    question: Question
    misses: tuple[str, ...] = ()
    to_store: tuple[str, ...] = ()

    @property
    def token_ids(self) -> list[int]:
        """All prompt tokens in order: the ids that every method, `full` included, answers."""
        return [token for segment in self.segments for token in segment.token_ids]

    @property
    def chunks(self) -> tuple[Segment, ...]:
        return tuple(segment for segment in self.segments if segment.kind == "chunk")

    @property
    def before_chunks(self) -> tuple[int, ...]:
        """The tokens before the first chunk; all, if there is none."""
        glue = takewhile(lambda segment: segment.kind == "glue", self.segments)
        return tuple(token for segment in glue for token in segment.token_ids)

    @property
    def n_tokens(self) -> int:
        return self.segments[-1].stop if self.segments else 0

    @property
    def chunk_tokens(self) -> int:
        return sum(len(segment.token_ids) for segment in self.chunks)


@dataclass(frozen=True, slots=True)
class Ranking:
    """Why tokens were kept, per chunk: `anchors`, the sorted indices of those kept for their place; `scores` fp32
    `(n_i,)`, where each token has the score of its block of `block` tokens. What a method scores by is up to it; larger
    is better, and scores are comparable across all chunks of a prompt."""

    anchors: tuple[Tensor, ...]
    scores: tuple[Tensor, ...]
    block: int


@dataclass(frozen=True, slots=True)
class Selection:
    """Which tokens of each chunk are kept, and which of those are recomputed: sorted indices into the chunk.

    `recomputed` is a subset of `kept`, chunk by chunk, unless what is kept was decided after recomputing. `notes` says
    what the user should know (an anchor that was trimmed, a chunk that got nothing). `ranking` says why, where blocks
    are ranked. Of those kept, the `packed` ones are held in four bits per number, in `packed_bytes`.
    """

    kept: tuple[Tensor, ...]
    recomputed: tuple[Tensor, ...]
    notes: tuple[str, ...] = ()
    ranking: Ranking | None = None
    packed: tuple[Tensor, ...] = ()
    packed_bytes: int = 0

    @property
    def packed_tokens(self) -> int:
        return sum(map(len, self.packed))

    @classmethod
    def all_of(cls, plan: PromptPlan, recompute: bool = True) -> Selection:
        """Every chunk token kept, and all or none of them recomputed."""
        kept = tuple(torch.arange(len(chunk.token_ids)) for chunk in plan.chunks)
        return cls(kept, kept if recompute else tuple(indices[:0] for indices in kept))


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts in the ecosystems' terms; `cache_read` is what full prefill would have computed and we did not."""

    prompt_tokens: int
    completion_tokens: int
    cache_read: int

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, slots=True)
class Report:
    """What one answer cost. prompt = glue + chunk; chunk = dropped + kept; kept = reused + recomputed, less
    `recomputed_dropped_tokens`, which were computed for other tokens to attend to and are not kept.

    `fresh_tokens` are glue tokens, missed chunks among them, less `head_tokens`, plus recomputed ones: all that entered
    layer 0 for the answer itself (the question pass is counted separately). The head is what the prompt begins with, as
    far as it is known from other prompts with the same beginning. `recomputed_layers_ratio`: chunk tokens times layers
    that were computed / as many as a full prefill computes, early full layers charged. Bytes are K and V at the cache's
    dtype: `kv_bytes_resident` once it is decided what is kept, with `packed_tokens` held in four bits per number;
    `kv_bytes_peak` the most of one pass before that; `kv_bytes_read` as stored (what is read ahead, from a disk or for
    a GPU, counts even where all of a block's tokens are recomputed); seconds are wall clock. `scored_bytes` are what
    choosing read: the block summaries of the chunks it scored, the entries that the question's pass ran over, the keys
    that CacheBlend compared. `flops` are the operations up to the first new token (`samkv_rag.flops`). `prompt_digest`
    is that of the prompt's token ids, the same for every method.
    """

    method: str
    prompt_tokens: int
    glue_tokens: int
    chunk_tokens: int
    dropped_tokens: int
    kept_tokens: int
    reused_tokens: int
    recomputed_tokens: int
    recomputed_dropped_tokens: int
    fresh_tokens: int
    question_pass_tokens: int
    kept_ratio: float
    recompute_ratio: float
    recomputed_layers_ratio: float
    kv_bytes_resident: int
    kv_bytes_peak: int
    kv_bytes_full: int
    kv_bytes_read: int
    scored_bytes: int
    flops: int
    ttft_seconds: float
    head_tokens: int = 0
    packed_tokens: int = 0
    stage_seconds: Mapping[str, float] = field(default_factory=dict)
    backend: str = "torch"
    misses: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    prompt_digest: str = ""

    def as_dict(self) -> dict[str, object]:
        """The report as plain types, ready for JSON."""
        return asdict(self)


FinishReason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True, slots=True)
class Answer:
    """A finished answer: its text, the token counts and the full report. `thought` is what the model thought before it
    answered, where that is separated: by `answer`."""

    text: str
    usage: Usage
    report: Report
    token_ids: tuple[int, ...] = ()
    finish_reason: FinishReason = "stop"
    thought: str = ""
