"""What the parser of this package does not know (integrals, sums, limits, inequalities to be solved): `math-verify`.

It is asked about bare answers only, in a worker, and guarded against what it gets wrong: commands that it drops, numbers
that it rounds, containers that it takes for one another, relations that it compares in one direction only.
"""

from __future__ import annotations

import re
from typing import Any

from curate.verify.base import Judgement
from curate.verify.math.lexer import unwrap
from curate.verify.math.numbers import RELATIVE

# Commands that its parser gives their meaning. It drops others without a word: an angle would be a product.
_MEANT = frozenset(
    "frac dfrac tfrac cfrac sqrt int iint oint sum prod lim to rightarrow infty pi cdot times div pm mp le leq leqslant ge geq "
    "geqslant lt gt ne neq approx sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh ln log lg exp max min gcd lcm det "
    "cup cap setminus in notin mathbb emptyset varnothing binom dbinom tbinom left right begin end lfloor rfloor lceil rceil "
    "lvert rvert vert mid quad qquad displaystyle limits partial prime mathrm ldots dots cdots land lor wedge vee operatorname "
    "alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi rho sigma tau upsilon phi "
    "varphi chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega circ cdotp colon big Big bigg Bigg".split()
)


def _ignored_command(text: str) -> str | None:
    """A command or words that `math-verify` would pass over, or None."""
    for inside in re.findall(r"\\(?:text|textbf|mbox|textrm)\s*\{([^{}]*)\}", text):
        if inside.strip(" ,") not in ("", "and", "or"):
            return f"\\text{{{inside[:40]}}}"
    bare = re.sub(r"\\(?:text|mbox|textrm)\s*\{[^{}]*\}", "", text)
    return next(
        (f"\\{name}" for name in re.findall(r"\\([a-zA-Z]+)", bare) if name not in _MEANT), None
    )


def ask_math_verify(reference: str, answer: str) -> Judgement:
    """The verdict of `math-verify`, fed with bare answers and guarded against what it is known to get wrong."""
    from math_verify import verify

    for text, verdict, whose in (
        (reference, "unverifiable", "reference"),
        (answer, "wrong", "answer"),
    ):
        if ignored := _ignored_command(text):
            return Judgement(verdict, f"the {whose} cannot be parsed: {ignored}")  # type: ignore[arg-type]
    gold = to_sympy(reference)
    if not gold:
        return Judgement("unverifiable", "the reference cannot be parsed")
    given = to_sympy(answer)
    if not given:
        return Judgement("wrong", "the answer cannot be parsed")
    if _shape(gold) != _shape(given):
        return Judgement("wrong", f"a {_shape(given)} instead of a {_shape(gold)}")
    if (near := _near(gold[0], given[0], "." in reference or "." in answer)) is not None:
        return Judgement("correct" if near else "wrong", "by value")
    if verify(gold, given, timeout_seconds=None) or (
        _shape(gold) == "relation"
        and (verify(given, gold, timeout_seconds=None) or _same_solutions(gold[0], given[0]))
    ):
        return Judgement("correct", "math-verify")
    return Judgement("wrong", "math-verify")


def _near(gold: Any, given: Any, decimal: bool) -> bool | None:
    """Whether two numbers agree, to `RELATIVE` where one was written as a decimal; None where one of them is no number.

    `math-verify` rounds to places, so that 1e-7 is 2e-7 to it.
    """
    from sympy import Expr

    if (
        not (isinstance(gold, Expr) and isinstance(given, Expr))
        or gold.free_symbols
        or given.free_symbols
    ):
        return None
    a, b = (
        one.doit().evalf(30) for one in (gold, given)
    )  # what is known exactly is not integrated by points
    if not (a.is_number and b.is_number and a.is_finite and b.is_finite):
        return None
    return bool(abs(a - b) <= abs(a) * (float(RELATIVE) if decimal else 1e-25))


def _same_solutions(gold: Any, given: Any) -> bool:
    """Whether inequalities in one symbol have the same solutions: x^2 < 4 and -2 < x < 2."""
    from math_verify.grader import is_relation
    from sympy import And, Set

    solutions = []
    for one in (gold, given):
        if is_relation(one) and len(one.free_symbols) == 1:
            solutions.append(And(*(one.args if not one.is_Relational else (one,))).as_set())
        elif isinstance(one, Set):
            solutions.append(one)
    return len(solutions) == 2 and bool(solutions[0] == solutions[1])


def to_sympy(text: str) -> list[Any]:
    """SymPy objects of a bare answer; never a number out of the prose around it."""
    from math_verify import LatexExtractionConfig, parse

    config = [LatexExtractionConfig(boxed_match_priority=-1)]
    found = parse(f"${unwrap(text)}$", config, fallback_mode="no_fallback", parsing_timeout=None)
    return [one for one in found if not isinstance(one, str)]


def _shape(found: list[Any]) -> str:
    from math_verify.grader import is_relation
    from sympy import FiniteSet, MatrixBase, Set, Tuple

    one = found[0]
    if is_relation(one) or (isinstance(one, Set) and not isinstance(one, FiniteSet)):
        return "relation"
    if isinstance(one, Tuple | MatrixBase):
        return "tuple"
    return "set" if isinstance(one, FiniteSet) else "value"
