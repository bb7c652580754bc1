"""The state in which a model was attached: caches, and all that was found out about the model, hold for it alone."""

from __future__ import annotations

import weakref
from typing import Any

from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import Module, Parameter

from samkv_rag.errors import SamKVError


class Attached:
    """A model as it is now: its modules and weights, its attention, and that nothing in it is random.

    Weights are not read: they count as changed when they are replaced or written to. What is written past torch
    (`weight.data.mul_`, NumPy) cannot be seen, and buffers and hooks are not looked at.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._modules: list[Module] = list(model.modules())  # held, so that no other one gets the place of one
        self._parts, self._attention = self._parts_now(), attention_of(model.config)
        self._weights = {(module, name): _Weight(weight) for module, name, weight in self._weights_now()}

    def refuse_changes(self) -> None:
        """Raise `SamKVError` when the model would no longer compute what it did: what it computes now must not be
        stored beside, or put together with, what it computed then."""
        name = type(self._model).__name__
        if self._are_others():
            raise SamKVError(
                f"The weights of this {name} have changed since its engine was made (trained, moved, converted, or "
                "given an adapter): caches made before do not fit them. Make a new engine."
            )
        if any(module.training for module in self._modules):
            raise SamKVError(
                f"This {name} is in training mode, in which it may drop out some of what it computes: call .eval() on "
                "it before you use its engine."
            )
        if attention_of(self._model.config) != self._attention:
            raise SamKVError(
                f"The attention of this {name} has been changed since its engine was made, so that it cannot use "
                "caches of chunks. Make a new engine, or call set_attn_implementation('samkv') on it."
            )

    def _are_others(self) -> bool:
        """Whether a module or a weight is another one, or has been written to."""
        if self._parts_now() != self._parts:
            return True
        now = self._weights_now()
        return len(now) != len(self._weights) or not all(
            (known := self._weights.get((module, name))) is not None and known.is_still(weight)
            for module, name, weight in now
        )

    def _parts_now(self) -> list[tuple[Module | None, ...]]:
        return [tuple(module._modules.values()) for module in self._modules if module._modules]

    def _weights_now(self) -> list[tuple[Module, str, Parameter]]:
        return [
            (module, name, weight)
            for module in self._modules
            for name, weight in module._parameters.items()
            if weight is not None
        ]


class _Weight:
    """One weight, as it was; it is not kept alive."""

    __slots__ = ("_storage", "_version", "_weight")

    def __init__(self, weight: Parameter) -> None:
        self._weight, self._version = weakref.ref(weight), _version(weight)
        self._storage = StorageWeakRef(weight.untyped_storage()) if _is_plain(weight) else None

    def is_still(self, weight: Parameter) -> bool:
        """Whether this is the same weight, with the same numbers in the same memory."""
        if self._weight() is not weight or _version(weight) != self._version:
            return False
        return self._storage is None or weight.untyped_storage()._cdata == self._storage.cdata


def attention_of(config: Any) -> dict[str, Any]:
    """The attention of a model and of its parts, as a config takes them."""
    parts = {name: part for name in config.sub_configs if (part := getattr(config, name, None)) is not None}
    return {"": config._attn_implementation, **{name: attention_of(part) for name, part in parts.items()}}


def _version(weight: Parameter) -> int:
    """How often torch has written to a weight."""
    return 0 if weight.is_inference() else weight._version


def _is_plain(weight: Parameter) -> bool:
    """Whether its memory stays where it is: quantised weights are packed anew when they are saved, or have none."""
    return type(weight) is Parameter
