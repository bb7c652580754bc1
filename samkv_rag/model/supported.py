"""Which models can be served exactly, as far as their configuration tells; running them tells the rest (`parity`)."""

from __future__ import annotations

from typing import Any

from samkv_rag.errors import UnsupportedModel
from samkv_rag.model.quantised import refuse_rows_that_mix


def refuse_what_is_not_exact(model: Any) -> None:
    """Raises `UnsupportedModel`, with what to do instead."""
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
    if not getattr(model, "_supports_attention_backend", False):
        raise UnsupportedModel(
            f"{name} does not hand positions to its attention function (_supports_attention_backend is off), so gaps "
            "between kept tokens would be read wrongly. Use a model that supports attention backends."
        )
    refuse_rows_that_mix(model)
