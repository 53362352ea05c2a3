"""Mathematics with other policies: `math-strict` and `math-rounded`, named in place of
`math` by sources whose users want them.
"""

from __future__ import annotations

import re
from fractions import Fraction

from curate.records import Problem
from curate.verify.base import CORRECT, Judgement
from curate.verify.math.exact import TooLarge, Undefined, symbols
from curate.verify.math.notation import clean, final_answer
from curate.verify.math.numbers import Number, parse_number
from curate.verify.math.numeric import context, number
from curate.verify.math.parser import Excessive
from curate.verify.math.units import measure
from curate.verify.math.verifier import MathVerifier, read_answer

# Significant digits that a rounded answer needs; ours.
ROUNDED = 3
_LAST_SIDE = re.compile(r"=|≈|\\approx(?![a-zA-Z])")


class StrictMathVerifier(MathVerifier):
    """Asks for a value that is carried out (`4+1` does not answer 5), with the unit and the noun of
    the reference, wherever the reference is a plain number.
    """

    name = "math-strict"

    def quick(self, problem: Problem, answer: str) -> Judgement | None:
        judgement = super().quick(problem, answer)
        return judgement and _stricter(problem, answer, judgement)

    def check(self, problem: Problem, answer: str) -> Judgement:
        return _stricter(problem, answer, super().check(problem, answer))


def _stricter(problem: Problem, answer: str, judgement: Judgement) -> Judgement:
    if judgement.verdict != "correct":
        return judgement
    gold = _plain_number(final_answer((problem.reference or "").strip()) or "")
    if gold is None:
        return judgement
    given = _plain_number(answer)
    if given is None:
        return Judgement("wrong", "the value is not carried out")
    if gold.unit and not given.unit:
        return Judgement("wrong", f"no unit: {gold.unit} is missing")
    if gold.unit != given.unit and measure(gold.unit) is None:
        return Judgement("wrong", f"{given.unit} instead of {gold.unit}")
    return judgement


def _plain_number(text: str) -> Number | None:
    """Return the number that a text, or the last side of its chain of equations, is."""
    return parse_number(_LAST_SIDE.split(clean(text))[-1].strip())


class RoundedMathVerifier(MathVerifier):
    """Accepts a decimal, too, that is the reference rounded to three or more significant digits
    (33.3 for 100/3), and the other way round.
    """

    name = "math-rounded"

    def quick(self, problem: Problem, answer: str) -> Judgement | None:
        judgement = super().quick(problem, answer)
        return judgement and _rounded(problem, answer, judgement)

    def check(self, problem: Problem, answer: str) -> Judgement:
        return _rounded(problem, answer, super().check(problem, answer))


def _rounded(problem: Problem, answer: str, judgement: Judgement) -> Judgement:
    if judgement.verdict != "wrong":
        return judgement
    gold = _value(final_answer((problem.reference or "").strip()) or "")
    given = _value(answer)
    if gold is None or given is None or gold[1].percent != given[1].percent:
        return judgement
    if given[1].unit not in ("", gold[1].unit):
        return judgement
    decimals = [one for _, one in (gold, given) if one.decimals is not None]
    if not decimals:
        return judgement
    shorter = min(decimals, key=lambda one: one.decimals or 0)
    half = Fraction(1, 2 * 10 ** (shorter.decimals or 0))
    if shorter.significant >= ROUNDED and abs(gold[0] - given[0]) <= half:
        return CORRECT
    return judgement


def _value(text: str) -> tuple[Fraction, Number] | None:
    """Return the value of a constant, and how it is written; None for anything else."""
    plain = _plain_number(text)
    if plain is not None:
        return plain.value, plain
    try:
        tree, unit = read_answer(clean(text))
        if tree is None or symbols(tree):
            return None
        value = number(tree, {})
    except (Excessive, TooLarge, Undefined, ValueError, ZeroDivisionError, OverflowError):
        return None
    mp = context()
    if mp.im(value) or not mp.isfinite(value):
        return None
    exact = Fraction(str(mp.nstr(mp.re(value), 30)))
    return exact, Number(exact, unit=unit)
