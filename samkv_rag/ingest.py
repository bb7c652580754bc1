"""Turn chunk texts into caches: encode, skip what is there, prefill in batches, store."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from itertools import chain

from samkv_rag.errors import SamKVError
from samkv_rag.model.adapter import ModelAdapter
from samkv_rag.model.given import refuse_unknown_tokens
from samkv_rag.store import ChunkKVStore, estimate_bytes

BATCH_TOKENS = 2048
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Pending:
    """A chunk that is not stored yet."""

    text: str
    key: str
    token_ids: tuple[int, ...]


def ingest(
    pending: Sequence[Pending], adapter: ModelAdapter, store: ChunkKVStore, *, namespace: str, fingerprint: str,
    turn: AbstractContextManager[None], kv_dtype: str = "model", progress: Progress | None = None,
) -> Iterator[Pending]:  # fmt: skip
    """Prefill and store `pending`, batching long chunks with long ones; the model is released between batches. Yields
    each as soon as it is stored.

    `progress(done_tokens, all_tokens)` is called after every batch. Raises `SamKVError` for a chunk with more tokens
    than the model has positions, or when the model has changed; what was stored before is kept.
    """
    limit = getattr(adapter.config, "max_position_embeddings", None)
    total, done = sum(len(chunk.token_ids) for chunk in pending), 0
    for batch in _batches(pending, 1 if adapter.rotary.depends_on_length else None):
        longest = max(len(chunk.token_ids) for chunk in batch)
        if limit is not None and longest > limit:
            raise SamKVError(
                f"A chunk has {longest} tokens, the model has {limit} positions; split it into smaller ones."
            )
        refuse_unknown_tokens(chain.from_iterable(chunk.token_ids for chunk in batch), adapter.config)
        with turn:
            adapter.attached.refuse_changes()
            caches = adapter.ingest([chunk.text for chunk in batch], [chunk.token_ids for chunk in batch])
        for chunk, cache in zip(batch, caches, strict=True):
            store.put(chunk.key, cache, namespace=namespace, fingerprint=fingerprint, kv_dtype=kv_dtype)
            yield chunk
        done += sum(len(chunk.token_ids) for chunk in batch)
        if progress is not None:
            progress(done, total)


def stored_bytes(sizes: Sequence[int], adapter: ModelAdapter, kv_dtype: str) -> int:
    """Estimate the bytes that chunks of `sizes` tokens take in the store."""
    latent, dtype = adapter.rotary.latent, adapter.dtype  # of latents there are no local queries
    return sum(
        estimate_bytes(
            size, len(stack.layers), stack.kv_heads, stack.head_dim, dtype, heads=0 if latent else stack.heads,
            kv_dtype=kv_dtype,
        )
        for size in sizes
        for stack in adapter.shape.stacks
    )  # fmt: skip


def _batches(pending: Sequence[Pending], size: int | None) -> Iterator[list[Pending]]:
    """Yield chunks by length, about `BATCH_TOKENS` padded tokens per batch."""
    batch: list[Pending] = []
    for chunk in sorted(pending, key=lambda chunk: len(chunk.token_ids)):
        full = batch and (len(batch) + 1) * len(chunk.token_ids) > BATCH_TOKENS
        if full or (size is not None and len(batch) == size):
            yield batch
            batch = []
        batch.append(chunk)
    if batch:
        yield batch


@contextmanager
def reported(progress: bool | Progress) -> Iterator[Progress | None]:
    """Yield a callable unchanged; for True, a bar with tokens per second and the time left; for False, None."""
    if not isinstance(progress, bool):
        yield progress
        return
    if not progress:
        yield None
        return
    from tqdm.auto import tqdm

    with tqdm(unit=" tokens", unit_scale=True, desc="caching chunks") as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield show
