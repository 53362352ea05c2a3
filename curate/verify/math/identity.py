"""Identity of rational expressions, without a single floating-point digit.

An expression of numbers, pi and symbols, joined by + - * / and whole powers, is a quotient of two
polynomials. Two of them are identical if they agree at random points of a large finite field
(Schwartz and Zippel): a difference of degree d vanishes at one point with probability d / PRIME.
Pi is transcendental, so it counts as one more symbol. Everything else is left to `numeric`.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache

from curate.verify.math.parser import Node

PRIME = 2**127 - 1
MAX_POWER = 20  # of one exponent; ours
MAX_DEGREE = 1_000  # product of the exponents around each other; ours
MAX_DECIMALS = 15  # a longer decimal may be a rounded value, which `numeric` compares as one; ours
POINTS = (0, 1)


class _NotRational(Exception):
    """The tree is not a quotient of polynomials, or has no value at the point."""


@lru_cache(maxsize=4096)
def _coordinate(name: str, point: int) -> int:
    digest = hashlib.blake2b(f"{name}/{point}".encode(), digest_size=16).digest()
    return int.from_bytes(digest, "big") % PRIME


def _residue(node: Node, point: int, room: int = MAX_DEGREE) -> int:
    """Return the value of a tree modulo `PRIME`. Raises `_NotRational`."""
    kind = node[0]
    if kind == "num":
        return _residue_of_number(node)
    if kind == "sym":
        return _coordinate(node[1], point)
    if kind == "const" and node[1] == "pi":
        return _coordinate("\\pi", point)
    if kind == "neg":
        return -_residue(node[1], point, room) % PRIME
    if kind == "pow":
        exponent = node[2]
        if exponent[0] != "num" or exponent[1].percent or exponent[1].unit:
            raise _NotRational
        power = exponent[1].value
        if power.denominator != 1 or not 0 < power <= MAX_POWER or power > room:
            raise _NotRational
        base = _residue(node[1], point, room // power.numerator)
        return pow(base, power.numerator, PRIME)
    if kind not in ("add", "sub", "mul", "div"):
        raise _NotRational
    first, second = _residue(node[1], point, room), _residue(node[2], point, room)
    if kind == "add":
        return (first + second) % PRIME
    if kind == "sub":
        return (first - second) % PRIME
    if kind == "mul":
        return first * second % PRIME
    return first * _inverse(second) % PRIME


def _residue_of_number(node: Node) -> int:
    number = node[1]
    if number.unit == "°":  # a multiple of pi in disguise
        raise _NotRational
    if (number.decimals or 0) > MAX_DECIMALS:
        raise _NotRational
    value = number.value
    under = value.denominator * (100 if number.percent else 1)
    if under == 1:
        return int(value.numerator % PRIME)
    return int(value.numerator) * _inverse(under % PRIME) % PRIME


def _inverse(value: int) -> int:
    if not value:
        raise _NotRational  # perhaps a division by zero
    return pow(value, -1, PRIME)


def is_identity(first: Node, second: Node) -> bool | None:
    """Whether two rational expressions are identical; None if one of them is something else."""
    try:
        return all(_residue(first, point) == _residue(second, point) for point in POINTS)
    except _NotRational:
        return None


def is_multiple(first: Node, second: Node) -> bool | None:
    """Whether two rational expressions differ by a constant factor only; None if one of them is
    something else, or zero.
    """
    try:
        values = [(_residue(first, point), _residue(second, point)) for point in (*POINTS, 2)]
    except _NotRational:
        return None
    if not all(a and b for a, b in values):
        return None
    (a, b), *others = values
    return all(a * other_b % PRIME == other_a * b % PRIME for other_a, other_b in others)
