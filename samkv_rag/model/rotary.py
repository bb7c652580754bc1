"""How a model turns keys and queries with position, learned from the model itself.

The cached key of a RoPE layer is `s R(p) k`: rotation by position p, times `attention_scaling` s. We store the
position-free k and turn it once, at query time. Layout (half or interleaved), partial rotary and frequency scaling
are the model's own functions; which layers turn at all is found by two one-token forwards (`probe`).
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from samkv_kernels.rope_gather import Angles
from samkv_kernels.sending import few, sent
from samkv_rag.errors import UnsupportedModel
from samkv_rag.model.alone import alone, rope_types, rotary_of
from samkv_rag.model.cache import GrowingCache
from samkv_rag.model.calling import handing
from samkv_rag.model.latent import can_be_joined, joined
from samkv_rag.model.latest import remember
from samkv_rag.model.rotation import Turn, rotation_of, turns_neighbours
from samkv_rag.model.rounding import alike

PROBE_POSITION = 17
PROBE_TOKENS = (5, 11, 17)
"""Tokens of any vocabulary, tried one after another: rounding may route one to other experts at another position."""
_ROUND, _MOST = 1024, 2
"""Angles are kept for this many positions, or a multiple, and for this many runs of layers that turn differently."""


@dataclass(frozen=True, slots=True)
class _Group:
    """The angles of layers that share them: fp32 cos and sin `(1, T, width)`, and the attention scaling."""

    cos: Tensor
    sin: Tensor
    scale: float


@dataclass(frozen=True, slots=True)
class RotaryTable:
    """Angles of one list of positions for all layers; made by `Rotary.table`. `which` has each layer's group, or -1."""

    groups: tuple[_Group, ...]
    which: tuple[int, ...]
    turn: Turn
    interleaved: bool
    positions: Tensor

    def at(self, rows: Tensor) -> RotaryTable:
        """The angles of some rows of this table; unlike those of a new call they keep the frequencies of this one."""
        groups = tuple(replace(g, cos=g.cos[:, rows], sin=g.sin[:, rows]) for g in self.groups)
        return replace(self, groups=groups, positions=self.positions[rows])

    def width(self, layer: int) -> int:
        """How many dimensions of a head turn; for a layer that does not turn, as many as in others."""
        return self.groups[max(self.which[layer], 0)].cos.shape[-1] if self.groups else 0

    def angles(self, layers: Sequence[int]) -> Angles:
        """How `rotate` turns `layers`, all of one stack, in the form `rope_gather` takes: cos and sin include the
        scales."""
        which = [self.which[layer] for layer in layers]
        used = sorted({*which} - {-1})
        if not used:
            nothing = torch.empty(1, len(self.positions), 0, device=self.positions.device)
            return Angles(nothing, nothing)
        pairs = [self._pairs(self.groups[group]) for group in used]
        cos, sin = (torch.cat(parts) for parts in zip(*pairs, strict=True))
        if {*which} == {*used[:1]}:
            return Angles(cos, sin, None, self.interleaved)
        table = torch.tensor([used.index(group) if group >= 0 else -1 for group in which], dtype=torch.int32)
        return Angles(cos, sin, sent(table, cos.device), self.interleaved)

    def _pairs(self, group: _Group) -> tuple[Tensor, Tensor]:
        """cos and sin `(1, T, W / 2)`, once per pair: the vectors (1, 0), turned."""
        width = group.cos.shape[-1]
        first = slice(0, width, 2) if self.interleaved else slice(0, width // 2)
        second = slice(1, width, 2) if self.interleaved else slice(width // 2, width)
        ones = torch.zeros_like(group.cos)[:, None]
        ones[..., first] = group.scale
        turned = self.turn(ones, group.cos, group.sin)[:, 0]
        return turned[..., first], turned[..., second]

    def rotate(self, x: Tensor, layers: Sequence[int] | None = None) -> Tensor:
        """`x` `(L, N, T, D)` position-free -> the same shape in fp32, turned to the table's positions.

        `layers` are the numbers in the model of those in `x`, by default the first ones.
        """
        return self._turn(x, layers, inverse=False)

    def unrotate(self, x: Tensor, layers: Sequence[int] | None = None) -> Tensor:
        """The inverse of `rotate`."""
        return self._turn(x, layers, inverse=True)

    def _turn(self, x: Tensor, layers: Sequence[int] | None, inverse: bool) -> Tensor:
        which = [self.which[layer] for layer in (range(len(x)) if layers is None else layers)]
        out, kinds = x.float(), {*which}
        if len(kinds) == 1 and -1 not in kinds:
            return self._turn_group(out, self.groups[which[0]], inverse)
        out = x.clone() if out is x else out
        for kind in kinds - {-1}:
            rows = few(torch.tensor([row for row, own in enumerate(which) if own == kind]), x.device)
            out[rows] = self._turn_group(out[rows], self.groups[kind], inverse)
        return out

    def _turn_group(self, x: Tensor, group: _Group, inverse: bool) -> Tensor:
        width = group.cos.shape[-1]
        part = x[..., :width]
        turned = self.turn(part, group.cos, -group.sin if inverse else group.sin)
        turned = turned / group.scale if inverse else turned * group.scale
        return turned if width == x.shape[-1] else torch.cat([turned, x[..., width:]], -1)


class Rotary:
    """The rotary embedding of one model, which of its layers use it (`kinds`: "rope" or "fixed"), and whether the model
    caches latents (`latent`), joined then with what turns (see `samkv_rag.model.latent`). `alone`: to be held while the
    model runs."""

    def __init__(self, model: Any) -> None:
        decoder = model.get_decoder()
        self._module = rotary_of(model)
        if self._module is None:
            raise UnsupportedModel(
                f"{type(model).__name__} has no rotary embedding; only models with rotary positions can be served. "
                "Use another model, or transformers' own generate()."
            )
        self._types: list[str] | None = None
        if isinstance(getattr(self._module, "rope_type", None), dict):
            self._types = list(decoder.config.layer_types)
        self.rope_types = rope_types(self._module)
        self.alone = alone(self._module)
        self._longest: int | None = decoder.config.max_position_embeddings if self.looks_at_length else None
        self._kept = OrderedDict[Hashable, Angles]()
        self._function, self._half_tables = rotation_of(decoder)
        self._interleaved = False  # which the probe does not need to know
        self.kinds = self._probe(model)
        self._interleaved = turns_neighbours(self._function, type(model).__name__)
        self.table(torch.zeros(1, dtype=torch.long, device=model.get_input_embeddings().weight.device))  # of all layers

    def share(self, sources: Sequence[int]) -> None:
        """Have layers without keys of their own turn like those whose keys they attend to: `sources`, for every layer
        of the model."""
        self.kinds = tuple(self.kinds[source] for source in sources)

    @property
    def depends_on_length(self) -> bool:
        """True when the frequencies depend on the longest position of a call (longrope)."""
        return "longrope" in self.rope_types

    @property
    def looks_at_length(self) -> bool:
        """True when every pass looks whether it goes beyond the model's positions and the frequencies have to change
        (dynamic). No prompt of ours does; on a GPU the host waits for that."""
        return "dynamic" in self.rope_types

    def table(self, positions: Tensor) -> RotaryTable:
        """The angles of `positions` `(T,)`, computed in ONE call: longrope picks frequencies by the longest."""
        with self.alone:
            return self._table(positions, self.kinds)

    def turning(self, positions: Tensor, here: Tensor) -> Callable[[Sequence[int]], Angles]:
        """How layers, all of one stack, turn at sorted `positions` `(T,)` on the host, which are `here` on the model's
        device. Angles of a whole prompt, from 0 on, are kept for the next one if they are the same for any length."""
        whole = len(positions) > 0 and int(positions[-1]) == len(positions) - 1
        return partial(self._whole, here) if whole and not self.depends_on_length else self.table(here).angles

    def _whole(self, positions: Tensor, layers: Sequence[int]) -> Angles:
        count, kinds = len(positions), [(self.kinds[layer], self._type_of(layer)) for layer in layers]
        alike = tuple(kinds) if len({*kinds}) > 1 else kinds[0]  # layers of one kind share their angles
        kept = self._kept.get(alike)
        if kept is None or kept.cos.shape[1] < count or kept.cos.device != positions.device:
            longer = min(-(-count // _ROUND) * _ROUND, self._longest or sys.maxsize)
            kept = self.table(torch.arange(longer, device=positions.device)).angles(layers)
        remember(self._kept, alike, kept, _MOST)
        return kept.slots(0, count)

    def _table(self, positions: Tensor, kinds: tuple[str, ...]) -> RotaryTable:
        turning = [layer for layer, kind in enumerate(kinds) if kind == "rope"]
        types = {self._type_of(layer) for layer in turning}
        groups, which = list[_Group](), [-1] * len(kinds)
        for layer_type in sorted(types, key=str):
            layers = [layer for layer in turning if self._type_of(layer) == layer_type]
            for layer in layers:
                which[layer] = len(groups)
            groups.append(_Group(*self._angles(positions, layer_type)))
        return RotaryTable(tuple(groups), tuple(which), self._function, self._interleaved, positions)

    def _type_of(self, layer: int) -> str | None:
        return self._types[layer] if self._types else None

    def _angles(self, positions: Tensor, layer_type: str | None) -> tuple[Tensor, Tensor, float]:
        """cos and sin `(1, T, width)` with the attention scaling taken out, and that scaling."""
        like = torch.empty(0, dtype=torch.float32, device=positions.device)
        if layer_type is None:
            found = self._module(like, positions[None])
            scale = float(getattr(self._module, "attention_scaling", 1.0))
        else:
            found = self._module(like, positions[None], layer_type)
            scale = float(getattr(self._module, f"{layer_type}_attention_scaling", 1.0))
        cos, sin = (found.real, found.imag) if isinstance(found, Tensor) else found
        if self._half_tables:
            cos, sin = torch.cat([cos, cos], -1), torch.cat([sin, sin], -1)
        return cos / scale, sin / scale, scale

    def _probe(self, model: Any) -> tuple[str, ...]:
        """The kinds of all layers, as the first token tells that fits."""
        for token in PROBE_TOKENS[:-1]:
            with suppress(UnsupportedModel):
                return self._probed(model, token)
        return self._probed(model, PROBE_TOKENS[-1])

    @torch.no_grad()
    def _probed(self, model: Any, token: int) -> tuple[str, ...]:
        """One token attends to itself alone, so its key at position p must be R(p) times its key at 0, but for
        rounding: with a sink even one token gets a weight, from a product that rotation does not change."""
        at_zero, at_p = (_entries_of_one_token(model, token, position) for position in (0, PROBE_POSITION))
        self.latent = bool(at_zero) and all(map(_are_latents, at_zero, at_p))
        if self.latent:
            at_zero, at_p = ([joined(*own) for own in entries] for entries in (at_zero, at_p))
        kinds = []
        for layer, ((k0, v0), (kp, vp)) in enumerate(zip(at_zero, at_p, strict=True)):
            if k0.shape != v0.shape or not alike(v0, vp):
                raise _refusal(model, layer, "its cache does not hold plain keys and values")
            if alike(k0, kp):
                kinds.append("fixed")
            elif self._turns_to(k0, kp, layer, len(at_zero)):
                kinds.append("rope")
            else:
                raise _refusal(model, layer, "its keys turn with position in a way we do not know")
        return tuple(kinds)

    def _turns_to(self, k0: Tensor, kp: Tensor, layer: int, n_layers: int) -> bool:
        kinds = tuple("rope" if other == layer else "fixed" for other in range(n_layers))
        zero, p = (torch.tensor([position], device=k0.device) for position in (0, PROBE_POSITION))
        try:
            free = self._table(zero, kinds).unrotate(k0, [layer])
            turned = self._table(p, kinds).rotate(free, [layer])[0]
        except (RuntimeError, IndexError, ValueError):
            return False
        return alike(turned, kp[0])


def _are_latents(at_zero: tuple[Tensor, Tensor], at_p: tuple[Tensor, Tensor]) -> bool:
    """Whether of a layer's entries at two positions the second part turns, not the first, as where latents are
    cached."""
    (k0, v0), (kp, vp) = at_zero, at_p
    return can_be_joined(k0, v0) and alike(k0, kp) and not alike(v0, vp)


def _entries_of_one_token(model: Any, token: int, position: int) -> list[tuple[Tensor, Tensor]]:
    device = model.get_input_embeddings().weight.device
    cache: Any = GrowingCache()
    tokens = torch.tensor([[token]], device=device)
    positions = torch.tensor([[position]], device=device)
    model.get_decoder()(tokens, **handing(model, cache), position_ids=positions, use_cache=True)
    return [(layer.keys, layer.values) for layer in cache.layers]


def _refusal(model: Any, layer: int, reason: str) -> UnsupportedModel:
    return UnsupportedModel(
        f"{type(model).__name__} cannot be served exactly: at layer {layer} {reason}. "
        "Models with other caches or position schemes need method-specific support; "
        "use a model with plain rotary attention (Llama, Mistral, Qwen, Gemma, Phi-3, GLM-4, ...)."
    )
