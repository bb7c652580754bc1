"""What a store reports about itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass


@dataclass(frozen=True, slots=True)
class StoreStats:
    """Counts of a store. `bytes` are K, V and summaries as stored, `bytes_read` the K/V bytes this object read.

    `hits`, `misses` and `evictions` count since the store was made, across all processes if it is on disk.
    `damaged` counts entries that a read or `verify` found damaged and that were not put again since. `kv_dtypes` counts
    entries by how their K and V are stored (fp32, bf16, fp16, int8, fp8, int4).
    """

    entries: int
    bytes: int
    hits: int
    misses: int
    evictions: int
    damaged: int
    kv_dtypes: Mapping[str, int]
    bytes_read: int
    max_bytes: int | None
    path: str
    store_id: str

    @property
    def hit_rate(self) -> float:
        """Hits over all look-ups, 0.0 when there were none."""
        return self.hits / (self.hits + self.misses) if self.hits + self.misses else 0.0

    def as_dict(self) -> dict[str, object]:
        """The counts and `hit_rate` as plain types, ready for JSON."""
        return {**asdict(self), "hit_rate": self.hit_rate}


@dataclass(frozen=True, slots=True)
class PruneReport:
    """What `prune` did: entries dropped as damaged, evicted for size, found again without a catalogue row (`adopted`),
    files without an entry that were removed (`orphans`), and the bytes of all removed files."""

    damaged: int = 0
    evicted: int = 0
    adopted: int = 0
    orphans: int = 0
    bytes_freed: int = 0

    def as_dict(self) -> dict[str, object]:
        """The counts as plain types, ready for JSON."""
        return asdict(self)
