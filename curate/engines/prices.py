"""List prices of a few remote models, each with the month in which it was looked up.

Prices change: a price in the config overrides these, and a job that uses one of these prints it
with its date. A model that is not listed has no price.
"""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit


@dataclass(frozen=True, slots=True)
class Price:
    """US dollars per million tokens. `batch`: factor for requests sent as a batch.

    Cached prompt tokens count at the full price, so that an estimate is never too low.
    """

    prompt: float
    completion: float
    date: str  # year and month
    batch: float = 1.0


_OPENAI = {
    "gpt-4o": (2.5, 10.0),
    "gpt-4o-mini": (0.15, 0.6),
    "gpt-4.1": (2.0, 8.0),
    "gpt-4.1-mini": (0.4, 1.6),
    "gpt-4.1-nano": (0.1, 0.4),
    "gpt-5": (1.25, 10.0),
    "gpt-5-mini": (0.25, 2.0),
    "gpt-5-nano": (0.05, 0.4),
    "gpt-5.1": (1.25, 10.0),
    "gpt-5.4": (2.5, 15.0),
    "o3": (2.0, 8.0),
    "o4-mini": (1.1, 4.4),
}

PRICES: dict[str, dict[str, Price]] = {
    "api.openai.com": {
        name: Price(prompt, completion, "2026-03", batch=0.5)
        for name, (prompt, completion) in _OPENAI.items()
    },
    "api.deepseek.com": {
        "deepseek-chat": Price(0.56, 1.68, "2025-09"),
        "deepseek-reasoner": Price(0.56, 1.68, "2025-09"),
    },
}


def price_of(url: str, model: str) -> Price | None:
    """The list price of a model at the server of `url`; None if it is not in the table."""
    return PRICES.get(urlsplit(url).hostname or "", {}).get(model)
