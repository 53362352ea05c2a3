"""Leave to `math-verify` what this package cannot read: integrals, sums, limits, inequalities.

It sees bare answers only, in a worker, and is guarded against its known faults: it drops
commands, rounds numbers or picks them out of prose, confuses containers, and compares relations in
one direction only.
"""

from __future__ import annotations

import re
from typing import Any

from curate.verify.base import Judgement
from curate.verify.math.lexer import unwrap
from curate.verify.math.numbers import RELATIVE

# Commands that its parser understands. It drops others silently: an angle would become a product.
_MEANT = frozenset(
    "frac dfrac tfrac cfrac sqrt int iint oint sum prod lim to rightarrow infty pi cdot times div "
    "pm mp le leq leqslant ge geq "
    "geqslant lt gt ne neq approx sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh ln "
    "log lg exp max min gcd lcm det "
    "cup cap setminus in notin mathbb emptyset varnothing binom dbinom tbinom left right begin "
    "end lfloor rfloor lceil rceil "
    "lvert rvert vert mid quad qquad displaystyle limits partial prime mathrm land lor wedge vee "
    "operatorname "
    "alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi "
    "rho sigma tau upsilon phi "
    "varphi chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega circ cdotp colon big "
    "Big bigg Bigg".split()
)


# Notation that only SymPy reads: integrals, sums, limits, derivatives,
# determinants, inequalities that have to be solved.
_FOR_SYMPY = re.compile(
    r"\\(?:int|iint|oint|sum|prod|lim|det|partial|max|min|gcd|lcm|cases)(?![a-zA-Z])|[vV]matrix"
    r"|\\frac\s*\{\s*d\b"
    r"|[<>]|\\(?:le|ge|leq|geq|lt|gt|leqslant|geqslant|in|notin|mid|cap|cup)(?![a-zA-Z])|[≤≥∫∑∏]"
    r"|\\begin"
)
_PROSE = re.compile(r"(?<![a-zA-Z\\])[a-zA-Z]{3,}|[^\W\d_\x00-\x7f\u0370-\u03ff]")
_KNOWN_WORDS = re.compile(
    r"(?<![a-zA-Z\\])(?:and|or|sin|cos|tan|cot|sec|csc|sinh|cosh|tanh|arcsin|arccos|arctan|log|exp"
    r"|sqrt|max|min|gcd|lcm|det"
    r"|lim|mod|pmatrix|bmatrix|vmatrix|matrix|cases|array|aligned|infty)(?![a-zA-Z])"
)


def is_for_math_verify(text: str) -> bool:
    """Whether a text has notation that SymPy may decide."""
    return bool(_FOR_SYMPY.search(text))


def _ignored_command(text: str) -> str | None:
    """Return a command or words that `math-verify` would pass over without a message, or None."""
    for inside in re.findall(r"\\(?:text|textbf|mbox|textrm)\s*\{([^{}]*)\}", text):
        if inside.strip(" ,") not in ("", "and", "or"):
            return f"\\text{{{inside[:40]}}}"
    bare = re.sub(r"\\(?:text|mbox|textrm)\s*\{[^{}]*\}", "", text)
    for name in re.findall(r"\\([a-zA-Z]+)", bare):
        if name not in _MEANT:
            return f"\\{name}"
    # It takes words for products of letters, and picks numbers out of prose.
    if prose := _PROSE.search(_KNOWN_WORDS.sub(" ", bare)):
        return f"the words {prose.group()[:40]}"
    return "dots" if re.search(r"\\[lcd]?dots|\.\.\.|…", bare) else None


def ask_math_verify(reference: str, answer: str) -> Judgement:
    """Return the verdict of `math-verify` on bare answers, guarded against its known faults."""
    if ignored := _ignored_command(reference):
        return Judgement("unverifiable", f"the reference cannot be parsed: {ignored}")
    if ignored := _ignored_command(answer):
        return Judgement("wrong", f"the answer cannot be parsed: {ignored}")
    carried_out = _value_carried_out(answer)
    if carried_out is not None and "=" not in reference:
        answer = carried_out
        if not answer:
            return Judgement("wrong", "an equation that does not hold")
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
    from math_verify import verify

    if verify(gold, given, timeout_seconds=None) or (
        _shape(gold) == "relation"
        and (verify(given, gold, timeout_seconds=None) or _same_solutions(gold[0], given[0]))
    ):
        return Judgement("correct", "math-verify")
    return Judgement("wrong", "math-verify")


def _value_carried_out(answer: str) -> str | None:
    """Return the right side of "integral = value"; "" if the two sides are different numbers; None
    for anything else.
    """
    left, equals, right = answer.rpartition("=")
    if (
        not equals
        or left.endswith(("<", ">", "!", "\\"))
        or not re.search(r"\\(?:int|sum|prod|lim|det)|vmatrix", left)
    ):
        return None
    sides = to_sympy(left.rpartition("=")[2]), to_sympy(right)
    if not sides[1]:
        return None
    if sides[0] and _near(sides[0][0], sides[1][0], "." in right) is False:
        return ""
    return right.strip()


def _near(gold: Any, given: Any, decimal: bool) -> bool | None:
    """Whether two numbers agree, to `RELATIVE` if one is a decimal; None if one is not a number.

    `math-verify` rounds to decimal places, so it takes 1e-7 for 2e-7.
    """
    from sympy import Expr

    if (
        not (isinstance(gold, Expr) and isinstance(given, Expr))
        or gold.free_symbols
        or given.free_symbols
    ):
        return None
    # `doit` first: an integral with an exact value needs no numerical integration.
    a, b = (one.doit().evalf(30) for one in (gold, given))
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
    """Return the SymPy objects of a bare answer; never a number out of surrounding prose."""
    from math_verify import LatexExtractionConfig, parse

    config = [LatexExtractionConfig(boxed_match_priority=-1)]
    objects = parse(f"${unwrap(text)}$", config, fallback_mode="no_fallback", parsing_timeout=None)
    return [one for one in objects if not isinstance(one, str)]


def _shape(objects: list[Any]) -> str:
    from math_verify.grader import is_relation
    from sympy import FiniteSet, MatrixBase, Set, Tuple

    one = objects[0]
    if is_relation(one) or (isinstance(one, Set) and not isinstance(one, FiniteSet)):
        return "relation"
    if isinstance(one, Tuple | MatrixBase):
        return "tuple"
    return "set" if isinstance(one, FiniteSet) else "value"
