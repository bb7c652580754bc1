"""What has been measured of a model (`samkv-rag profile`), and the defaults where nothing has been."""

from __future__ import annotations

from samkv_rag.methods.run import Run
from samkv_rag.model.adapter import ModelAdapter
from samkv_rag.store.profiles import ModelProfile

WIDE, SEES, EARLY, VICINITY, ANSWER_WEIGHT = 0.25, 0.3, 0.5, 0.0, 2.0
"""For a model on which they were not measured: the share of layers on which recomputed tokens attend to everything, the
share of the rest that they attend to on the others, how much sooner tokens early in a chunk are recomputed (where
everything is kept for a while; where the rest is dropped at once this costs: docs/fidelity.md), how much a token's
vicinity counts, and how often the attention of the token that produces the answer's first (more hurts the bundled
reader on lists)."""


UNMEASURED = ModelProfile(())
"""The profile of a model on which nothing has been measured."""


def noted(adapter: ModelAdapter) -> ModelProfile:
    """The profile in a model's config: selection layers, which were measured with every token's attention counted
    alike, wherever in a chunk it went; nothing where none were measured."""
    layers = adapter.selection_layers
    return ModelProfile(layers, answer_weight=1.0, early=0.0) if layers else UNMEASURED


def profile_of(run: Run) -> tuple[ModelProfile, tuple[str, ...]]:
    """The store's profile of the model, else what its config notes. With a remark when a profile is damaged and was
    ignored."""
    try:
        profile = run.store.profiles.get(run.model_fingerprint) if run.model_fingerprint else None
    except ValueError as error:
        return noted(run.adapter), (f"{error} and was not used: run samkv-rag profile again",)
    return profile or noted(run.adapter), ()
