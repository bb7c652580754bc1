"""The tier in memory: gone with the process."""

from __future__ import annotations

import uuid
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from samkv_kernels.sending import sent
from samkv_rag.store.backend import Progress
from samkv_rag.store.errors import MissingEntry, StoreError, StoreFull
from samkv_rag.store.forks import AtRest
from samkv_rag.store.layout import KVLayout, on_host, own
from samkv_rag.store.quantise import KVForm, StoredBlocks
from samkv_rag.store.reports import PruneReport, StoreStats
from samkv_rag.types import ChunkKV, ChunkSummary, MatchRecord


@dataclass(frozen=True, slots=True)
class _Held:
    summary: ChunkSummary
    stored: tuple[StoredBlocks, ...]
    namespace: str
    fingerprint: str
    record: MatchRecord
    nbytes: int


class MemoryBackend(AtRest):
    """Entries in a dictionary, the least recently used first; their K and V are on `device`, summaries on the CPU."""

    on_disk = False

    def __init__(self, max_bytes: int | None, device: str | torch.device = "cpu") -> None:
        super().__init__()
        self._device = _usable(device)
        self.store_id = str(uuid.uuid4())
        self.bytes_read = 0
        self._max_bytes = max_bytes
        self._entries: OrderedDict[str, _Held] | None = OrderedDict()
        self._owners: dict[str, set[str]] = {}  # of every key
        self._needs: dict[str, set[str]] = {}  # the same by owner
        self._total = 0
        self._hits = 0
        self._misses = 0
        self._evictions = 0

    def put(self, key: str, chunk: ChunkKV, namespace: str, fingerprint: str, kv_dtype: str) -> None:
        """Keep a copy stored as `kv_dtype`, replacing an older one; evicts the oldest entries. Raises `StoreFull`."""
        stored = tuple(self._stored(one.kv, kv_dtype) for one in chunk.stacks)
        record, size = MatchRecord.of(chunk.summary.text), sum(map(_taken, stored)) + _size(chunk.summary)
        held = _Held(_copy(chunk.summary), stored, namespace, fingerprint, record, size)
        if self._max_bytes is not None and held.nbytes > self._max_bytes:
            raise StoreFull(
                f"Chunk {key} takes {held.nbytes} bytes but the store may hold {self._max_bytes}: "
                "raise max_bytes or split the text into shorter chunks."
            )
        with self._lock:
            self._remove(key)
            self._open[key] = held
            self._total += held.nbytes
            self._evictions += self._shrink(self._max_bytes)

    def require_writable(self) -> None:
        """Nothing: memory can be written."""

    def contains(self, key: str) -> bool:
        with self._lock:
            return key in self._open

    def count(self) -> int:
        with self._lock:
            return len(self._open)

    def keys(self, namespace: str | None) -> Iterator[str]:
        with self._lock:
            return iter(sorted(key for key, held in self._open.items() if namespace in (None, held.namespace)))

    def records(self, namespace: str, fingerprint: str | None) -> Iterator[tuple[str, MatchRecord]]:
        with self._lock:
            held = [(key, self._open[key]) for key in self.keys(namespace)]
        return ((key, each.record) for key, each in held if fingerprint in (None, each.fingerprint))

    def summary(self, key: str) -> ChunkSummary:
        with self._lock:
            if key not in self._open:
                self._misses += 1
                raise MissingEntry(key, "it was never put, or it was deleted or evicted")
            self._hits += 1
            self._open.move_to_end(key)
            return self._open[key].summary

    def read_blocks(
        self, key: str, blocks: Sequence[int] | None, layers: Sequence[int] | None, stack: int, pinned: bool
    ) -> StoredBlocks:  # fmt: skip
        """Blocks of layers as stored, on the store's device; a view if what is requested is contiguous. Raises
        `MissingEntry`."""
        with self._lock:
            if key not in self._open:
                raise MissingEntry(key, "it was never put, or it was deleted or evicted")
            stored = self._open[key].stored[stack]
        deep, chosen = map(_compact, KVLayout.of(stored.data).wanted(blocks, layers))
        data = stored.data[deep]
        if isinstance(chosen, list):  # a list as an index would make the host wait for a GPU
            out = StoredBlocks(
                stored.form, data.index_select(1, sent(torch.tensor(chosen, dtype=torch.long), data.device))
            )
        else:
            out = StoredBlocks(stored.form, data[:, chosen])
        with self._lock:
            self.bytes_read += out.nbytes
        return out

    def delete(self, keys: Iterable[str]) -> int:
        with self._lock:
            chosen = list(keys)
            for key in chosen:
                for owner in list(self._owners.get(key, ())):
                    self._disown(owner, key)
            return sum(self._remove(key) for key in chosen)

    def retain(self, key: str, owner: str, leave_free: bool) -> None:
        with self._lock:
            if leave_free and key in self._open and key not in self._owners:
                return
            self._owners.setdefault(key, set()).add(owner)
            self._needs.setdefault(owner, set()).add(key)

    def release(self, owner: str, keys: Iterable[str] | None) -> list[str]:
        with self._lock:
            owned = self._needs.get(owner, set())
            released = sorted(owned if keys is None else owned.intersection(keys))
            for key in released:
                self._disown(owner, key)
            gone = [key for key in released if key not in self._owners]
            self.delete(gone)
            return gone

    def owned(self, prefix: str) -> list[tuple[str, str]]:
        with self._lock:
            owners = [owner for owner in self._needs if owner.startswith(prefix)]
            return [(owner, key) for owner in owners for key in self._needs[owner]]

    def owned_by(self, owner: str) -> list[str]:
        with self._lock:
            return list(self._needs.get(owner, ()))

    def verify(self, progress: Progress | None) -> list[str]:
        if progress:
            progress(self.count(), self.count())
        return []

    def prune(self, max_bytes: int | None, drop_damaged: bool) -> PruneReport:
        with self._lock:
            before = self._total
            evicted = self._shrink(max_bytes)
            self._evictions += evicted
            return PruneReport(evicted=evicted, bytes_freed=before - self._total)

    def stats(self) -> StoreStats:
        """Counts since the store was made; nothing in memory is ever damaged."""
        with self._lock:
            return StoreStats(
                entries=len(self._open),
                bytes=self._total,
                hits=self._hits,
                misses=self._misses,
                evictions=self._evictions,
                damaged=0,
                kv_dtypes=dict(Counter(held.stored[0].form.kv_dtype for held in self._open.values())),
                bytes_read=self.bytes_read,
                max_bytes=self._max_bytes,
                path=":memory:",
                store_id=self.store_id,
            )

    def close(self) -> None:
        with self._lock:
            self._entries = None

    @property
    def _open(self) -> OrderedDict[str, _Held]:
        if self._entries is None:
            raise StoreError("The store is closed, and what was in memory is gone: make a new one.")
        return self._entries

    def _stored(self, kv: Tensor, kv_dtype: str) -> StoredBlocks:
        form = KVForm.of(kv, kv_dtype)
        return StoredBlocks(form, _kept(form.encode(kv.detach()), self._device))

    def _disown(self, owner: str, key: str) -> None:
        for names, of, name in ((self._owners, key, owner), (self._needs, owner, key)):
            names[of].discard(name)
            if not names[of]:
                del names[of]

    def _remove(self, key: str) -> bool:
        held = self._open.pop(key, None)
        self._total -= held.nbytes if held else 0
        return held is not None

    def _shrink(self, limit: int | None) -> int:
        """Evict the oldest entries until the rest fits into `limit` bytes; returns how many."""
        evicted = 0
        while limit is not None and self._total > limit and self._open:
            evicted += self._remove(next(iter(self._open)))
        return evicted


