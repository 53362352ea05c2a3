"""Solve polynomial inequalities and equations in one symbol. Everything else is left to SymPy."""

from __future__ import annotations

import itertools
from typing import Any

from curate.verify.math.exact import MAX_DEGREE, Polynomial, polynomial, symbols
from curate.verify.math.numeric import context
from curate.verify.math.parser import Node


def real_roots(coefficients: Polynomial) -> list[Any] | None:
    """Return the distinct real roots in order, to forty digits; None if they are too
    close to separate.
    """
    mp = context()
    while coefficients and not coefficients[-1]:
        coefficients = coefficients[:-1]
    if not 2 <= len(coefficients) <= MAX_DEGREE + 1:
        return None
    try:
        with mp.workdps(80):
            numbers = [mp.mpf(c.numerator) / c.denominator for c in reversed(coefficients)]
            roots = mp.polyroots(numbers, maxsteps=200, extraprec=400)
    except (mp.NoConvergence, ZeroDivisionError):
        return None
    real: list[Any] = []
    for root in sorted((r for r in roots if abs(mp.im(r)) < mp.mpf("1e-25")), key=mp.re):
        value = mp.re(root)
        if not real or value - real[-1] > mp.mpf("1e-20") * (1 + abs(value)):
            real.append(value)
    return real


def solution_pieces(relation: Node) -> list[tuple[Any, bool, Any, bool]] | None:
    """Return where a polynomial relation in one symbol holds: (low, open, high, open), sorted; None
    if SymPy has to find it.

    Ends are numbers of forty digits, None for infinity. An equation gives single points.
    """
    operator, left, right = relation[1:4]
    names = symbols(left) | symbols(right)
    if len(names) != 1 or operator not in ("<", "<=", ">", ">=", "=", "!="):
        return None
    coefficients = polynomial(("sub", left, right), min(names))
    roots = real_roots(coefficients) if coefficients is not None else None
    if coefficients is None or roots is None:
        return None
    if operator == "=":
        return [(root, False, root, False) for root in roots]
    if operator == "!=":
        ends = [None, *roots, None]
        return [(a, True, b, True) for a, b in itertools.pairwise(ends)]
    wants_positive, closed = operator in (">", ">="), operator in ("<=", ">=")
    return _joined(coefficients, roots, wants_positive, closed)


def _joined(
    coefficients: Polynomial, roots: list[Any], wants_positive: bool, closed: bool
) -> list[tuple[Any, bool, Any, bool]]:
    """Collect the gaps between roots with the right sign, joined if the root between them
    counts.
    """
    mp = context()
    ends = [None, *roots, None]
    pieces: list[tuple[Any, bool, Any, bool]] = []
    for low, high in itertools.pairwise(ends):
        if low is None and high is None:
            middle = mp.mpf(0)
        elif low is None:
            middle = high - 1
        else:
            middle = low + 1 if high is None else (low + high) / 2
        value = mp.polyval(
            [mp.mpf(c.numerator) / c.denominator for c in reversed(coefficients)], middle
        )
        if (value > 0) != wants_positive:
            # A root between two gaps of the other sign still counts if the relation is not strict.
            if closed and low is not None and (not pieces or pieces[-1][2] is not low):
                pieces.append((low, False, low, False))
            continue
        if closed and pieces and pieces[-1][2] is low and low is not None:
            pieces[-1] = (pieces[-1][0], pieces[-1][1], high, high is None)
        else:
            pieces.append((low, not closed or low is None, high, not closed or high is None))
    return pieces
