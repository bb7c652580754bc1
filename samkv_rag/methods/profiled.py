"""What is known of a model by measuring it (`samkv-rag profile`), and what goes where nobody has."""

from __future__ import annotations

from samkv_rag.methods.run import Run
from samkv_rag.model.adapter import ModelAdapter
from samkv_rag.store.profiles import ModelProfile

WIDE, SEES, EARLY, VICINITY, ANSWER_WEIGHT = 0.25, 0.3, 0.5, 0.0, 2.0
"""Of a model of which nobody has measured it: the share of layers on which what is recomputed sees all, the share of
the rest that it sees on the others, how much sooner what stands early in a chunk is recomputed (where all stays for a
while; where the rest is dropped at once it costs: docs/fidelity.md), how much the place that a token stands in counts,
and how many times what is looked at by what says the answer (more costs the bundled reader lists)."""


UNMEASURED = ModelProfile(())
"""What is known of a model that nobody has measured."""


def noted(adapter: ModelAdapter) -> ModelProfile:
    """What a model's config notes of it: selection layers, which were measured while every token's look counted alike,
    wherever what it looked at stands; nothing where nobody has measured."""
    layers = adapter.selection_layers
    return ModelProfile(layers, answer_weight=1.0, early=0.0) if layers else UNMEASURED


def profile_of(run: Run) -> tuple[ModelProfile, tuple[str, ...]]:
    """The store's profile of the model, else what its config notes. With a remark when a profile is damaged and was
    passed over."""
    try:
        profile = run.store.profiles.get(run.model_fingerprint) if run.model_fingerprint else None
    except ValueError as error:
        return noted(run.adapter), (f"{error} and was not used: run samkv-rag profile again",)
    return profile or noted(run.adapter), ()
