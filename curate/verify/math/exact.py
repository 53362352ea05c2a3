"""Rational values of trees, exactly: arithmetic, sums, products, polynomials and their integrals.

Sizes are bounded before anything is computed: a tower of powers raises `TooLarge` at once.
"""

from __future__ import annotations

import math
from fractions import Fraction

from curate.verify.math.numbers import Number
from curate.verify.math.parser import Node

MAX_BITS = 20_000  # of an exact integer
MAX_LOG10 = 100_000  # of a magnitude
MAX_FACTORIAL = 1_000
MAX_TERMS = 1_000  # of a sum that is added up


class TooLarge(ValueError):
    """A number too large to be worth computing."""


class Undefined(ValueError):
    """No value: an unknown function, a division by zero, a container."""


class NoValue(Undefined):
    """A division by zero, the logarithm of zero: not a value of anything."""


class Uncomputable(Undefined):
    """A value that exists and that SymPy may find: an integral, a sum to be carried out."""


def symbols(node: Node) -> set[str]:
    """Return the names of the free symbols."""
    if node[0] == "sym":
        return {node[1]}
    if node[0] in ("sum", "prod", "integral"):  # the name that it runs over is bound
        return symbols(node[2]) | symbols(node[3]) | (symbols(node[4]) - {node[1]})
    names: set[str] = set()
    for part in node[1:]:
        if isinstance(part, tuple):
            names |= (
                symbols(part)
                if part and isinstance(part[0], str)
                else set().union(*map(symbols, part), set())
            )
    return names


def exact(node: Node) -> Fraction | None:
    """Return the rational value of a tree without symbols, or None if it is not plainly
    rational.
    """
    kind = node[0]
    if kind == "num":
        number = node[1]
        return number.value / 100 if number.percent else Fraction(number.value)
    if kind == "neg":
        value = exact(node[1])
        return None if value is None else -value
    if kind in ("add", "sub", "mul", "div", "pow", "mod"):
        a = exact(node[1])
        b = exact(node[2]) if a is not None else None
        if a is None or b is None:
            return None
        return _arithmetic(kind, a, b)
    if kind == "call" and node[1] in ("factorial", "binom", "perm", "abs", "floor", "ceil"):
        values = [exact(part) for part in node[2:]]
        if any(value is None for value in values):
            return None
        return _function(node[1], [value for value in values if value is not None])
    if kind in ("sum", "prod", "integral"):
        low, high = exact(node[2]), exact(node[3])
        if low is None or high is None or symbols(node[4]) - {node[1]}:
            return None
        if kind == "integral":
            return integral(node[4], node[1], low, high)
        return _over_range(kind, node[1], low, high, node[4])
    return None


def _over_range(kind: str, name: str, low: Fraction, high: Fraction, body: Node) -> Fraction | None:
    """Return a sum or a product over whole numbers; None if it has to be left to SymPy."""
    if low.denominator != 1 or high.denominator != 1:
        return None
    count = int(high - low) + 1
    if count <= 0:
        return Fraction(0 if kind == "sum" else 1)
    coefficients = polynomial(body, name) if kind == "sum" else None
    if coefficients is not None and count > len(coefficients) + 2:
        # A sum of a polynomial is a polynomial in the number of its terms: a few terms determine
        # it.
        return _extrapolated(coefficients, low, count)
    if count > MAX_TERMS:
        if count > 100 * MAX_TERMS:
            raise TooLarge(f"a {kind} with too many terms to compute")
        return None
    total = Fraction(0 if kind == "sum" else 1)
    for k in range(int(low), int(high) + 1):
        term = exact(substituted(body, name, ("num", Number(Fraction(k)))))
        if term is None:
            return None
        total = total + term if kind == "sum" else total * term
        if total.numerator.bit_length() > MAX_BITS:
            raise TooLarge(f"a {kind} too large to compute")
    return total


def _extrapolated(coefficients: list[Fraction], low: Fraction, count: int) -> Fraction:
    points = len(coefficients) + 1
    sums, total = [], Fraction(0)
    for i in range(points):
        at = low + i
        total += sum((c * at**power for power, c in enumerate(coefficients)), Fraction(0))
        sums.append(total)
    # Lagrange's formula at n = count, through the sums of 1, 2, … terms.
    result = Fraction(0)
    for i, value in enumerate(sums, 1):
        weight = value
        for j in range(1, points + 1):
            if j != i:
                weight *= Fraction(count - j, i - j)
        result += weight
    return result


