"""Passes over a prompt, of fixed sizes, recorded as CUDA graphs: the host makes their launches only once.

For an 8B model's answer over 16,384 tokens a GPU was busy for 118 ms of 226; the rest went into 5,242 launches
(docs/gpu.md). Prompts are prepared in one place in memory (`Workspace`), and a pass is padded to sizes that many
prompts share, with rows that no other row attends to: a token at the first free slot, after all that is asked for. What
runs, and where, is read from tensors, so the same launches serve the next prompt. `SAMKV_GRAPHS=off` turns this off.

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
"""Recordings kept at most, those used last: prompts of one application have few sizes."""


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
    """Whether the slots are all that are live, in order: the rows then attend as in an ordinary prefill."""

    @property
    def head(self) -> int:
        """How many of the first rows may precede padding: they do not attend to it, and none of them produces
        logits."""
        return self.narrow.rows if self.narrow is not None else len(self.slots) - int(self.speak)

    @property
    def neighbours(self) -> Tensor | None:
        """The slots that narrowed rows attend to, where these are not just their own."""
        return None if self.narrow is None else self.narrow.seen

    @property
    def watcher(self) -> Watcher | None:
        """Its observer, if that is a watcher."""
        return self.observer if isinstance(self.observer, Watcher) else None


Run = Callable[[PromptPass, SlotCache], Tensor | None]
"""Carries out a pass; returns the logits `(vocab,)` with `speak`."""
Found = tuple[Tensor | None, Tensor | None]
"""Logits, and what the watcher found."""
Capture = Callable[[Callable[[], Found]], Callable[[], Found]]
"""Records a function: the one it returns does the same work again and returns the same tensors."""


def rounded(count: int, parts: int = 8) -> int:
    """`count` rounded up so that there are few sizes: by at most 15, or by a fraction 1 / `parts` of it."""
    step = max(16, (1 << count.bit_length()) // (2 * parts))
    return -(-count // step) * step


@dataclass(frozen=True, slots=True)
class Sizes:
    """What passes served by one recording have in common: slots, rows before and after the padding, watched rows, what
    narrowed rows attend to, layers."""

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
        """The sizes of a pass over `length` slots, rounded up, to at most `room` slots. A single row after the head is
        the one that produces logits."""
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
    """A pass of fixed sizes over the workspace: the same launches on the same memory, prompt after prompt."""

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
        """Whether the pass is replayed."""
        return self._again is not None

    def take(self, asked: PromptPass, length: int, capture: Capture | None = None) -> Tensor | None:
        """Carry out a pass over the first `length` slots, from now on by what `capture` makes of it, if that is given.
        Returns the logits `(vocab,)` with `speak`, and gives its watcher the result."""
        self._fill(asked, length)
        if capture is not None:
            self._again = capture(self._carry_out)
        logits, found = (self._again or self._carry_out)()
        watcher = asked.watcher
        if watcher is not None and found is not None:
            watcher.accept(found[..., : len(watcher.rows), :length].clone())
        return None if logits is None else logits.clone()

    def _fill(self, asked: PromptPass, length: int) -> None:
        """Write what runs, and where: between the head and what follows it, the prompt's last token repeatedly, at the
        first free slot."""
        head, more = asked.head, len(self._slots) - len(asked.slots)
        for fixed, own, filling in ((self._ids, asked.ids, asked.ids[-1]), (self._slots, asked.slots, length)):
            fixed[:head].copy_(own[:head], non_blocking=True)
            fixed[head : head + more] = filling
            fixed[head + more :].copy_(own[head:], non_blocking=True)
        if asked.neighbours is not None:
            count = len(asked.neighbours)
            self._seen[:count].copy_(asked.neighbours, non_blocking=True)
            self._seen[count:] = asked.slots[-1]  # after all narrowed rows, and a number: it is computed too
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
    """Takes the passes of prompts that are in a workspace; sizes that recur are recorded. `reason` says why nothing is
    recorded any more: there is then no workspace."""

    def __init__(self, workspace: Workspace, run: Run, capture: Capture) -> None:
        self._workspace: Workspace | None = workspace
        self._run, self._capture = run, capture
        self._fixed: OrderedDict[Sizes, FixedPass] = OrderedDict()
        self.reason: str | None = None
        self.recordings = 0

    def lend(self, layers: range, slots: int) -> list[Buffers] | None:
        """Room in the workspace for `slots` slots of `layers`, by stack; None where there is none."""
        space = self._workspace
        if space is None or (slots > space.slots and space.in_use):
            return None
        if slots > space.slots:
            self._fixed.clear()  # they refer to memory that is freed
            try:
                space.grow(slots)
            except torch.OutOfMemoryError:
                return None
        return space.lend(layers, slots)

    def holds(self, cache: SlotCache) -> bool:
        """Whether a cache is in the workspace."""
        return self._workspace is not None and self._workspace.holds(cache)

    def serves(self, asked: PromptPass, cache: SlotCache) -> bool:
        """Whether a pass can have fixed sizes: some rows of a prompt in the workspace, with one free slot after it, and
        no observer but a watcher."""
        some = asked.head > 0 and not asked.everything and cache.get_seq_length() < len(cache.positions)
        watcher = asked.watcher
        seen = asked.observer is None if watcher is None else len(watcher.rows) > 0
        return some and seen and self.holds(cache)

    def take(self, asked: PromptPass, cache: SlotCache) -> Tensor | None:
        """Carry out a pass that is served; returns the logits `(vocab,)` with `speak`. Its watcher gets its result."""
        fixed, again = self._fixed_for(asked, cache)
        length = cache.get_seq_length()
        if again and not fixed.recorded:
            try:
                logits = fixed.take(asked, length, self._capture)
                self.recordings += 1
                return logits
            except torch.OutOfMemoryError:
                self._fixed.clear()  # there may be memory another time
            except Exception as error:  # what cannot be recorded of a model can be run plainly
                self._end(f"a pass could not be recorded ({type(error).__name__}: {error})")
        return fixed.take(asked, length)

    def _end(self, reason: str) -> None:
        self.reason, self._workspace = reason, None
        self._fixed.clear()
        tell(f"Prompts are prepared without CUDA graphs: {reason}.")

    def _fixed_for(self, asked: PromptPass, cache: SlotCache) -> tuple[FixedPass, bool]:
        """The pass of these sizes, its positions those of `cache`, and whether it existed before."""
        space = self._workspace
        assert space is not None
        sizes = Sizes.of(asked, cache.get_seq_length(), space.slots)
        view = space.view(sizes.slots)
        follow(view, cache)
        known = self._fixed.get(sizes)
        fixed = known or FixedPass(asked, sizes, view, self._run)
        remember(self._fixed, sizes, fixed, MOST)
        return fixed, known is not None
