"""The parity gate for one model: is reuse exact on it? Needs no text and no trained weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor

from samkv_kernels.backend import Backend
from samkv_kernels.sending import sent
from samkv_rag.errors import ParityError
from samkv_rag.methods import Full, Prepared, Reuse, Run, SamKV
from samkv_rag.model.adapter import ModelAdapter
from samkv_rag.model.beginnings import LEAST
from samkv_rag.model.decoded import STEPS, Answer, begun, decode_error
from samkv_rag.model.memory import is_out_of_memory
from samkv_rag.model.quantised import is_quantised
from samkv_rag.model.rounding import apart, worst
from samkv_rag.store import ChunkKVStore, chunk_key
from samkv_rag.types import BLOCK, ChunkKV, PromptPlan, Question, Segment

TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 6e-2}
"""Allowed RMS difference of the next-token logits, relative to their own RMS, by dtype.

Two ways to compute the same thing in bfloat16 differ by their own roundings, which grow with depth and width: 0.7 % at
4 layers of 256, 1.4 % at 32, where either is 1.2 % from float32 and transformers' own sdpa and eager are 1.3 % apart
(random weights). 32 layers of 4096 came to 5 % on a GPU. What is wrong, not rounded, shows in float32.
"""
QUANTISED = 0.1
"""The same for a quantised model, whatever its dtype: inputs that are rounded to 8 bits turn rounding differences into
steps of 1/127 (the bundled reader: 1 to 4 %)."""
FAR = 1 << 15
"""The last positions that are tried, of models that have more."""
HALF = " Some models round to more in half precision: dtype='float32' shows what is wrong beside that."
KERNELS = " If it is our kernels' fault, SAMKV_BACKEND=torch does without them."


@dataclass(frozen=True, slots=True)
class ParityReport:
    """Relative RMS differences of next-token logits. `recompute_error`: keep 1, recompute 1 against plain prefill.
    `reuse_error`: one chunk reused where it was cached against plain prefill, and a prompt whose beginning is known
    against one whose beginning is computed; the larger of the two. `decode_error`: answers decoded together, step by
    step, after packed chunks and unpacked ones, against one pass over each, unpacked. All must be within `tolerance`.
    `control_error`: the reuse with keys left at wrong positions; it must be visibly larger. `place_error`, which is no
    part of the gate: a text at the model's last positions against the same text at its first ones, as which chunks are
    cached. It is rounding unless the model scales queries with position or has frequencies of a long text."""

    model: str
    dtype: str
    tolerance: float
    recompute_error: float
    reuse_error: float
    decode_error: float
    control_error: float
    place_error: float

    @property
    def passed(self) -> bool:
        off = worst((self.recompute_error, self.reuse_error, self.decode_error))
        return off <= self.tolerance and self.control_error > max(self.recompute_error, self.reuse_error)

    def as_dict(self) -> dict[str, object]:
        return {**asdict(self), "passed": self.passed}


def check_parity(adapter: ModelAdapter, seed: int = 0) -> ParityReport:
    """Run the gate on random token ids; returns the report, raises `ParityError` when it fails."""
    with adapter.unacquainted():
        return _checked(adapter, seed)


def _checked(adapter: ModelAdapter, seed: int) -> ParityReport:
    store = ChunkKVStore(":memory:")
    several = _random_plan(adapter, store, lengths=(3 * BLOCK, BLOCK + 5, 2 * BLOCK), glue=3, seed=seed)
    single = _random_plan(adapter, store, lengths=(3 * BLOCK,), glue=0, seed=seed + 1, head=adapter.sink_prefix)
    known = _random_plan(adapter, store, lengths=(BLOCK + 5, 2 * BLOCK), glue=LEAST, seed=seed + 2)
    shifted = _shifted(adapter, store, single)
    report = ParityReport(
        model=type(adapter.model).__name__,
        dtype=str(adapter.dtype).removeprefix("torch."),
        tolerance=QUANTISED if is_quantised(adapter.model) else TOLERANCE.get(adapter.dtype, 1e-4),
        recompute_error=_error(adapter, store, several, SamKV(keep=1.0)),
        reuse_error=worst((_error(adapter, store, single, Reuse()), _known_error(adapter, store, known))),
        decode_error=_decode_error(adapter, store, several, known),
        control_error=_error(adapter, store, shifted, Reuse(), reference=single),
        place_error=_place_error(adapter, several.token_ids),
    )
    if not report.passed:
        raise _red(
            adapter,
            f"recompute differs by {report.recompute_error:.1e}, reuse by {report.reuse_error:.1e}, decoding by "
            f"{report.decode_error:.1e} (allowed {report.tolerance:.0e}, control {report.control_error:.1e})",
        )
    return report


def _red(adapter: ModelAdapter, why: str) -> ParityError:
    """The error of a gate that fails."""
    return ParityError(
        f"{type(adapter.model).__name__} failed the parity gate: {why}. Do not serve it from caches; use "
        f"method='full', or another model.{doubts(adapter.dtype, adapter.backend)}"
    )


def doubts(dtype: torch.dtype, backend: Backend) -> str:
    """What other than the model may be wrong, and how to find out."""
    return (HALF if dtype != torch.float32 else "") + (KERNELS if backend != "torch" else "")


def next_logits(adapter: ModelAdapter, prepared: Prepared) -> Tensor:
    """Next-token logits fp32 `(vocab,)` of what a method prepared."""
    return adapter.next_logits(prepared.ids) if prepared.logits is None else prepared.logits


def _error(
    adapter: ModelAdapter,
    store: ChunkKVStore,
    plan: PromptPlan,
    method: SamKV | Reuse,
    reference: PromptPlan | None = None,
) -> float:
    got = next_logits(adapter, method.prepare(Run(plan, adapter, store, room=1)))
    want = next_logits(adapter, Full().prepare(Run(reference or plan, adapter, store)))
    return apart(got, want)


def _decode_error(adapter: ModelAdapter, store: ChunkKVStore, several: PromptPlan, other: PromptPlan) -> float:
    """The error of three answers that are decoded together: two of different prompts by the default method, whose
    chunks are packed with the second token, and a shorter one that keeps everything at full precision."""
    tried = (several, SamKV(), STEPS), (other, SamKV(), STEPS - 2), (several, Reuse(), STEPS - 4)
    answers = list[Answer]()
    for plan, method, count in tried:
        prepared = method.prepare(Run(plan, adapter, store, room=count))
        assert prepared.cache is not None and prepared.logits is not None
        tokens = sent(prepared.tokens, adapter.device)
        answers.append(begun(tokens, prepared.cache, prepared.logits, prepared.settling, count))
    try:
        return decode_error(adapter, answers)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise _red(adapter, f"answers cannot be decoded together ({error})") from error


def _known_error(adapter: ModelAdapter, store: ChunkKVStore, plan: PromptPlan) -> float:
    """How much the logits change when the plan's beginning has been seen before."""
    first, second = (next_logits(adapter, Reuse().prepare(Run(plan, adapter, store, room=1))) for _ in range(2))
    return apart(second, first)


