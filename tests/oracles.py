"""Independent references for the gates: stock models rebuilt from their seed, masks made by hand from positions, and a
cache that returns stored keys and values. Nothing here calls the code that is being tested."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import Cache, DynamicLayer

from samkv_rag.methods import Method, Prepared, Run
from samkv_rag.model.adapter import ModelAdapter
from samkv_rag.model.calling import handing
from samkv_rag.parity import next_logits
from samkv_rag.store import ChunkKVStore, chunk_key
from samkv_rag.types import ChunkKV, PromptPlan, Question, Segment, Selection
from tests.cases import VOCAB, WIRINGS
from tests.models import attentions, build

ROOM = 12
Mix = Callable[[Tensor, Tensor], Tensor]


@cache
def stock(wiring: str, attention: str = "eager") -> Any:
    """The same weights in a model that was never attached; eager unless another implementation is asked for."""
    model = build(WIRINGS[wiring]())
    if attention != "eager" and wiring not in ("gemma2", "gpt-oss"):  # transformers has no sdpa for caps and sinks
        model.set_attn_implementation(attention)
    return model


def random_ids(count: int, seed: int) -> tuple[int, ...]:
    """Token ids that are not special."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randint(5, VOCAB, (count,), generator=generator).tolist())


def stored_plan(
    adapter: ModelAdapter, store: ChunkKVStore, lengths: Sequence[int] = (37, 16, 30, 5), glue: int = 3, seed: int = 0
) -> PromptPlan:
    """A plan with `glue` random tokens before every chunk, the chunks in `store`, and six tokens after them: the
    question is the first four, so that something follows it."""
    segments: list[Segment] = []

    def add(kind: Any, count: int) -> None:
        if count:
            start = segments[-1].stop if segments else 0
            ids = random_ids(count, 1000 * seed + start + 1)
            key = chunk_key(ids, "gates", "gates") if kind == "chunk" else None
            segments.append(Segment(kind, "", ids, start, key))
            if key is not None:
                store.put(key, adapter.ingest([""], [ids])[0])

    for length in lengths:
        add("glue", glue)
        add("chunk", length)
    add("glue", 6)
    last = segments[-1]
    return PromptPlan(tuple(segments), Question("", last.token_ids[:4], last.start))


@dataclass(frozen=True)
class Prompted:
    """A plan, and what methods make of it."""

    plan: PromptPlan
    adapter: ModelAdapter
    store: ChunkKVStore

    def prepare(self, method: Method) -> Prepared:
        return method.prepare(Run(self.plan, self.adapter, self.store, ROOM))

    def logits(self, prepared: Prepared) -> Tensor:
        return next_logits(self.adapter, prepared)

    def tokens(self, method: Method, count: int, **generation: Any) -> list[int]:
        how = {"max_new_tokens": count, "do_sample": False, **generation}
        return self.prepare(method).generate(self.adapter.loop, **how)


@dataclass(frozen=True)
class Kept:
    """The kept tokens of a prompt, listed the naive way: ids, true positions, owner (-1: glue), if computed anew."""

    ids: list[int]
    positions: Tensor
    owner: Tensor
    fresh: Tensor

    @classmethod
    def of(cls, plan: PromptPlan, selection: Selection) -> Kept:
        rows: list[tuple[int, int, int, bool]] = []
        chunk = -1
        for segment in plan.segments:
            chunk += segment.kind == "chunk"
            for inside, token in enumerate(segment.token_ids):
                if segment.kind == "glue":
                    rows.append((token, segment.start + inside, -1, True))
                elif inside in set(selection.kept[chunk].tolist()):
                    again = inside in set(selection.recomputed[chunk].tolist())
                    rows.append((token, segment.start + inside, chunk, again))
        ids, positions, owner, fresh = zip(*rows, strict=True)
        return cls(list(ids), torch.tensor(positions), torch.tensor(owner), torch.tensor(fresh))


def stored_chunk(store: ChunkKVStore, key: str) -> ChunkKV:
    """All that the store has of a chunk."""
    summary = store.summary(key)
    kv = [store.read_blocks(key, stack=index) for index in range(len(summary.stacks))]
    return ChunkKV(summary, kv[0], tuple(kv[1:]))


