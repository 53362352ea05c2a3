"""The options `--gpu`, `--price` and `--assume` of a rehearsal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

from curate.config import did_you_mean
from curate.errors import UsageError
from curate.rehearsal.costs import Assumptions
from curate.rehearsal.gpus import GPU, gpu_named

# Properties of the GPU that `--assume` replaces, and the unit in which they are given.
OF_GPU = {"flops": 1e12, "bandwidth": 1e12, "memory": 1e9}
SHARES = ("length", "kept", "train", "prefill", "decode")


def assumed(
    gpu: str, price: float | None = None, given: Sequence[str] = ()
) -> tuple[GPU, Assumptions]:
    """The GPU and the assumptions that the options name. UsageError for an unknown name or a value
    out of range.
    """
    card, assume = gpu_named(gpu), Assumptions()
    if price is not None:
        if price < 0:
            raise UsageError(f"--price {price}: a price cannot be negative")
        card = replace(card, price=price, priced="--price")
    names = [field.name for field in fields(Assumptions)]
    for item in given:
        name, equals, text = item.partition("=")
        if not equals or name not in (*names, *OF_GPU):
            hint = did_you_mean(name, [*names, *OF_GPU])
            raise UsageError(
                f"--assume {item}: give NAME=VALUE with one of {', '.join([*names, *OF_GPU])}{hint}"
            )
        value = _number(item, text, name)
        if name in OF_GPU:
            changed: dict[str, Any] = {name: value * OF_GPU[name]}
            card = replace(card, **changed)
        else:
            assume = replace(assume, **{name: value})
    return card, assume


def _number(item: str, text: str, name: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    low_ok = value >= 0 if name == "question" else value > 0
    if not low_ok or (name in SHARES and value > 1):
        most = " and at most 1" if name in SHARES else ""
        raise UsageError(f"--assume {item}: give a number above 0{most}")
    return value