@torch.inference_mode()
def _place_error(adapter: ModelAdapter, ids: Sequence[int]) -> float:
    """How much the logits after a text change when it stands at the model's last positions."""
    last = min(getattr(adapter.config, "max_position_embeddings", None) or FAR, FAR)
    tokens = torch.tensor([ids], device=adapter.device)

    def after(start: int) -> Tensor:
        at = torch.arange(start, start + len(ids), device=adapter.device)[None]
        found: Tensor = adapter.model(tokens, position_ids=at, use_cache=False, logits_to_keep=1).logits
        return found[0, -1].float()

    return apart(after(last - len(ids)), after(0))


def _random_plan(
    adapter: ModelAdapter, store: ChunkKVStore, lengths: tuple[int, ...], glue: int, seed: int,
    head: tuple[int, ...] = (),
) -> PromptPlan:  # fmt: skip
    """Chunks of random ids in `store`, `glue` random ids before each, and a question of five at the end.

    `head` comes first: a chunk that was cached after a sink prefix is exact after that prefix alone.
    """
    generator = torch.Generator().manual_seed(seed)
    vocab = adapter.config.vocab_size

    def ids(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(0, vocab, (count,), generator=generator).tolist())

    segments = [Segment("glue", "", head, 0)] if head else []
    for kind, count in [pair for n in lengths for pair in (("glue", glue), ("chunk", n))] + [("glue", 5)]:
        if count:
            start = segments[-1].stop if segments else 0
            tokens = ids(count)
            key = chunk_key(tokens, "parity", "parity") if kind == "chunk" else None
            segments.append(Segment(kind, "", tokens, start, key))  # type: ignore[arg-type]
            if key is not None:
                store.put(key, adapter.ingest([""], [tokens])[0], namespace="parity", fingerprint="parity")
    last = segments[-1]
    return PromptPlan(tuple(segments), Question("", last.token_ids, last.start))


def _shifted(adapter: ModelAdapter, store: ChunkKVStore, plan: PromptPlan) -> PromptPlan:
    """The plan of one chunk with its stored keys rotated by 7 positions: what a wrong rotation would do."""
    chunk, table, moved = plan.chunks[0], adapter.table(torch.full((BLOCK,), 7)), list[Tensor]()
    for index, stack in enumerate(adapter.shape.stacks):
        kv = store.read_blocks(str(chunk.key), stack=index)
        keys = kv[:, :, 0].flatten(1, 2).to(adapter.device)
        kv[:, :, 0] = table.rotate(keys, stack.layers).to(kv).view_as(kv[:, :, 0])
        moved.append(kv)
    key = chunk_key(chunk.token_ids, "parity", "control")
    shifted = ChunkKV(store.summary(str(chunk.key)), moved[0], tuple(moved[1:]))
    store.put(key, shifted, namespace="control", fingerprint="parity")
    segments = tuple(replace(s, key=key) if s.kind == "chunk" else s for s in plan.segments)
    return replace(plan, segments=segments)
