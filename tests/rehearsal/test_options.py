"""The options of a rehearsal: GPUs, prices and assumptions."""

from __future__ import annotations

import pytest

from curate.errors import UsageError
from curate.rehearsal.assumptions import assumed
from curate.rehearsal.gpus import GPUS


def test_options_replace_price_card_and_assumptions() -> None:
    gpu, assume = assumed("H100", 1.5, ["memory=94", "length=0.4", "question=0"])
    assert (gpu.price, gpu.memory, gpu.flops) == (1.5, 94e9, GPUS["h100"].flops)
    assert (assume.length, assume.question, assume.kept) == (0.4, 0.0, 1.0)


@pytest.mark.parametrize(
    ("gpu", "price", "given", "message"),
    [
        ("h1000", None, [], "did you mean 'h100'"),
        ("h100", -1.0, [], "cannot be negative"),
        ("h100", None, ["lenght=1"], "did you mean 'length'"),
        ("h100", None, ["length=1.5"], "at most 1"),
        ("h100", None, ["kept=no"], "a number above 0"),
    ],
)
def test_wrong_options_are_refused(
    gpu: str, price: float | None, given: list[str], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        assumed(gpu, price, given)
