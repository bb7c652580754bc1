"""Passes over a prompt, of fixed sizes, recorded as CUDA graphs: the host makes their launches once.

Of an 8B model's answer over 16,384 tokens a GPU was busy for 118 ms of 226; the rest went into 5,242 launches
(docs/gpu.md). Prompts are prepared in one memory (`Workspace`), and a pass is filled up with rows that nobody
sees, to sizes that many prompts share: a token at the first free slot, behind all that is asked for. What runs and
where it stands is read from tensors, so that the same launches serve the next prompt. `SAMKV_GRAPHS=off` does without.

Recorded or not, a pass in the workspace is the same function, so an answer does not depend on when it was recorded.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from samkv_rag.model.buffers import Buffers
from samkv_rag.model.cache import SlotCache
from samkv_rag.model.graphs import tell
from samkv_rag.model.latest import remember
from samkv_rag.model.narrowed import Narrow
from samkv_rag.model.observers import Observer, Watcher
from samkv_rag.model.workspace import Workspace, follow

MOST = 32
"""Recordings that are kept, those used last: prompts of one application have few sizes."""


@dataclass(frozen=True, slots=True)
class PromptPass:
    """A pass over tokens `ids` `(Q,)` at the `slots` `(Q,)` of a cache, as `ModelAdapter.recompute` describes it."""

    ids: Tensor
    slots: Tensor
    last_layer: int | None
    observer: Observer | None = None
    narrow: Narrow | None = None
    speak: bool = False
    everything: bool = False
    """Whether the slots are all that are live, in order: the rows then attend as an ordinary prefill's."""

    @property
    def head(self) -> int:
        """How many rows, the first ones, others may be put behind: they see nothing of those, nor are they the last."""
        return self.narrow.rows if self.narrow is not None else len(self.slots) - int(self.speak)

    @property
    def neighbours(self) -> Tensor | None:
        """The slots that narrowed rows see, where those are not their own alone."""
        return None if self.narrow is None else self.narrow.seen

    @property
    def watcher(self) -> Watcher | None:
        """Its observer, if that is one."""
        return self.observer if isinstance(self.observer, Watcher) else None


Run = Callable[[PromptPass, SlotCache], Tensor | None]
"""Carries a pass out; returns the logits `(vocab,)` where it speaks."""
Found = tuple[Tensor | None, Tensor | None]
"""Logits, and what the watcher found."""
Capture = Callable[[Callable[[], Found]], Callable[[], Found]]
"""Records a function: what comes back does the same work again and returns the same tensors."""