def substituted(node: Node, name: str, value: Node) -> Node:
    """Return the tree with a symbol replaced."""
    if node == ("sym", name):
        return value
    return tuple(
        substituted(part, name, value) if isinstance(part, tuple) and part else part
        for part in node
    )


def _arithmetic(kind: str, a: Fraction, b: Fraction) -> Fraction | None:
    if kind == "add":
        return a + b
    if kind == "sub":
        return a - b
    if kind == "mul":
        return a * b
    if kind == "div":
        if not b:
            raise NoValue("division by zero")
        return a / b
    if kind == "mod":
        if b <= 0 or b.denominator != 1:
            raise NoValue("a modulus that is not a positive integer")
        return a % b if a.denominator == 1 else None
    if b.denominator != 1:
        return None
    bits = max(a.numerator.bit_length(), a.denominator.bit_length())
    if abs(a) != 1 and a and bits * abs(b.numerator) > MAX_BITS:
        if bits * abs(b.numerator) > MAX_LOG10 * 4:
            raise TooLarge("a power too large to compute")
        return None
    if not a and b <= 0:
        raise NoValue("zero to a power that is not positive")
    return Fraction(a**b.numerator) if abs(a) != 1 else (a if b.numerator % 2 else Fraction(1))


def _function(name: str, values: list[Fraction]) -> Fraction:
    if name == "abs":
        return abs(values[0])
    if name in ("floor", "ceil"):
        return Fraction(math.floor(values[0]) if name == "floor" else math.ceil(values[0]))
    if any(value.denominator != 1 or value < 0 for value in values):
        raise NoValue(f"{name} of something that is not a natural number")
    if any(value > MAX_FACTORIAL for value in values):
        raise TooLarge(f"a {name} too large to compute")
    numbers = [value.numerator for value in values]
    if name == "perm":
        return Fraction(math.perm(numbers[0], numbers[1]))
    return Fraction(
        math.factorial(numbers[0]) if name == "factorial" else math.comb(numbers[0], numbers[1])
    )


# -- polynomials in one symbol

MAX_DEGREE = 12  # of a polynomial whose roots are computed; ours

# The coefficients from the constant upwards.
Polynomial = list[Fraction]


def polynomial(node: Node, name: str) -> Polynomial | None:
    """Return a tree as a polynomial in one symbol; None if it is not one with rational
    coefficients.
    """
    if node == ("sym", name):
        return [Fraction(0), Fraction(1)]
    if name not in symbols(node):
        try:
            value = exact(node)
        except NoValue:
            return None
        return None if value is None else [value]
    kind = node[0]
    if kind == "neg":
        inner = polynomial(node[1], name)
        return None if inner is None else [-c for c in inner]
    if kind == "pow":
        base, power = polynomial(node[1], name), exact(node[2]) if not symbols(node[2]) else None
        if base is None or power is None or power.denominator != 1 or not 0 <= power <= MAX_DEGREE:
            return None
        result: Polynomial = [Fraction(1)]
        for _ in range(int(power)):
            result = _times(result, base)
        return result
    if kind not in ("add", "sub", "mul", "div"):
        return None
    first, second = polynomial(node[1], name), polynomial(node[2], name)
    if first is None or second is None:
        return None
    if kind == "mul":
        return _times(first, second)
    if kind == "div":
        return [c / second[0] for c in first] if len(second) == 1 and second[0] else None
    sign = 1 if kind == "add" else -1
    size = max(len(first), len(second))
    padded = [part + [Fraction(0)] * (size - len(part)) for part in (first, second)]
    return [a + sign * b for a, b in zip(*padded, strict=True)]


def _times(first: Polynomial, second: Polynomial) -> Polynomial:
    result = [Fraction(0)] * (len(first) + len(second) - 1)
    for i, a in enumerate(first):
        for j, b in enumerate(second):
            result[i + j] += a * b
    return result


def integral(body: Node, name: str, low: Fraction, high: Fraction) -> Fraction | None:
    """Return the definite integral of a polynomial, exactly; None for anything else."""
    coefficients = polynomial(body, name)
    if coefficients is None:
        return None
    return sum(
        (c / (i + 1) * (high ** (i + 1) - low ** (i + 1)) for i, c in enumerate(coefficients)),
        Fraction(0),
    )
