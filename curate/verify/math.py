"""Mathematics: an exact path for plain numbers, `math-verify` and SymPy behind it.

The reference decides what is asked for; a reference that cannot be read makes the problem unverifiable.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

from curate.records import Problem
from curate.verify.base import CORRECT, MAX_ANSWER, WRONG, Judgement, Verifier
from curate.verify.numbers import Number, equal, parse_number


@lru_cache(maxsize=8192)
def _gold(reference: str) -> Number | None:
    return parse_number(reference)


class MathVerifier(Verifier):
    """Is this the same mathematical object as the reference?"""

    name = "math"
    version = "1"
    imports = ("math_verify",)

    def quick(self, problem: Problem, answer: str) -> Judgement | None:
        if len(answer) > MAX_ANSWER:
            return Judgement("wrong", f"the answer is longer than {MAX_ANSWER} characters")
        gold = _gold((problem.reference or "").strip())
        if gold is None:
            return None
        number = parse_number(answer)
        if number is None:
            return None
        same, why = equal(gold, number)
        return CORRECT if same else Judgement("wrong", why)

    def check(self, problem: Problem, answer: str) -> Judgement:
        from math_verify import verify

        gold = _parse((problem.reference or "").strip())
        if not gold:
            return Judgement("unverifiable", "the reference cannot be parsed")
        return CORRECT if verify(gold, _parse(answer), timeout_seconds=None) else WRONG


def _parse(text: str) -> list[Any]:
    from math_verify import parse

    text = re.sub(r"^\$+|\$+$", "", text.strip())
    return parse(f"${text}$", parsing_timeout=None) if text else []