def unblocked(kv: Tensor) -> tuple[Tensor, Tensor]:
    """The inverse of the storage layout: `(L, B, 2, G, BLOCK, D)` -> keys and values `(L, G, B * BLOCK, D)`."""
    layers, blocks, _, heads, size, dim = kv.shape
    keys, values = kv.permute(2, 0, 3, 1, 4, 5).reshape(2, layers, heads, blocks * size, dim)
    return keys, values


def hand_made_mask(model: Any, visible: Tensor, near: Tensor) -> Any:
    """Additive 4-D masks in the form the model takes: one for all layers, or one per layer type."""

    def additive(mask: Tensor) -> Tensor:
        return torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)[None, None]

    config = model.config.get_text_config()
    if "sliding_attention" in (getattr(config, "layer_types", None) or []):
        return {"full_attention": additive(visible), "sliding_attention": additive(visible & near)}
    return additive(visible & near if getattr(config, "sliding_window", None) else visible)


def _window(model: Any) -> float:
    return getattr(model.config.get_text_config(), "sliding_window", None) or math.inf


@torch.no_grad()
def stock_logits(
    model: Any, ids: Sequence[int], positions: Tensor, past: Cache | None = None, before: Tensor | None = None,
    allowed: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Logits `(Q, vocab)` of a stock model over `ids` at `positions`, after `past` entries at positions `before`.

    `allowed` `(Q, T)` further restricts what they attend to (block-diagonal masks).
    """
    keys = positions if before is None else torch.cat([before, positions])
    visible = keys[None, :] <= positions[:, None]
    visible = visible if allowed is None else visible & allowed
    near = keys[None, :] > positions[:, None] - _window(model)
    out = model(
        torch.tensor([list(ids)]), position_ids=positions[None], use_cache=True,
        **handing(model, DynamicCache() if past is None else past), attention_mask=hand_made_mask(model, visible, near),
    )  # fmt: skip
    return out.logits[0].float()  # type: ignore[no-any-return]


@contextmanager
def hiding(model: Any, first: int, hidden: Tensor) -> Iterator[None]:
    """Layers from `first` on do not attend to what is `hidden` `(T, T)`, whatever the mask of the pass says."""
    bias = torch.zeros(hidden.shape).masked_fill(hidden, torch.finfo(torch.float32).min)[None, None]

    def hide(layer: Any, args: Any, options: dict[str, Any]) -> Any:
        return args, options | {"attention_mask": options["attention_mask"].minimum(bias)}

    hooks = [module.register_forward_pre_hook(hide, with_kwargs=True) for module in attentions(model)[first:]]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def greedy(
    model: Any, ids: Sequence[int], positions: Tensor, past: Cache, count: int, before: Tensor | None = None
) -> list[int]:
    """`count` tokens decoded by hand, every mask made from true positions; `past` holds entries at `before`."""
    token = int(stock_logits(model, ids, positions, past, before)[-1].argmax())
    positions = positions if before is None else torch.cat([before, positions])
    out = [token]
    while len(out) < count:
        following = positions[-1:] + 1
        token = int(stock_logits(model, [token], following, past, before=positions)[-1].argmax())
        positions = torch.cat([positions, following])
        out.append(token)
    return out


@torch.no_grad()
def stock_attention(wiring: str, plan: PromptPlan, kept: Kept, layers: Sequence[int]) -> Tensor:
    """Attention `(N, T, T)` of ONE stock forward over `kept` with stored entries, averaged over heads."""
    model = stock(wiring)
    at = kept.positions
    visible, near = (
        at[None, :] <= at[:, None],
        at[None, :] > at[:, None] - _window(model),
    )
    out = model(
        torch.tensor([kept.ids]), position_ids=at[None], **handing(model, frozen_cache(wiring, plan, kept)),
        attention_mask=hand_made_mask(model, visible, near), output_attentions=True,
    )  # fmt: skip
    return torch.stack([out.attentions[layer][0].double().mean(0) for layer in layers])


def thinned(past: Cache, slots: Tensor) -> Cache:
    """A cache of the entries of `past` at `slots`."""
    layers = []
    for old in past.layers:
        layer = DynamicLayer()
        layer.update(old.keys[:, :, slots], old.values[:, :, slots])
        layers.append(layer)
    return Cache(layers=layers)


class FrozenLayer(DynamicLayer):
    """A layer whose first update keeps `stored` (keys, values) where `frozen`; elsewhere `mix` joins new and stored."""

    def __init__(self, keys: Tensor, values: Tensor, frozen: Tensor, mixed: Tensor, mix: Mix | None) -> None:
        super().__init__()
        self.stored, self.frozen, self.mixed, self.mix = (keys, values), frozen, mixed, mix

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if self.get_seq_length() == 0:
            key_states, value_states = (
                self._joined(new, old) for new, old in zip((key_states, value_states), self.stored, strict=True)
            )
        return super().update(key_states, value_states, *args, **kwargs)  # type: ignore[no-any-return]

    def _joined(self, new: Tensor, old: Tensor) -> Tensor:
        if self.mix is not None:
            new = torch.where(self.mixed[:, None], self.mix(new, old), new)
        return torch.where(self.frozen[:, None], old, new)


def frozen_cache(
    wiring: str, plan: PromptPlan, kept: Kept, rows: Sequence[Tensor] | None = None, mix: Mix | None = None
) -> Cache:
    """A cache for one forward over all kept tokens: what is not fresh keeps its stored entry.

    `rows[layer]` (bool over kept chunk tokens in prompt order) says what that layer stores, as in layer alignment.
    """
    stored = stored_entries(wiring, plan)
    layers = []
    for index, (keys, values) in enumerate(stored):
        frozen = ~kept.fresh
        if rows is not None:
            frozen = frozen.clone()
            frozen[kept.owner >= 0] |= ~rows[index]
        here = kept.positions
        layers.append(FrozenLayer(keys[:, :, here], values[:, :, here], frozen, kept.owner >= 0, mix))
    return Cache(layers=layers)


@cache
def stored_entries(wiring: str, plan: PromptPlan) -> list[tuple[Tensor, Tensor]]:
    """Per layer, keys and values `(1, G, prompt, D)`: each chunk prefilled alone at its place by a stock model (the
    same as turning its keys), zeros for glue. Longrope keys are turned by hand: frequencies depend on length."""
    model = stock(wiring)
    out: list[tuple[Tensor, Tensor]] = []
    for chunk in plan.chunks:
        cache: Any = DynamicCache()
        own = torch.arange(len(chunk.token_ids))
        by_hand = "longrope" in wiring
        stock_logits(model, chunk.token_ids, own if by_hand else own + chunk.start, cache)
        for index, layer in enumerate(cache.layers):
            if index == len(out):
                both = (layer.keys, layer.values)
                out.append(tuple(torch.zeros(1, x.shape[1], plan.n_tokens, x.shape[3]) for x in both))  # type: ignore[arg-type]
            keys = layer.keys
            if by_hand:
                keys = _longrope_turned(model.config, keys, own, chunk.start, plan.n_tokens)
            out[index][0][:, :, chunk.start : chunk.stop] = keys
            out[index][1][:, :, chunk.start : chunk.stop] = layer.values
    return out


def _longrope_turned(config: Any, keys: Tensor, own: Tensor, start: int, prompt: int) -> Tensor:
    """Keys at positions `own` of a chunk alone, turned to `own + start` of a prompt; both regimes, half layout."""
    rope = config.rope_parameters
    half = keys.shape[-1] // 2
    plain = 10000.0 ** (-torch.arange(half) / half)

    def angles(positions: Tensor, length: int) -> Tensor:
        long = length > rope["original_max_position_embeddings"]
        factors = torch.tensor(rope["long_factor" if long else "short_factor"])
        return positions[:, None] * plain / factors

    turn = angles(own + start, prompt) - angles(own, len(own))
    left, right = keys[..., :half], keys[..., half:]
    return torch.cat([left * turn.cos() - right * turn.sin(), right * turn.cos() + left * turn.sin()], -1)
