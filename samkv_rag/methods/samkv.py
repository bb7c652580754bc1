"""SamKV: recompute about 15 % of the chunks' tokens, then hold the rest in four bits, or drop it.

Paper: "Sparse Attention Across Multiple-Context KV Cache", AAAI 2026. `SamKV.paper()` is its recipe as best
established; where the sources are silent the fields say "our choice".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from torch import Tensor

from samkv_kernels.sending import sent
from samkv_rag.errors import SamKVError
from samkv_rag.methods.leading import computed_and_stored
from samkv_rag.methods.looks import FirstLook, Look
from samkv_rag.methods.picked import Picked, Settled, best_of, exchanged, largest
from samkv_rag.methods.prepared import Prepared
from samkv_rag.methods.profiled import (
    ANSWER_WEIGHT,
    EARLY,
    SEES,
    UNMEASURED,
    VICINITY,
    WIDE,
    profile_of,
)  # fmt: skip
from samkv_rag.methods.run import Run
from samkv_rag.methods.scoring import check_block, followed_values, worth_keeping
from samkv_rag.methods.selection import (
    Choice,
    ChunkScores,
    aligned_rows,
    anchor_masks,
    choose,
    dynamic_share,
    early_first,
    ranked_anchors,
    recompute_order,
    standardised,
)  # fmt: skip
from samkv_rag.methods.settling import EXACT, LEAST_PACKED, Settlement
from samkv_rag.options import BlockSize, Count, Exponent, Options, Share, Vicinity, Weight, Within, known, portion
from samkv_rag.store.profiles import ModelProfile
from samkv_rag.types import BLOCK, Selection


@dataclass(frozen=True)
class SamKV(Options):
    """The default looks twice; `paper()` is the recipe of the paper.

    The question looks at stored entries instead of summaries. First look: what it attends to is recomputed, attending
    to all stored entries on the lower layers. Second look, in that same pass: what it attends to now stays (with what
    surrounds it). The pass also gives the first new token, which attends to everything; before the second the rest is
    packed into four bits, or with `rest="drop"` dropped. The paper chooses once, by a pooled query against block means,
    and what it recomputes attends only to what it keeps. What decided this: docs/results.md, docs/fidelity.md.

    What is recomputed, and held:

    `keep`: chosen chunk tokens / chunk tokens, at least the engine's `min_kept_tokens`; with `rest="drop"` a hard
    ceiling of what is held above that. `recompute`: recomputed tokens / chosen tokens, those of highest rank ("score")
    or from the head of every chosen run (`recompute_by`).
    `rest`: what becomes of everything else. "int4": from the answer's second token on it is held in four bits per
    number, in 18 % of fp32's bytes or 32 % of bf16's; what was attended to most, a quarter of `keep`, stays at full
    precision. "drop": `keep` is all that is held. None (default): "int4", or "drop" with `settle="before"`.
    `hold`: held chunk tokens / chunk tokens where the rest is packed, at least `keep`. 1 (default): nothing is dropped.
    `settle`: when it is decided what stays. "after" the recompute (default); every entry of the retrieved chunks is
    read once, and a first chunk that is stored as the prompt computes it is not recomputed. "before" it (the paper):
    what was chosen is recomputed, attends to nothing else, and stays; anchors count.
    `settle_at`: decide after so many tokens of the answer, by what they attend to, too. Until then everything stays at
    full precision, to the end of a shorter answer. 0 (default): with the first token.

    How it is chosen what stays:

    `around`: tokens before and after one that get the same score.
    `vicinity`: how much the best place within 64 tokens counts beside a token's own: with 0 single facts of many places
    stay, with more whole sentences of few. None: as profiled for the model (`samkv-rag profile`), else 0.
    `answer_weight`: how often the row that gives the answer's first token counts, against the question's others. None:
    as profiled, else 2 (1 where the config notes layers); 1 where the rest is packed, or with `settle_at`.

    How it is chosen what is recomputed, and what that attends to:

    `layers`: the selection layers N*; None: as profiled, else as the config notes (`samkv_selection_layers`), else the
    middle third (our choice). What stays is always decided on the upper half of all layers.
    `followed`: how many of the best tokens are run for what they attend to in turn, which is then recomputed as if the
    question had attended to it; at most an eighth of what is recomputed.
    `early`: attention is divided by the token's place in its chunk (1, 2, ...) to this power: what was stored with the
    least before it changes most. None: as profiled, else 0.5 (0 where the config notes layers), and 0 where the rest is
    dropped at once. For looks by attention that settle after the recompute.
    `wide`: the share of the layers, from below, on which recomputed tokens attend to all stored entries; names are
    bound there. Above, they attend to each other and to the share `sees` of the rest: what most closely precedes any of
    them. The question always attends to everything. None: as profiled, else a quarter of the layers and 0.3.
    `look`: what scores a block. "keys" (default): the attention it gets in a pass of the question over all stored
    entries. "two_stage": "bound" makes a shortlist of `candidates` times the budget, among which "keys" decides.
    "pooled" (the paper): the pooled question query against its mean key, after a pass over the anchors. "mean",
    "bound": after that pass, the question's attention to its mean key, or to the bound of its keys. With
    `settle="before"`, "keys" reads every entry, "two_stage" its shortlist, the others only what they keep.
    `block`: tokens per selection block; None: 1 where attention decides what is recomputed, else 16; looks at summaries
    need a multiple of 16. `initial`, `local`: anchor tokens at a chunk's two ends. `middle`: select beyond them.
    `bias`: add the other chunks' local queries, weighted by |cos| to the `partner` (the question's query, or "local").
    `frame`: where the question stands for scoring: its "true" distance, or "adjacent" to the chunk (our option).
    `dynamic`: per-chunk shares limit each chunk's candidates (eq. 2). `per_chunk`: normalise scores chunk by chunk.
    `filtered`: chunks compete for the budget. `fill`: go on after the candidates until the budget is full.
    `theta`: 1 overwrites stored entries; below 1, or "cosine", fuses. `aligned`: layer alignment (recompute module).
    """

    keep: Share = 0.15
    recompute: Share = 1.0
    settle: Literal["before", "after"] = "after"
    settle_at: Count = 0
    rest: Literal["drop", "int4"] | None = None
    hold: Share = 1.0
    around: tuple[Count, Count] = (0, 8)
    vicinity: Vicinity | None = None
    answer_weight: Weight | None = None
    followed: Count = 16
    early: Exponent | None = None
    wide: Share | None = None
    sees: Share | None = None
    block: BlockSize | None = None
    initial: Count = 0
    local: Count = 0
    middle: bool = True
    layers: tuple[int, ...] | None = None
    look: Look = "keys"
    candidates: Annotated[float, Within(1)] = 3.0
    bias: bool = True
    partner: Literal["query", "local"] = "query"
    frame: Literal["true", "adjacent"] = "true"
    dynamic: bool = False
    per_chunk: bool = False
    filtered: bool = True
    fill: bool = True
    theta: Share | Literal["cosine"] = 1.0
    recompute_by: Literal["score", "head"] = "score"
    aligned: bool = False

    name = "samkv"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.aligned and self.settle == "after":
            raise SamKVError('aligned chooses what each layer stores of the chosen tokens: it needs settle="before".')
        if self.settle_at and self.settle == "before":
            raise SamKVError('settle_at decides after the recompute what is kept: it needs settle="after".')
        if self.rest == "int4" and self.settle == "before":
            raise SamKVError('rest="int4" packs after the recompute: it needs settle="after".')
        if self.hold < 1 and (self.rest == "drop" or self.settle == "before"):
            raise SamKVError('hold is the share that is held in four bits: it needs rest="int4"; otherwise use keep.')
        if self.settle_at and self.answer_weight not in (None, 1):
            raise SamKVError("With settle_at every token's attention counts once: leave out answer_weight.")
        if self.block is not None and self.look != "keys":
            check_block(self.block)

    @property
    def summaries(self) -> bool:
        """Whether it looks at summaries of blocks."""
        return self.look != "keys"

    @property
    def _block(self) -> int:
        """Tokens per selection block."""
        return self.block or (1 if self.look == "keys" and self.settle == "after" else BLOCK)

    @classmethod
    def paper(cls, keep: float = 0.15) -> SamKV:
        """The paper's recipe: the pooled query, dynamic shares, scores compared chunk by chunk, no filling up."""
        return cls(
            keep=keep, settle="before", look="pooled", initial=16, local=16, dynamic=True, per_chunk=True, fill=False
        )

    def prepare(self, run: Run) -> Prepared:
        """Score, select within the budget, recompute; keeping and recomputing everything skips the question's pass."""
        if self.summaries:
            run.adapter.refuse_summaries_of_latents()
        budget = run.budget(self.keep)
        if budget == sum(run.lengths) and self.recompute == 1 and not self.aligned:
            return run.recompute(Selection.all_of(run.plan), theta=self.theta)
        limit = budget // 2 if self.middle else budget
        anchors = anchor_masks(run.lengths, self.initial, self.local, limit)
        asked = None not in (self.layers, self.wide, self.sees, self.vicinity, self.answer_weight, self.early)
        profile, remarks = (UNMEASURED, ()) if asked else profile_of(run)
        settlement = self._settlement(run, budget)
        layers = self.selection_layers(run.adapter.shape.layers, profile.layers)
        if self.settle == "after" and self.look == "keys":
            run.read_ahead(layers[-1])
        scores = self._scores(run, layers, anchors, budget)
        with run.stage("select"):
            scores = self._favoured(scores, profile, settlement.all_stays or budget == sum(run.lengths))
            anchors, notes = ranked_anchors(run.lengths, self.initial, self.local, limit, scores, anchors)
            choice = self._choose(scores, anchors, budget)
            order = recompute_order(choice, self.recompute, self.recompute_by)
            again = best_of(choice.picked, order, portion(self.recompute, choice.picked.count))
            remarks += notes
        if self.settle == "after":
            again, value = self._followed(run, again, choice.value, order, layers[-1])
            return self._settle(run, *computed_and_stored(run, again, value), budget, settlement, remarks, profile)
        rows = aligned_rows(choice, layers, run.adapter.shape.layers) if self.aligned else None
        kept, computed = (picked.by_chunk(run.lengths) for picked in (choice.picked, again))
        return run.recompute(Selection(kept, computed, remarks, choice.ranking(self._block)), rows, self.theta)

    def _followed(
        self, run: Run, again: Picked, value: Tensor, order: Tensor, last_layer: int
    ) -> tuple[Picked, Tensor]:  # fmt: skip
        """As many tokens as `again`, the last of which by `order` give way to what the best of them by `value` attend
        to in turn on the layers up to `last_layer`; and every token's value after that, each `(T,)`."""
        value, order = (sent(each, run.adapter.device) for each in (value, order))
        again, count = again.on(run.adapter.device), min(self.followed, again.count // 8)
        if not count:
            return again, value
        witnesses = best_of(again, value, count)
        seen = run.witnessed(witnesses, last_layer)
        with run.stage("select"):
            followed = followed_values(value, witnesses.at, seen)
            return exchanged(again, order, value - value.min(), followed), followed

    def _settle(
        self, run: Run, again: Picked, also: Picked | None, budget: int, settlement: Settlement,
        notes: tuple[str, ...], profile: ModelProfile,
    ) -> Prepared:  # fmt: skip
        """Recompute the tokens `again` among all stored ones, attending to `also` on every layer; what the question
        then attends to is kept, `budget` tokens.

        Decided on the upper half of the layers, where attention goes to what is said, not to where to look.
        """
        n_layers = run.adapter.shape.layers
        wide, sees = self._sight(n_layers, profile)
        vicinity = known(self.vicinity, profile.vicinity, VICINITY)
        layers, at = range(n_layers // 2, n_layers), settlement.after
        notes += settlement.notes
        if at:
            run.notes, notes = run.notes + notes, ()
        weight = known(self.answer_weight, 1.0 if at else profile.answer_weight, ANSWER_WEIGHT)

        def settle(looked_at: Tensor) -> Settled:
            worth = standardised(self._worth(run, looked_at, vicinity)[None])[0]
            total, exact = len(worth), int(EXACT * budget)
            held = {"drop": budget, "int4": max(budget, portion(self.hold, total))}.get(settlement.rest, total)
            packs = settlement.rest == "int4" and held - exact >= LEAST_PACKED
            return Settled(largest(worth, held), again, worth, notes, largest(worth, exact) if packs else None)

        return run.recompute_and_settle(again, layers, settle, self.theta, wide, sees, at, weight, also)

    def _worth(self, run: Run, looked_at: Tensor, vicinity: float) -> Tensor:
        """How much each chunk token is worth keeping `(T,)`, by the attention it received, `looked_at` `(T,)`."""
        return worth_keeping(looked_at, self.around, vicinity, run.lengths)

    def _settlement(self, run: Run, budget: int) -> Settlement:
        """When it is decided what is kept, as far as this model allows."""
        rest = self.rest or ("drop" if self.settle == "before" else "int4")
        if budget == sum(run.lengths) or (rest == "drop" and not self.settle_at):
            return Settlement()
        why = run.adapter.unpackable
        if why and rest == "int4":
            return Settlement(rest="stay", notes=(f"nothing was packed, everything is kept at full precision: {why}",))
        if run.adapter.rotary.depends_on_length:
            return Settlement(notes=(f"settle_at was ignored: {why}",))
        return Settlement(max(self.settle_at, int(rest == "int4")), rest)

    def selection_layers(self, n_layers: int, measured: tuple[int, ...] = ()) -> tuple[int, ...]:
        """N*, the layers on which blocks are chosen: the caller's, else those `measured` for the model, else the middle
        third. Raises `SamKVError` on a layer the model does not have."""
        layers = self.layers if self.layers is not None else measured or None
        if layers is None:
            return tuple(range(n_layers // 3, max(n_layers // 3 + 1, -(-2 * n_layers // 3))))
        if not layers or not all(-n_layers <= layer < n_layers for layer in layers):
            raise SamKVError(f"layers must name layers of this model: 0 to {n_layers - 1}.")
        return tuple(sorted({layer % n_layers for layer in layers}))

    def _sight(self, n_layers: int, measured: ModelProfile) -> tuple[int, float]:
        """On how many layers recomputed tokens attend to everything, and the share of the rest that they attend to on
        the others: the caller's, else as `measured` for the model, else the defaults."""
        return portion(known(self.wide, measured.wide, WIDE), n_layers), known(self.sees, measured.sees, SEES)

    def _scores(
        self, run: Run, layers: tuple[int, ...], anchors: Sequence[Tensor], budget: int
    ) -> list[ChunkScores]:  # fmt: skip
        """What the first look finds, with a shortlist of `self.candidates` times the `budget`."""
        sizes = self._block, self.initial, self.local
        candidates = min(self.candidates * budget, sum(run.lengths)) if budget else 0  # it may be infinite
        looking = FirstLook(run, layers, anchors, *sizes, int(candidates), self.bias, self.partner, self.frame)
        return looking.scores(self.look)

    def _favoured(self, scores: list[ChunkScores], measured: ModelProfile, all_stays: bool) -> list[ChunkScores]:
        """The scores that decide what is recomputed: by place in a chunk, too, where all is kept for a while."""
        early = known(self.early, measured.early if all_stays else 0.0, EARLY)
        if self.settle == "before" or self.look == "pooled" or not early:
            return scores
        return early_first(scores, self._block, early)

    def _choose(self, scores: Sequence[ChunkScores], anchors: Sequence[Tensor], budget: int) -> Choice:
        if not self.middle:
            budget = sum(int(mask.sum()) for mask in anchors)
        shares = [dynamic_share(chunk) if self.dynamic else 1.0 for chunk in scores]
        return choose(
            scores, anchors, budget, self._block,
            shares=shares, per_chunk=self.per_chunk, fill=self.fill, filtered=self.filtered,
        )  # fmt: skip