def _kept(x: Tensor, device: torch.device) -> Tensor:
    """A copy on the device. What comes from a GPU to the host will go back there: it is put in pinned memory, which a
    GPU reads directly, faster and without the host. torch allocates such memory in powers of two."""
    if x.is_cuda and device.type == "cpu":
        return on_host(x.shape, x.dtype, pinned=True).copy_(x)
    return own(x, device)


def _taken(stored: StoredBlocks) -> int:
    """Bytes of memory that `stored` takes: a power of two if it is pinned."""
    return 1 << (stored.nbytes - 1).bit_length() if stored.data.is_pinned() else stored.nbytes


def _copy(summary: ChunkSummary) -> ChunkSummary:
    mean, low, high, local = (own(x) for x in (summary.mean, summary.low, summary.high, summary.local_query))
    others = tuple(_copy(other) for other in summary.others)
    return ChunkSummary(summary.text, own(summary.token_ids), mean, low, high, local, others)


def _size(summary: ChunkSummary) -> int:
    small = summary.nbytes + summary.token_ids.numel() * summary.token_ids.element_size()
    return small + len(summary.text.encode("utf-8", "surrogatepass"))


def _usable(device: str | torch.device) -> torch.device:
    """The device; StoreError if nothing can be put there, now rather than at the first chunk."""
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:  # the latter from a torch that was built without CUDA
        raise StoreError(f"A store cannot keep anything on the device {str(device)!r}: {error}") from error


def _compact(indices: Sequence[int]) -> slice | list[int]:
    """Consecutive indices as a slice, so that what is read is a view."""
    run = range(indices[0], indices[0] + len(indices)) if indices else range(0)
    return slice(run.start, run.stop) if list(run) == list(indices) else list(indices)
