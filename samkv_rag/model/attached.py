"""The state in which a model was attached: caches, and all that was found out about the model, hold for it alone."""

from __future__ import annotations

from typing import Any

from torch.nn import Parameter

from samkv_rag.errors import SamKVError


class Attached:
    """A model as it is now: its weights, its attention, and that nothing in it is random."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._modules = [module._modules for module in model.modules() if module._modules]
        self._weights_of = [module._parameters for module in model.modules() if module._parameters]
        self._weights, self._attention = self._weights_now(), attention_of(model.config)

    def refuse_changes(self) -> None:
        """Raise `SamKVError` when the model would no longer compute what it did: what it computes now must not be
        stored beside, or put together with, what it computed then."""
        name = type(self._model).__name__
        if self._weights_now() != self._weights:
            raise SamKVError(
                f"The weights of this {name} have changed since its engine was made (trained, moved, converted, or "
                "given an adapter): caches made before do not fit them. Make a new engine."
            )
        if self._model.training:
            raise SamKVError(
                f"This {name} is in training mode, in which it may drop out some of what it computes: call .eval() on "
                "it before you use its engine."
            )
        if attention_of(self._model.config) != self._attention:
            raise SamKVError(
                f"The attention of this {name} has been changed since its engine was made, so that it cannot use "
                "caches of chunks. Make a new engine, or call set_attn_implementation('samkv') on it."
            )

    def _weights_now(self) -> tuple[list[int], list[tuple[int, ...]]]:
        """What tells whether modules or weights were replaced, or weights written to, without reading them."""
        modules = [id(part) for parts in self._modules for part in parts.values()]
        return modules, [_mark(weight) for own in self._weights_of for weight in own.values() if weight is not None]


def attention_of(config: Any) -> dict[str, Any]:
    """The attention of a model and of its parts, as a config takes them."""
    parts = {name: part for name in config.sub_configs if (part := getattr(config, name, None)) is not None}
    return {"": config._attn_implementation, **{name: attention_of(part) for name, part in parts.items()}}


def _mark(weight: Parameter) -> tuple[int, ...]:
    """One that changes when a weight is replaced, written to, moved or converted."""
    written = 0 if weight.is_inference() else weight._version
    try:
        return id(weight), written, weight.data_ptr()
    except RuntimeError:  # quantised ones have no memory of their own
        return id(weight), written
