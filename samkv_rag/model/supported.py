"""Which models can be served exactly, as far as their configuration and a few tokens tell; the gate (`parity`) tells
the rest."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import torch
from torch import Tensor

from samkv_kernels.backend import Backend, BackendError, choose
from samkv_rag.errors import SamKVError, UnsupportedModel
from samkv_rag.model.alone import alone, rotary_of
from samkv_rag.model.attached import attention_of
from samkv_rag.model.cache import Entries
from samkv_rag.model.memory import is_out_of_memory
from samkv_rag.model.observers import Observation
from samkv_rag.model.quantised import is_quantised, refuse_rows_that_mix
from samkv_rag.model.rounding import apart

PROBE = tuple(range(5, 29))
"""Tokens of any vocabulary, fewer than a sliding window has."""
STATES = ("linear_attention", "conv")
"""Layer types of hybrid models that carry a state."""
FAR = {torch.float32: 1e-2}
FAR_OF_FEW_BITS = 0.25
"""RMS difference, relative to the RMS, of logits that rounding does not explain: in bfloat16 two ways to compute the
same thing are 5 % apart at 32 layers (random weights), and 2 % where inputs are rounded to 8 bits. A different kind of
attention is off by half and more."""


def refuse_what_is_not_exact(model: Any) -> None:
    """Raise `UnsupportedModel`, with what to do instead."""
    name = type(model).__name__
    config = model.config
    if getattr(config, "is_encoder_decoder", False):
        raise UnsupportedModel(f"{name} is an encoder-decoder; samkv-rag serves decoder-only models.")
    if hasattr(model, "peft_config") or getattr(model, "_hf_peft_config_loaded", False):
        raise UnsupportedModel(
            f"{name} carries an adapter whose weights the cache key would not cover; call merge_and_unload() and "
            "save the merged model, then pass that."
        )
    devices = {str(device) for device in (getattr(model, "hf_device_map", None) or {}).values()}
    if len(devices) > 1:
        raise UnsupportedModel(
            f"{name} is spread over {len(devices)} devices; pass device_map='cuda:0' or another single device."
        )
    if any(weight.is_meta for weight in model.parameters()):
        raise UnsupportedModel(
            f"{name} has weights that are not in memory (offloaded, or never loaded); load all of it onto one device."
        )
    refuse_states(model)
    if not getattr(model, "_supports_attention_backend", False):
        raise UnsupportedModel(
            f"{name} does not hand positions to its attention function (_supports_attention_backend is off), so gaps "
            "between kept tokens would be read wrongly. Use a model that supports attention backends."
        )
    refuse_rows_that_mix(model)


def refuse_states(model: Any) -> None:
    """Raise `UnsupportedModel` for a model some of whose layers remember the text as a whole, not token by token."""
    types = getattr(model.config.get_text_config(), "layer_types", None) or ()
    states = [kind for kind in dict.fromkeys(types) if kind in STATES]
    if states or getattr(model, "_is_stateful", False):
        kinds = f" ({', '.join(states)})" if states else ""
        raise UnsupportedModel(
            f"{type(model).__name__} has layers{kinds} that carry a state through the text instead of attending to its "
            "tokens: what a chunk leaves in it cannot be cached apart from what came before. Use a model all of whose "
            "layers attend (Llama, Mistral, Qwen3, Gemma, Phi-3, GLM-4, ...)."
        )


@contextmanager
def attaching(model: Any) -> Iterator[None]:
    """Put the model into evaluation mode. Turn what goes wrong within into a refusal, and restore the model's mode and
    attention: sinks, for one, need it."""
    before, modes = attention_of(model.config), [(module, module.training) for module in model.modules()]
    try:
        with alone(rotary_of(model)):
            model.eval()
            yield
    except Exception as error:
        for module, training in modes:
            module.training = training
        # In every release this reaches parts of parts, unlike set_attn_implementation.
        model.config._attn_implementation = before
        if isinstance(error, UnsupportedModel) or is_out_of_memory(error):
            raise
        raise UnsupportedModel(
            f"{type(model).__name__} cannot be run on a cache of ours ({error}); use a model with plain rotary "
            "attention (Llama, Mistral, Qwen, Gemma, Phi-3, GLM-4, ...)."
        ) from error


@torch.inference_mode()
def logits_by_itself(model: Any) -> Tensor:
    """Next-token logits `(Q, vocab)`, fp32, after each token of `PROBE`, by whatever attention the model has."""
    tokens = torch.tensor([PROBE], device=model.get_input_embeddings().weight.device)
    try:
        return model(tokens, use_cache=False, logits_to_keep=len(PROBE)).logits[0].float()  # type: ignore[no-any-return]
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise UnsupportedModel(
            f"{type(model).__name__} does not run by itself ({type(error).__name__}: {error}). It must be loaded "
            "whole, in one floating type, and return its logits by name (return_dict)."
        ) from error


def refuse_other_attention(model: Any, own: Tensor, ours: Tensor) -> None:
    """Raise `UnsupportedModel` when the model's `own` logits differ from those with our attention: it then depends on
    more than scores, caps, windows and sinks."""
    off = apart(ours, own)
    if not (off <= FAR.get(model.dtype, FAR_OF_FEW_BITS) or (off <= FAR_OF_FEW_BITS and is_quantised(model))):
        raise UnsupportedModel(
            f"{type(model).__name__} attends in a way of its own: with ours its logits are off by {off:.0%}. Use a "
            "model with plain rotary attention (Llama, Mistral, Qwen, Gemma, Phi-3, GLM-4, ...)."
        )


def source_of(model: Any, met: Mapping[int, Observation], caches: Sequence[Tensor], layer: int) -> int:
    """The layer whose keys, of those in `caches`, a layer without keys of its own attended to. Raises
    `UnsupportedModel` when there is none."""
    for source, keys in enumerate(caches):
        same = layer in met and met[layer].key.data_ptr() == keys.data_ptr()
        if same and met[layer].query.shape == met[source].query.shape:
            return source
    raise UnsupportedModel(
        f"{type(model).__name__} cannot be served exactly: layer {layer} has no cache, and attends to keys that are in "
        "none. Use a model whose layers have caches of their own, or share others' as they are."
    )


def refuse_changed_entries(
    model: Any, given: Mapping[int, Sequence[Entries]], caches: Sequence[Entries], latent: bool
) -> None:  # fmt: skip
    """Raise `UnsupportedModel` when a layer does not attend once to the very keys and values that its cache holds:
    decoding steps of several answers, and packed tokens, take them from there. A layer that holds latents attends to
    what it makes of them."""
    for layer, held in enumerate(caches):
        calls = given.get(layer, [])
        if len(calls) != 1 or not (latent or all(map(_same, calls[0], held))):
            raise UnsupportedModel(
                f"{type(model).__name__} cannot be served exactly: layer {layer} does not attend, once, to the very "
                "keys and values that its cache holds. Use a model with plain rotary attention (Llama, Mistral, Qwen, "
                "Gemma, Phi-3, GLM-4, ...)."
            )


def _same(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one, other)


def refuse_summaries(model: Any) -> NoReturn:
    """Raise the `UnsupportedModel` of methods that look at summaries of a cache that holds latents."""
    raise UnsupportedModel(
        f"{type(model).__name__} caches latents, which queries cannot be compared with: summaries of them tell "
        'nothing. Use SamKV() with look="keys", its default, or another method.'
    )


def refuse_an_untold_window(model: Any, told: Collection[int | None]) -> None:
    """Raise `UnsupportedModel` when the config has a sliding window that can matter, and the attention of no layer is
    given one: the model then hides what is far by its masks, which we do not use."""
    config = model.config.get_text_config()
    window, types = getattr(config, "sliding_window", None), getattr(config, "layer_types", None)
    if not getattr(config, "use_sliding_window", True) or (types and not any("sliding" in kind for kind in types)):
        return
    longest = getattr(config, "max_position_embeddings", None)
    if isinstance(window, int) and (longest is None or window < longest) and set(told) == {None}:
        raise UnsupportedModel(
            f"{type(model).__name__} has a sliding window of {window} tokens that its attention is not told of. Load "
            "it with sliding_window=None in its config, if prompts may see everything, or use another model."
        )


def backend_for(device: torch.device, wanted: str | None) -> Backend:
    """The kernels that run on the device. Raises `SamKVError` when the `wanted` ones do not."""
    try:
        return choose(device, wanted)
    except BackendError as error:
        raise SamKVError(str(error)) from error
