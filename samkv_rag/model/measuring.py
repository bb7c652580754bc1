"""What a few tokens tell of a model that is attached: the sizes of its caches, and what its layers make of latents."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from samkv_kernels.softmax import Softmax
from samkv_rag.model import supported
from samkv_rag.model.absorbed import Latents
from samkv_rag.model.attention import AttentionPlan
from samkv_rag.model.cache import Entries, GrowingCache
from samkv_rag.model.observers import Observation, Observer
from samkv_rag.model.quantised import is_quantised
from samkv_rag.model.shape import KVShape

if TYPE_CHECKING:
    from samkv_rag.model.adapter import ModelAdapter


class Measuring(AttentionPlan):
    """A plan that records with which keys and values each layer attends, call by call (`given`)."""

    def __init__(self, positions: Tensor, observer: Observer) -> None:
        super().__init__(positions, observer=observer)
        self.given: defaultdict[int, list[Entries]] = defaultdict(list)

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, softmax: Softmax, window: int | None
    ) -> Tensor:
        """One layer of this pass; see `Plan`."""
        self.given[layer].append((key, value))
        return super().attend(layer, query, key, value, softmax, window)


@torch.inference_mode()
def measured(adapter: ModelAdapter) -> tuple[KVShape, Latents | None]:
    """Run a few tokens, read the shapes off the cache, and check that every layer calls our attention; with them, what
    layers make of latents, if the model caches such."""
    cache: Any = GrowingCache()
    met: dict[int, Observation] = {}
    positions = torch.arange(len(supported.PROBE), device=adapter.device)
    plan = Measuring(positions, lambda seen: met.update({seen.layer: seen}))
    adapter.forward(supported.PROBE, positions, cache, plan)
    supported.refuse_an_untold_window(adapter.model, plan.windows)
    table, rotary = adapter.table(positions), adapter.rotary
    held = [(layer.keys, layer.values) for layer in cache.layers]
    supported.refuse_changed_entries(adapter.model, plan.given, held, rotary.latent)
    keys = [own for own, _ in held]
    sources = [
        *range(len(keys)),
        *(supported.source_of(adapter.model, met, keys, i) for i in range(len(keys), len(met))),
    ]
    rotary.share(sources)
    attended = [sum(each.shape[3] for each in plan.given[i][0]) for i in range(len(keys))]
    sizes = [
        (met[i].query.shape[1], own.shape[1], own.shape[3], attended[i], table.width(i)) for i, own in enumerate(keys)
    ]
    shape, rough = KVShape.of(sizes, sources, keys[0].element_size()), is_quantised(adapter.model)
    return shape, Latents(adapter.decoder, table.width(0), held, plan.given, rough) if rotary.latent else None
