"""A method that remembers what it chose: the very selection that an answer rests on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from samkv_rag.methods import Method, Prepared, Run
from samkv_rag.types import PromptPlan, Selection


@dataclass(frozen=True)
class Recording:
    """`method`, answering as it does. `last` holds the plan of its latest run and what returns the selection; it is
    empty before that, and for a prompt without chunks."""

    method: Method
    last: list[tuple[PromptPlan, Callable[[], Selection]]] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.method.name

    @property
    def selection(self) -> Selection:
        """What the latest run chose: of some methods this is known only when the answer has ended."""
        return self.last[0][1]()

    def prepare(self, run: Run) -> Prepared:
        prepared = self.method.prepare(run)
        self.last[:] = [(run.plan, prepared.chosen)]  # not all of it: a cache need not live on
        return prepared
