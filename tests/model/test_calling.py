"""A cache is passed to a model under the name that the model has for it."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import DynamicCache

from samkv_rag.model.calling import cache_name, handing
from tests.cases import WIRINGS
from tests.oracles import stock


class Newer:
    def forward(self, ids: Any, cache: Any = None) -> Any: ...


class Older:
    def forward(self, ids: Any, past_key_values: Any = None) -> Any: ...


class HandedOn(Newer):
    def forward(self, *args: Any, **kwargs: Any) -> Any: ...


class Silent:
    def forward(self, ids: Any) -> Any: ...


@pytest.mark.parametrize(
    ("kind", "name"),
    [(Newer, "cache"), (Older, "past_key_values"), (HandedOn, "cache"), (Silent, "past_key_values")],
)
def test_it_is_called_as_the_first_forward_calls_it_that_names_it(kind: type, name: str) -> None:
    assert cache_name(kind()) == name


@pytest.mark.parametrize("wiring", WIRINGS)
@pytest.mark.filterwarnings("error::FutureWarning")
def test_a_model_and_its_decoder_take_it_by_that_name(wiring: str) -> None:
    model = stock(wiring)
    for module in (model, model.get_decoder()):
        cache: Any = DynamicCache()
        module(model.dummy_inputs["input_ids"][:1, :3], **handing(model, cache), use_cache=True)
        assert cache.get_seq_length() == 3