def rounded(count: int, parts: int = 8) -> int:
    """The size that `count` is rounded up to, so that there are few: by 15 at most, or one of `parts` of it."""
    step = max(16, (1 << count.bit_length()) // (2 * parts))
    return -(-count // step) * step


@dataclass(frozen=True, slots=True)
class Sizes:
    """What passes share that one recording serves: slots, rows before and behind the filling, watched rows, what
    narrowed rows see, layers."""

    slots: int
    head: int
    tail: int
    watched: int
    kind: Hashable
    narrow_from: int | None
    seen: int
    last_layer: int | None
    speak: bool

    @classmethod
    def of(cls, asked: PromptPass, length: int, room: int) -> Sizes:
        """Those of a pass over `length` slots, rounded up, where there is `room` for no more than so many. A single row
        behind the head is the one that speaks."""
        tail, watcher = len(asked.slots) - asked.head, asked.watcher
        return cls(
            slots=min(rounded(length + 1, parts=4), room),
            head=rounded(asked.head, parts=32),  # 48 rows of 2,560 took 5 ms of 90 on an H200
            tail=tail if tail < 2 else rounded(tail),
            watched=rounded(len(watcher.rows)) if watcher else 0,
            kind=watcher.kind if watcher else None,
            narrow_from=asked.narrow.layer if asked.narrow else None,
            seen=0 if asked.neighbours is None else rounded(len(asked.neighbours), parts=4),
            last_layer=asked.last_layer,
            speak=asked.speak,
        )


class FixedPass:
    """A pass of some sizes over the workspace: the same launches on the same memory, prompt after prompt."""

    def __init__(self, asked: PromptPass, sizes: Sizes, cache: SlotCache, run: Run) -> None:
        self._cache, self._run = cache, run
        device = cache.positions.device
        self._ids, self._slots = (torch.zeros(sizes.head + sizes.tail, dtype=torch.long, device=device) for _ in "12")
        self._watched = torch.zeros(sizes.watched, dtype=torch.long, device=device)
        watcher = asked.watcher
        self._watching = None if watcher is None else partial(watcher.watching, self._watched)
        self._seen = torch.zeros(sizes.seen, dtype=torch.long, device=device)
        seen = None if asked.neighbours is None else self._seen
        narrow = None if asked.narrow is None else replace(asked.narrow, rows=sizes.head, seen=seen)
        self._pass = replace(asked, ids=self._ids, slots=self._slots, narrow=narrow, observer=None)
        self._again: Callable[[], Found] | None = None

    @property
    def recorded(self) -> bool:
        """Whether the pass is played."""
        return self._again is not None

    def take(self, asked: PromptPass, length: int, capture: Capture | None = None) -> Tensor | None:
        """Carry a pass out over the first `length` slots, from now on by what `capture` makes of it, if that is given;
        returns the logits `(vocab,)` where it speaks, and lets its watcher know."""
        self._fill(asked, length)
        if capture is not None:
            self._again = capture(self._carry_out)
        logits, found = (self._again or self._carry_out)()
        watcher = asked.watcher
        if watcher is not None and found is not None:
            watcher.accept(found[..., : len(watcher.rows), :length].clone())
        return None if logits is None else logits.clone()

    def _fill(self, asked: PromptPass, length: int) -> None:
        """Write down what runs, and where: between the head and what is behind it the prompt's last token again and
        again, at the first free slot."""
        head, more = asked.head, len(self._slots) - len(asked.slots)
        for fixed, own, filling in ((self._ids, asked.ids, asked.ids[-1]), (self._slots, asked.slots, length)):
            fixed[:head].copy_(own[:head], non_blocking=True)
            fixed[head : head + more] = filling
            fixed[head + more :].copy_(own[head:], non_blocking=True)
        if asked.neighbours is not None:
            count = len(asked.neighbours)
            self._seen[:count].copy_(asked.neighbours, non_blocking=True)
            self._seen[count:] = asked.slots[-1]  # behind all that see less, and a number: it runs, too
        watcher = asked.watcher
        if watcher is not None:
            rows = watcher.rows
            self._watched[: len(rows)] = torch.where(rows < head, rows, rows + more)
            self._watched[len(rows) :] = self._watched[len(rows) - 1]

    def _carry_out(self) -> Found:
        watcher = self._watching() if self._watching is not None else None
        with self._cache.writing(self._slots):
            logits = self._run(replace(self._pass, observer=watcher), self._cache)
        return logits, None if watcher is None else watcher.found


class Passes:
    """Takes the passes of prompts that lie in a workspace; what sizes come again is recorded. `reason` says why nothing
    is any more: there is no workspace then."""

    def __init__(self, workspace: Workspace, run: Run, capture: Capture) -> None:
        self._workspace: Workspace | None = workspace
        self._run, self._capture = run, capture
        self._fixed: OrderedDict[Sizes, FixedPass] = OrderedDict()
        self.reason: str | None = None
        self.recordings = 0

    def lend(self, layers: range, slots: int) -> list[Buffers] | None:
        """Room of the workspace for `slots` of `layers`, by stack; None where there is none to be had."""
        space = self._workspace
        if space is None or (slots > space.slots and space.in_use):
            return None
        if slots > space.slots:
            self._fixed.clear()  # they are of the memory that goes
            try:
                space.grow(slots)
            except torch.OutOfMemoryError:
                return None
        return space.lend(layers, slots)

    def holds(self, cache: SlotCache) -> bool:
        """Whether a cache lies in the workspace."""
        return self._workspace is not None and self._workspace.holds(cache)

    def serves(self, asked: PromptPass, cache: SlotCache) -> bool:
        """Whether a pass can be of fixed sizes: some rows of a prompt in the workspace, with one free slot behind it,
        and nobody who looks but a watcher."""
        some = asked.head > 0 and not asked.everything and cache.get_seq_length() < len(cache.positions)
        watcher = asked.watcher
        seen = asked.observer is None if watcher is None else len(watcher.rows) > 0
        return some and seen and self.holds(cache)

    def take(self, asked: PromptPass, cache: SlotCache) -> Tensor | None:
        """Carry out a pass that is served; returns the logits `(vocab,)` where it speaks. Its watcher has what it
        wants."""
        fixed, again = self._fixed_for(asked, cache)
        length = cache.get_seq_length()
        if again and not fixed.recorded:
            try:
                logits = fixed.take(asked, length, self._capture)
                self.recordings += 1
                return logits
            except torch.OutOfMemoryError:
                self._fixed.clear()  # there may be room another time
            except Exception as error:  # whatever a model does that cannot be recorded, it can be done plainly
                self._end(f"a pass could not be recorded ({type(error).__name__}: {error})")
        return fixed.take(asked, length)

    def _end(self, reason: str) -> None:
        self.reason, self._workspace = reason, None
        self._fixed.clear()
        tell(f"Prompts are prepared without CUDA graphs: {reason}.")

    def _fixed_for(self, asked: PromptPass, cache: SlotCache) -> tuple[FixedPass, bool]:
        """The pass of these sizes, its positions those of `cache`, and whether there was one before."""
        space = self._workspace
        assert space is not None
        sizes = Sizes.of(asked, cache.get_seq_length(), space.slots)
        view = space.view(sizes.slots)
        follow(view, cache)
        known = self._fixed.get(sizes)
        fixed = known or FixedPass(asked, sizes, view, self._run)
        remember(self._fixed, sizes, fixed, MOST)
        return fixed, known is not None
