"""The protocol of a method: a frozen dataclass with a name and one verb."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from samkv_rag.methods.prepared import Prepared
from samkv_rag.methods.run import Run


@runtime_checkable
class Method(Protocol):
    """`prepare` turns a run into the cache that decoding starts from, and says which tokens it kept and recomputed."""

    @property
    def name(self) -> str: ...

    def prepare(self, run: Run) -> Prepared: ...
