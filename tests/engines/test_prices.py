"""List prices: of known models only, dated, reported, and overridden by the config."""

from __future__ import annotations

import re

import pytest

from curate.engines.openai import OpenAIArgs, Prices, prices
from curate.engines.prices import PRICES, price_of

OPENAI = "https://api.openai.com/v1"


def test_every_price_is_dated_and_positive() -> None:
    for models in PRICES.values():
        for price in models.values():
            assert re.fullmatch(r"20\d\d-(0[1-9]|1[0-2])", price.date)
            assert 0 < price.prompt <= price.completion
            assert 0 < price.batch <= 1


def test_a_price_depends_on_the_server() -> None:
    assert price_of(OPENAI, "gpt-4o-mini") is not None
    assert price_of("http://127.0.0.1:8000/v1", "gpt-4o-mini") is None
    assert price_of(OPENAI, "my-model") is None


def test_the_config_wins_and_a_listed_price_names_its_date() -> None:
    listed = prices(OpenAIArgs(base_url=OPENAI), "gpt-4o-mini")
    assert (listed.prompt, listed.completion) == (0.15, 0.6)
    assert PRICES["api.openai.com"]["gpt-4o-mini"].date in listed.source
    own = prices(OpenAIArgs(base_url=OPENAI, price_in=1.0, price_out=2.0), "gpt-4o-mini")
    assert own == Prices(1.0, 1.0, 2.0)
    free = prices(OpenAIArgs(base_url=OPENAI, price_in=0.0, price_out=0.0), "gpt-4o-mini")
    assert free == Prices()
    cached = OpenAIArgs(base_url=OPENAI, price_in=1.0, price_cached=0.1, price_out=2.0)
    assert prices(cached, "m") == Prices(1.0, 0.1, 2.0)


def test_a_batch_has_the_batch_price() -> None:
    batch = prices(OpenAIArgs(base_url=OPENAI, batch=True), "gpt-4o-mini")
    assert (batch.prompt, batch.completion) == pytest.approx((0.075, 0.3))
    own = OpenAIArgs(base_url=OPENAI, batch=True, price_in=1.0, price_out=2.0)
    assert prices(own, "gpt-4o-mini") == Prices(1.0, 1.0, 2.0)


def test_a_budget_needs_a_price_or_a_listed_model() -> None:
    OpenAIArgs(base_url=OPENAI, model="gpt-4o-mini", budget=1.0)
    with pytest.raises(ValueError, match="without price_in and price_out"):
        OpenAIArgs(base_url=OPENAI, model="my-model", budget=1.0)
