"""Compare two trees as answers: numbers, sets, tuples, intervals, matrices, relations, words.

The reference (`gold`) decides what is expected: "x = 5" answers 5, a set is not a tuple,
alternatives are not a single answer. `None` means undecided here; `math-verify` decides then.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

from curate.verify.math.exact import (
    NoValue,
    TooLarge,
    Undefined,
    exact,
    substituted,
    symbols,
)
from curate.verify.math.identity import is_multiple
from curate.verify.math.intervals import Piece, meet, region, symbolic_pieces
from curate.verify.math.numbers import RELATIVE, Number, close_values, equal_numbers
from curate.verify.math.numeric import context, equal_at_points, logarithm, number
from curate.verify.math.parser import Node
from curate.verify.math.polynomials import solution_pieces
from curate.verify.text import equal_words

_COLLECTIONS = ("list", "either", "both")


def equal(gold: Node, answer: Node) -> bool | None:
    """Whether `answer` is the same answer as `gold`; None if this cannot be decided here. Raises
    `TooLarge`.
    """
    gold, answer = spread(gold), spread(answer)
    gold, answer = _with_one_name(gold, answer), _with_one_name(answer, gold)
    gold, answer = _members(gold, answer), _members(answer, gold)
    if not consistent(answer):
        return False  # 2 + 2 = 5 offers two values
    pair = vectors(gold, answer)
    if pair is not None:
        return match_in_order(*pair)
    if answer[0] == "rel" and answer[1] == "~" and gold[0] != "rel":
        return _about(gold, answer)
    if gold[0] == "rel" and gold[1] == "~":  # the reference offers both sides, unless one is a name
        if not symbols(gold[2]):
            return equal(gold[2], answer) or equal(gold[3], answer)
        about = answer[0] == "rel" and answer[1] == "~"
        return equal(("rel", "=", *gold[2:]), ("rel", "=", *answer[2:]) if about else answer)
    for one, other in ((gold, answer), (answer, gold)):
        if _is_system(one) and _are_alternatives(other):
            return False  # both of x = 1 and y = 2 are meant, not one of them, and vice versa
    for one, other in ((gold, answer), (answer, gold)):  # {x | x^2 = 4}
        if one[0] == "rel" and one[1] == "=" and "" in symbols(one) and other[0] == "set":
            return _equal_to_solutions(gold, answer)
    if gold[0] == "text" or answer[0] == "text":  # words do not answer a formula
        return gold[0] == answer[0] and equal_words(gold[1], answer[1])
    if "cong" in (gold[0], answer[0]) and "rel" in (gold[0], answer[0]):
        return equal_residues(gold, answer)
    if regional(gold) or regional(answer):
        return equal_regions(gold, answer)
    if gold[0] in _COLLECTIONS or answer[0] in _COLLECTIONS:
        return equal_collections(gold, answer)
    if gold[0] == "rel" or answer[0] == "rel":
        return equal_relations(gold, answer)
    gold, answer = scaled_matrix(gold), scaled_matrix(answer)
    containers = ("set", "tuple", "bracket", "matrix", "ratio", "interval")
    if gold[0] in containers or answer[0] in containers:
        return equal_containers(gold, answer)
    if "cong" in (gold[0], answer[0]) or gold[0] == answer[0] == "mod":
        return equal_residues(gold, answer)
    if "base" in (gold[0], answer[0]):
        return equal_in_base(gold, answer)
    return equal_values(gold, answer)


def _with_one_name(node: Node, other: Node) -> Node:
    """Write x_1 = 2, x_2 = 3 as x = 2 or x = 3 if the other side writes its roots so."""
    names = [p[2][1] if assigned(p) else "" for p in node[1:]] if node[0] in _COLLECTIONS else []
    letters = {name.partition("_")[0] for name in names if "_" in name}
    if len(names) < 2 or len(letters) != 1 or not all("_" in name for name in names):
        return node
    (letter,) = letters
    parts = other[1:] if other[0] in _COLLECTIONS else (other,)
    if not all(assigned(part) and part[2] == ("sym", letter) for part in parts):
        return node
    return ("either", *(("rel", "=", ("sym", letter), part[3]) for part in node[1:]))


def _members(node: Node, other: Node) -> Node:
    """Return the set in "(x, y) is in a set" if the other side gives the members alone."""
    is_member = node[0] == "rel" and node[1] == "in" and node[2][0] == "tuple"
    return node[3] if is_member and node[3][0] == "set" and other[0] != "rel" else node


def _is_system(node: Node) -> bool:
    """Whether a list gives each of several names one value."""
    parts = node[1:] if node[0] in ("list", "both") else ()
    return len(parts) > 1 and len({p[2] for p in parts if assigned(p)}) == len(parts)


def _are_alternatives(node: Node) -> bool:
    """Whether a node offers single values, with or without names, of which one may be right."""
    return node[0] == "either" and not any(
        part[0] in ("tuple", *_COLLECTIONS) or (part[0] == "rel" and part[2][0] == "tuple")
        for part in node[1:]
    )


def _about(gold: Node, answer: Node) -> bool | None:
    """Compare with a ≈ b: its answer is a, or b if a is a name or close to b (1/3 ≈ 0.33)."""
    _, _, left, right = answer[:4]
    if left[0] == "sym":
        return equal(gold, right)
    verdict = equal(gold, left)
    if verdict or symbols(left) or symbols(right):
        return verdict
    a, b = number(left, {}), number(right, {})
    return equal(gold, right) if abs(a - b) <= abs(a) * 0.02 else verdict


def spread(node: Node) -> Node:
    """Write ± as two alternatives, and a relation with several right sides as several relations."""
    if node[0] == "rel" and node[1] == "=" and node[3][0] in ("pm", *_COLLECTIONS):
        right = spread(node[3])
        if right[0] in _COLLECTIONS:
            return (right[0], *(("rel", "=", node[2], part) for part in right[1:]))
    if has_sign(node) and node[0] not in _COLLECTIONS:
        return ("either", chosen(node, True), chosen(node, False))
    if node[0] in _COLLECTIONS:
        parts: list[Node] = []
        for part in node[1:]:
            one = spread(part)
            parts.extend(one[1:] if one[0] in _COLLECTIONS and one[0] != "both" else [one])
        parts = _carry(parts)
        return (node[0], *parts) if len(parts) > 1 else parts[0]
    return node


def _carry(parts: list[Node]) -> list[Node]:
    """Repeat the name in "x = 1, 2"."""
    if len(parts) > 1 and assigned(parts[0]) and not any(part[0] == "rel" for part in parts[1:]):
        return [parts[0], *(("rel", "=", parts[0][2], part) for part in parts[1:])]
    return parts


def consistent(node: Node) -> bool:
    """Whether all numeric sides of a chain of equations are the same number."""
    if node[0] in _COLLECTIONS:
        # "2 = 2, 3": an equation of plain numbers does not name a member of a list.
        if any(part[0] == "rel" and part[2][0] == "num" for part in node[1:] if part[1] == "="):
            return False
        return all(map(consistent, node[1:]))
    if node[0] != "rel" or node[1] != "=":
        return True
    sides = [
        side
        for side in node[2:]
        if side[0] not in ("text", "reals", "integers")
        and not symbols(side)
        and "'f:" not in repr(side)
    ]
    try:
        return all(equal(sides[-1], side) is not False for side in sides[:-1])
    except Undefined:
        return True


_UNIT_VECTORS = {"\\veci": 0, "\\vecj": 1, "\\veck": 2, "\\hati": 0, "\\hatj": 1, "\\hatk": 2}


def vectors(gold: Node, answer: Node) -> tuple[list[Node], list[Node]] | None:
    """Return the coordinates of both if one is written in unit vectors (i + 2j) and the other in
    brackets.
    """
    for one, other in ((gold, answer), (answer, gold)):
        rows = grid(other) if other[0] in ("tuple", "matrix", "bracket") else None
        if rows is None or one[0] not in ("add", "sub", "mul", "neg", "sym", "div"):
            continue
        if any(len(row) != 1 for row in rows) and len(rows) != 1:
            continue
        coordinates = [cell for row in rows for cell in row]
        combination = _combination(one)
        if (
            combination is None
            or len(coordinates) not in (2, 3)
            or max(combination) >= len(coordinates)
        ):
            continue
        zero = ("num", Number(Fraction(0)))
        written = [combination.get(i, zero) for i in range(len(coordinates))]
        return (written, coordinates) if one is gold else (coordinates, written)
    return None


def _combination(node: Node) -> dict[int, Node] | None:
    """Return the coefficient of each unit vector in a sum, or None."""
    if node[0] == "sym" and node[1] in _UNIT_VECTORS:
        return {_UNIT_VECTORS[node[1]]: ("num", Number(Fraction(1)))}
    if node[0] in ("add", "sub"):
        first, second = _combination(node[1]), _combination(node[2])
        if first is None or second is None or set(first) & set(second):
            return None
        return first | {
            i: ("neg", part) if node[0] == "sub" else part for i, part in second.items()
        }
    if node[0] in ("mul", "div", "neg"):
        scaled = node[2] if node[0] == "mul" else node[1]
        parts = _combination(scaled)
        if parts is None:
            return None
        if node[0] == "neg":
            return {i: ("neg", part) for i, part in parts.items()}
        if node[0] == "div":
            return {i: ("div", part, node[2]) for i, part in parts.items()}
        return {i: ("mul", node[1], part) for i, part in parts.items()}
    return None


def has_sign(node: Node) -> bool:
    return node[0] == "pm" or any(
        isinstance(part, tuple) and part and has_sign(part) for part in node[1:]
    )


def chosen(node: Node, plus: bool) -> Node:
    """Return the tree with every ± taken as plus (or minus) and every ∓ as the opposite."""
    if node[0] == "pm":
        left, right = node[2] and chosen(node[2], plus), chosen(node[3], plus)
        positive = plus == (node[1] == "pm")
        if left is None:
            return right if positive else ("neg", right)
        return ("add" if positive else "sub", left, right)
    return tuple(chosen(part, plus) if isinstance(part, tuple) and part else part for part in node)


# -- values


def equal_values(gold: Node, answer: Node) -> bool | None:
    """Compare numbers by the rules of `numbers`, and expressions by their values."""
    if gold[0] == answer[0] == "num":
        return equal_numbers(gold[1], answer[1])[0]
    if gold == answer:
        return True
    if gold == ("reals",) or answer == ("reals",):
        return False
    if ("const", "inf") in (gold, answer) or ("const", "inf") in (_bare(gold), _bare(answer)):
        return gold == answer
    try:
        if not symbols(gold) and not symbols(answer):
            try:
                return _equal_constants(gold, answer)
            except TooLarge:
                if not _is_huge(gold):
                    raise
                return _equal_logarithms(gold, answer)
        return equal_at_points(gold, answer)
    except NoValue:
        raise
    except Undefined:
        return None


def _is_huge(node: Node) -> bool:
    """Whether a tree is a number too large to be written out: 2^{1000000}."""
    try:
        number(node, {})
    except TooLarge:
        return True
    except (Undefined, ZeroDivisionError, OverflowError):
        return False
    return False


def _equal_logarithms(gold: Node, answer: Node) -> bool:
    """Compare huge products, powers and factorials by their logarithms, to sixty digits."""
    mp = context()
    with mp.workdps(80):
        first, second = logarithm(gold), logarithm(answer)
        if first is None or second is None:
            return gold == answer
        return bool(abs(first - second) <= abs(first) * mp.mpf("1e-60"))


def _bare(node: Node) -> Node:
    return node[1] if node[0] == "neg" else node


def _equal_constants(gold: Node, answer: Node) -> bool | None:
    first, second = as_number(gold), as_number(answer)
    if first is not None and second is not None:
        return equal_numbers(first, second)[0]
    decimal = _decimals(gold) or _decimals(answer)
    if decimal is None:
        number(gold, {}), number(answer, {})  # raises if there is no value to compare
        return equal_at_points(gold, answer)

    def near(a: Any, b: Any) -> bool:
        if context().im(a) or context().im(b):
            return bool(abs(a - b) <= abs(a) * float(RELATIVE))
        left = first or Number(_rational(a))
        right = second or Number(_rational(b))
        if _pure(gold) or _pure(answer):
            return close_values(left.value, right.value, left, right)
        return bool(abs(left.value - right.value) <= abs(left.value) * RELATIVE)

    number(gold, {}), number(answer, {})  # raises if there is no value to compare
    return equal_at_points(gold, answer, near)


def _rational(value: Any) -> Fraction:
    sign, mantissa, exponent, _ = context().mpf(value)._mpf_
    return Fraction(-mantissa if sign else mantissa) * Fraction(2) ** exponent


def as_number(node: Node) -> Number | None:
    """Return the value of a plainly rational tree, with its notation if it is a single number."""
    if node[0] == "num":
        return node[1]
    if node[0] == "neg" and node[1][0] == "num":
        inside: Number = node[1][1]
        return replace(inside, value=-inside.value)
    if node[0] == "call" and node[1] == "deg":
        inside_degrees = as_number(node[2])
        return None if inside_degrees is None else replace(inside_degrees, unit="°")
    value = exact(node)
    return None if value is None else Number(value)


def _pure(node: Node) -> bool:
    return _bare(node)[0] == "num"


def _decimals(node: Node) -> int | None:
    """Return the largest number of decimals written in a tree; None without decimals."""
    if node[0] == "num":
        decimals: int | None = node[1].decimals
        return decimals
    counts = [_decimals(part) for part in node[1:] if isinstance(part, tuple) and part]
    return max((one for one in counts if one is not None), default=None)


def equal_in_base(gold: Node, answer: Node) -> bool | None:
    """Compare numbers in a base; a missing base is taken from the other side."""
    for node in (gold, answer):
        if node[0] == "base" and any(int(digit) >= int(_base(node[2])) for digit in node[1]):
            return False  # 7_2 is not a number
    if gold[0] == answer[0] == "base":
        return (gold[1], _base(gold[2])) == (answer[1], _base(answer[2]))
    with_base, other = (gold, answer) if gold[0] == "base" else (answer, gold)
    return other[0] == "num" and other[1].decimals is None and str(other[1].value) == with_base[1]


def equal_residues(gold: Node, answer: Node) -> bool | None:
    """Compare residue classes, or a class and its least member, with the same modulus."""
    (who, value, modulus), (other, given, second) = residue(gold), residue(answer)
    if who is not None and other is not None and who != other:
        return False
    m = exact(modulus or second or ("num", Number(Fraction(0))))
    if (
        m is None
        or m <= 0
        or m.denominator != 1
        or (modulus and second and exact(modulus) != exact(second))
    ):
        return None if m is None else False
    a, b = exact(value), exact(given)
    if a is None or b is None or a.denominator != 1 or b.denominator != 1:
        return None if a is None or b is None else False
    plain = [v for v, given_modulus in ((a, modulus), (b, second)) if given_modulus is None]
    return (a - b) % m == 0 and all(0 <= v < m for v in plain)


def residue(node: Node) -> tuple[Node | None, Node, Node | None]:
    """Return the left side, the value and the modulus; None for a part that is missing."""
    if node[0] == "cong":
        return node[1], node[2], node[3]
    if node[0] == "mod":
        return None, node[1], node[2]
    return (node[2], node[3], None) if node[0] == "rel" and node[1] == "=" else (None, node, None)


def _base(name: str) -> str:
    return {"two": "2", "eight": "8", "ten": "10"}.get(name, name)


# -- collections


def equal_collections(gold: Node, answer: Node) -> bool | None:
    """Compare several values in any order: the same ones, no more and no fewer."""
    solved = solutions(gold, answer)
    if solved is not None:
        return match_unordered(*solved)
    if (name := _common_name(gold)) and (other := _common_name(answer)) and name != other:
        return False  # y = 1, 2 says nothing about x
    expected, given = values(gold), values(answer)
    if _named_apart(gold) and not any(part[0] == "rel" for part in given):
        # The names fix the order of values without names: x=1, y=2 is "1, 2" and not "2, 1".
        return match_in_order([part[3] for part in expected], given)
    if _named_apart(answer) and not any(part[0] == "rel" for part in expected):
        return match_in_order(expected, [part[3] for part in given])
    if gold[0] in ("tuple", "matrix", "bracket", "interval") or answer[0] in ("matrix", "interval"):
        return False
    if gold[0] == "set" and answer[0] not in ("set", *_COLLECTIONS):
        return False
    return match_unordered(expected, given)


def _common_name(node: Node) -> Node | None:
    """Return the symbol that all parts of a collection give a value to, or None."""
    parts = node[1:] if node[0] in _COLLECTIONS else ()
    if not parts or not all(assigned(part) and part[2][0] == "sym" for part in parts):
        return None
    names = {part[2] for part in parts}
    return names.pop() if len(names) == 1 else None


def _named_apart(node: Node) -> bool:
    """Whether a collection gives values to several different names."""
    parts = node[1:] if node[0] in _COLLECTIONS else ()
    return len(parts) > 1 and all(map(assigned, parts)) and len({part[2] for part in parts}) > 1


def solutions(gold: Node, answer: Node) -> tuple[list[Node], list[Node]] | None:
    """Return both as lists of tuples if they are solutions in several unknowns; None if they are
    not.

    (x, y) = (1, 2), "x = 1, y = 2", "(1, 2)" and "p = 5, q = 2; p = 7, q = 2" all become tuples
    ordered by name.
    """
    first, second = _assignments(gold), _assignments(answer)
    names = None
    for one in (first, second):
        if one is not None:
            if names is not None and set(one[0]) != set(names):
                return None
            names = names or sorted(one[0])
    if names is None:
        return None
    tuples = []
    for node, rows in ((gold, first), (answer, second)):
        if rows is not None:
            tuples.append([("tuple", *(row[name] for name in names)) for row in rows])
            continue
        parts = list(node[1:]) if node[0] in ("set", *_COLLECTIONS) else [node]
        if any(part[0] != "tuple" or len(part) != len(names) + 1 for part in parts):
            return None
        tuples.append(parts)
    return tuples[0], tuples[1]


def _assignments(node: Node) -> list[dict[str, Node]] | None:
    """Return the solutions that a node writes with names, one mapping from name to value each; None
    if it has none.
    """
    if node[0] == "rel" and node[1] in ("=", "in") and node[2][0] == "tuple":
        names = [part[1] for part in node[2][1:] if part[0] == "sym"]
        if len(names) != len(node[2]) - 1:
            return None
        right = node[3]
        rows = right[1:] if right[0] in ("set", *_COLLECTIONS) else (right,)
        if any(row[0] not in ("tuple", "interval") or len(row) != len(names) + 1 for row in rows):
            return None
        return [dict(zip(names, row[1:], strict=True)) for row in rows]
    if node[0] not in _COLLECTIONS:
        return None
    if node[0] == "either" and len({part[2] for part in node[1:] if assigned(part)}) > 1:
        return None  # "x = 1 or y = 2" is not a solution of a system
    parts = list(node[1:])
    if all(part[0] == "rel" and part[2][0] == "tuple" for part in parts):
        each = [_assignments(part) for part in parts]
        return (
            None if any(one is None for one in each) else [row for one in each for row in one or []]
        )
    if not all(assigned(part) and part[2][0] == "sym" and not symbols(part[3]) for part in parts):
        return None
    rows_: list[dict[str, Node]] = [{}]
    for part in parts:
        if part[2][1] in rows_[-1]:
            rows_.append({})
        rows_[-1][part[2][1]] = part[3]
    if len(rows_[0]) < 2 or len({frozenset(row) for row in rows_}) > 1:
        return None
    return rows_


def values(node: Node) -> list[Node]:
    """Return the values of a collection, without names if all have the same name.

    Members of a set, alternatives and solutions of one unknown count once; repetitions in a bare
    list are kept.
    """
    parts = list(node[1:]) if node[0] in ("set", "bracket", *_COLLECTIONS) else [node]
    if all(assigned(part) for part in parts) and len({part[2] for part in parts}) == 1:
        parts = [part[3] for part in parts]
    elif node[0] not in ("set", "either") and any(part[0] != "tuple" for part in parts):
        return parts
    kept: list[Node] = []
    for part in parts:
        if not any(equal(part, other) for other in kept):
            kept.append(part)
    return kept


def match_unordered(wanted: Sequence[Node], given: Sequence[Node]) -> bool | None:
    """Match two lists one to one in any order."""
    if len(wanted) != len(given) or len(wanted) > 60:
        return False
    unmatched, unsure = list(given), False
    for one in wanted:
        for i, other in enumerate(unmatched):
            verdict = equal(one, other)
            unsure |= verdict is None
            if verdict:
                del unmatched[i]
                break
        else:
            return None if unsure else False
    return True


def match_in_order(wanted: Sequence[Node], given: Sequence[Node]) -> bool | None:
    """Match two lists in order."""
    if len(wanted) != len(given):
        return False
    verdicts = [equal(one, other) for one, other in zip(wanted, given, strict=True)]
    if any(verdict is False for verdict in verdicts):
        return False
    return None if None in verdicts else True


def equal_containers(gold: Node, answer: Node) -> bool | None:
    kinds = (gold[0], answer[0])
    if kinds == ("set", "set"):
        return match_unordered(values(gold), values(answer))
    if kinds in (("tuple", "tuple"), ("bracket", "bracket")):
        return match_in_order(gold[1:], answer[1:])
    if kinds == ("ratio", "ratio"):
        return equal_ratios(gold, answer)
    if "ratio" in kinds:
        ratio, other = (gold, answer) if gold[0] == "ratio" else (answer, gold)
        return len(ratio) == 3 and equal(other, ("div", ratio[1], ratio[2]))
    if set(kinds) == {"matrix", "bracket"}:
        flat, cells = _as_vectors(gold), _as_vectors(answer)
        if flat is not None and cells is not None:
            return match_in_order(flat, cells)
    first, second = grid(gold), grid(answer)
    if "matrix" in kinds and first is not None and second is not None:
        if [len(row) for row in first] != [len(row) for row in second]:
            return False
        return match_in_order(
            [cell for row in first for cell in row], [cell for row in second for cell in row]
        )
    return False


def _as_vectors(node: Node) -> list[Node] | None:
    """Return the cells of a matrix of one row or column, or of a plain list in brackets."""
    if node[0] == "matrix":
        rows = list(node[1:])
        if len(rows) > 1 and any(len(row) > 1 for row in rows):
            return None
        return [cell for row in rows for cell in row]
    is_plain = not any(part[0] in ("bracket", "tuple") for part in node[1:])
    return list(node[1:]) if is_plain else None


def equal_ratios(gold: Node, answer: Node) -> bool | None:
    """Compare ratios in proportion (6:8 is 3:4), unless they may be times of day (7:15)."""
    if len(gold) != len(answer):
        return False
    if len(gold) == 3 and (_clock(gold) or _clock(answer)):
        return match_in_order(gold[1:], answer[1:])
    first, second = (
        ("div", gold[1], answer[1]),
        [("div", g, a) for g, a in zip(gold[2:], answer[2:], strict=True)],
    )
    try:
        return match_in_order([first] * len(second), second)
    except NoValue:
        return match_in_order(gold[1:], answer[1:])


def _clock(ratio: Node) -> bool:
    hours, minutes = exact(ratio[1]), exact(ratio[2])
    return hours is not None and minutes is not None and 0 <= hours < 24 and 10 <= minutes < 60


def scaled_matrix(node: Node) -> Node:
    """Carry out a number times a matrix, or a matrix divided by a number."""
    if node[0] == "neg" and node[1][0] == "matrix":
        return ("matrix", *(tuple(("neg", cell) for cell in row) for row in node[1][1:]))
    if node[0] not in ("mul", "div") or (node[1][0] == "matrix") == (node[2][0] == "matrix"):
        return node
    if node[2][0] == "matrix":
        return (
            node
            if node[0] == "div"
            else ("matrix", *(tuple(("mul", node[1], c) for c in r) for r in node[2][1:]))
        )
    return ("matrix", *(tuple((node[0], cell, node[2]) for cell in row) for row in node[1][1:]))


def grid(node: Node) -> list[Sequence[Node]] | None:
    """Return the rows of a matrix, of [[1, 2], [3, 4]], or of a vector written as a tuple."""
    if node[0] == "matrix":
        rows: list[Sequence[Node]] = list(node[1:])
        return rows
    if node[0] in ("bracket", "tuple") and len(node) > 1:
        if all(row[0] in ("bracket", "tuple") for row in node[1:]):
            return [row[1:] for row in node[1:]]
        if node[0] == "tuple":
            return [[part] for part in node[1:]]
    return None


# -- relations


def assigned(node: Node) -> bool:
    """Whether the left side of an equation only names the right one: x = …, f(x) = …, |AB| = …"""
    if node[0] != "rel" or node[1] not in ("=", "in"):
        return False
    left = node[2]
    if left[0] == "tuple":
        return all(part[0] == "sym" for part in left[1:])
    if left[0] == "sym":
        return left[1] not in symbols(node[3])
    return is_quantity(left)


_ANGLE_FUNCTIONS = frozenset("sin cos tan cot sec csc".split())


def is_quantity(node: Node) -> bool:
    """Whether a node names a quantity rather than an equation to solve: f(2), sin A, AB/BC."""
    if node[0] == "text":
        return True
    names = symbols(node)
    if node[0] == "call" and node[1].startswith("f:"):
        return True
    if not names:
        return False
    if node[0] == "ratio":
        return True
    if node[0] == "call" and node[1] in _ANGLE_FUNCTIONS:
        return all(len(name) > 1 or name.isupper() for name in names)  # an angle: alpha, A
    if node[0] == "mul" and node[1][0] == "sym" and node[2][0] in ("sym", "num"):
        return node[1][1].isupper() or node[2][0] == "sym"
    return all(name.lstrip("\\")[-1:].isupper() or name[:1].isupper() for name in names)


def equal_relations(gold: Node, answer: Node) -> bool | None:
    if gold[0] == "rel" and answer[0] == "rel":
        if gold[1] != answer[1]:
            return False
        if not symbols(gold[2]) | symbols(gold[3]) and not is_quantity(gold[2]):
            # A sum carried out is not a truth value: 2 + 2 = 4 is not 1 = 1.
            sides = {answer[2], answer[3]} == {gold[2], gold[3]}
            return sides or (answer[2] == gold[2] and equal(gold[3], answer[3]))
        if gold[2] == answer[2] and equal(gold[3], answer[3]):
            return True
        if gold[1] != "=":
            return None
        functions = _function_definitions(gold, answer)
        if functions is not None:
            return equal(*functions)
        if assigned(gold) and assigned(answer) and not symbols(gold[3]) and not symbols(answer[3]):
            return gold[2] == answer[2] and equal(gold[3], answer[3])
        return proportional(gold, answer)
    if answer[0] == "rel":
        is_equation = answer[1] == "=" and len(answer) == 4
        if is_equation and answer[3][0] == "sym" and not symbols(answer[2]):
            answer = ("rel", "=", answer[3], answer[2])  # 36 = x
        name = answer[2][1] if answer[2][0] == "sym" else None
        if "'f:" in repr(gold) and (name is None or f"'f:{name}" in repr(gold)):
            return False  # "0 = f(0)" offers two values for f(0)
        # A name, or something carried out, before the value: x = 5, 2 + 3 = 5, m + n = 34.
        if answer[1] not in ("=", "in") or _is_reversed(answer[2]):
            return False
        named = assigned(answer) or not symbols(answer[2]) or len(symbols(answer[2])) > 1
        if not named or (symbols(answer[2]) & symbols(answer[3]) and not assigned(answer)):
            return False
        return equal(gold, answer[3])
    if gold[1] == "=" and not symbols(gold[2]) and not symbols(gold[3]):
        return consistent(gold) and equal(gold[3], answer)
    return equal(gold[3], answer) if assigned(gold) else False


def _is_reversed(names: Node) -> bool:
    """Whether a tuple names neighbouring letters backwards: (y, x) = (1, 2) is not (1, 2)."""
    if names[0] != "tuple" or any(part[0] != "sym" or len(part[1]) != 1 for part in names[1:]):
        return False
    letters = [ord(part[1]) for part in names[1:]]
    return len(letters) > 1 and all(a - b == 1 for a, b in itertools.pairwise(letters))


def _function_definitions(gold: Node, answer: Node) -> tuple[Node, Node] | None:
    """Return the right sides of f(x) = … and f(t) = … (or y = …) in the same variable; None for
    anything else.
    """
    if gold[2] == ("sym", "y") and _defines_function(answer):
        same = answer[2][2][1] in symbols(gold[3])
        return (gold[3], answer[3]) if same else None
    if not _defines_function(gold):
        return None
    variable = gold[2][2]
    if _defines_function(answer) and gold[2][1] == answer[2][1]:
        body = substituted(answer[3], answer[2][2][1], variable)
        if answer[2][2] != variable and variable[1] in symbols(answer[3]):
            return None
        return _with_the_same_constant(gold[3], body, variable[1])
    if answer[2] == ("sym", "y"):
        return gold[3], answer[3]
    return None


def _defines_function(node: Node) -> bool:
    left = node[2]
    return bool(
        left[0] == "call" and left[1].startswith("f:") and len(left) == 3 and left[2][0] == "sym"
    )


_CONSTANTS = frozenset("a b c C k K A m lambda".split())


def _with_the_same_constant(gold: Node, answer: Node, variable: str) -> tuple[Node, Node]:
    """Rename the one arbitrary constant of an answer: f(x) = cx is f(x) = kx."""
    here, there = symbols(gold) - {variable}, symbols(answer) - {variable}
    if len(here) == len(there) == 1 and here != there and here | there <= _CONSTANTS:
        answer = substituted(answer, min(there), ("sym", min(here)))
    return gold, answer


# Names that a family of solutions or an antiderivative may choose freely.
_COUNTERS = frozenset("k n m l j".split())


def with_dummy_renamed(gold: Node, answer: Node, is_family: bool) -> Node | None:
    """Return the answer with its counter or constant named as in the reference: 2n pi for 2k pi, +
    c for + C.

    A counter is only free in a family of solutions (`is_family`: the text says it is a whole
    number) or next to pi.
    """
    if gold[0] != answer[0]:  # x = 2k pi, 2n pi
        gold, answer = (node[3] if assigned(node) else node for node in (gold, answer))
    here, there = symbols(gold) - symbols(answer), symbols(answer) - symbols(gold)
    if len(here) != 1 or len(there) != 1:
        return None
    ours, theirs = min(here), min(there)
    constant = {ours, theirs} == {"c", "C"}
    counter = ours in _COUNTERS and theirs in _COUNTERS and (is_family or "'pi'" in repr(gold))
    return substituted(answer, theirs, ("sym", ours)) if constant or counter else None


def _numerator(node: Node) -> tuple[Node, Node]:
    """Return a sum of quotients as one quotient: numerator and denominator, not reduced."""
    one = ("num", Number(Fraction(1)))
    if node[0] == "neg":
        over, under = _numerator(node[1])
        return ("neg", over), under
    if node[0] in ("add", "sub", "mul", "div") and "'div'" in repr(node):
        (a, b), (c, d) = _numerator(node[1]), _numerator(node[2])
        if node[0] == "mul":
            return ("mul", a, c), ("mul", b, d)
        if node[0] == "div":
            return ("mul", a, d), ("mul", b, c)
        if b == d:
            return (node[0], a, c), b
        return (node[0], ("mul", a, d), ("mul", c, b)), ("mul", b, d)
    return node, one


def proportional(gold: Node, answer: Node) -> bool | None:
    """Whether two equations are equal up to a constant factor."""
    first, second = ("sub", gold[2], gold[3]), ("sub", answer[2], answer[3])
    if symbols(first) != symbols(second):
        return False
    multiple = is_multiple(first, second)
    if not multiple and ("'div'" in repr(first) or "'div'" in repr(second)):
        # xy = 1 and y = 1/x, with the quotients multiplied out
        first, second = _numerator(first)[0], _numerator(second)[0]
        multiple = is_multiple(first, second)
    if multiple is not None:
        return multiple
    ratios: list[Any] = []

    def steady(a: Any, b: Any) -> bool:
        if not a or not b:
            return bool(a == b)
        ratios.append(a / b)
        return bool(abs(ratios[-1] - ratios[0]) <= abs(ratios[0]) * 1e-20)

    try:
        return equal_at_points(first, second, steady)
    except Undefined:
        return None


# -- regions of the line


def regional(node: Node) -> bool:
    """Whether a tree can only be a region: an interval, union, inequality, the reals, no
    solution.
    """
    if node[0] in ("interval", "union", "minus", "cap", "reals") or node == ("set",):
        return True
    if node[0] == "rel":
        return node[1] not in ("=", "in") or (node[1] == "in" and node[3][0] not in _COLLECTIONS)
    return node[0] in _COLLECTIONS and any(regional(part) for part in node[1:])


def equal_regions(gold: Node, answer: Node) -> bool | None:
    if answer[0] == "rel" and not symbols(answer):
        return False  # 1 = 2 is not the empty set
    about, whose = symbols(gold) - {""}, symbols(answer) - {""}
    single = len(about) == len(whose) == 1 and "" not in symbols(gold) | symbols(answer)
    if single and about != whose and gold[0] not in ("tuple", "bracket", "interval", "union"):
        return False  # k < 0 says nothing about x
    try:
        if _is_several_regions(answer) and _overlap(answer[1:]):
            return False  # [0,3); (0,3) offers two answers
        first, second = region(gold), region(answer)
    except Undefined:
        first = second = None
    if first is None or second is None:
        here, there = symbolic_pieces(gold), symbolic_pieces(answer)
        if here is not None and there is not None:
            return _equal_pieces(here, there) or bool(_equal_inequalities(gold, answer))
        if gold in (("reals",), ("set",)):
            return False  # x^2 >= 0 restates the question
        solved = _equal_to_solutions(gold, answer)
        if solved is not None:
            return solved
        return _equal_inequalities(gold, answer)
    return _equal_pieces(first, second)


def _is_several_regions(node: Node) -> bool:
    """Whether a node lists regions. "x > 2 and x < 5" is one, and its inequalities must overlap."""
    if node[0] == "both":
        return any(part[0] in ("interval", "tuple", "bracket") for part in node[1:])
    return node[0] in ("list", "either")


def _overlap(parts: Sequence[Node]) -> bool:
    """Whether two of several regions have a point in common."""
    regions = [region(part) for part in parts]
    return any(
        one is not None and other is not None and bool(meet(one, other))
        for one, other in itertools.combinations(regions[:20], 2)
    )


def _equal_to_solutions(gold: Node, answer: Node) -> bool | None:
    """Compare a polynomial inequality with a region of the line: x^2 < 4 and -2 < x < 2; None if
    SymPy has to.
    """
    for relation, other in ((gold, answer), (answer, gold)):
        if relation[0] != "rel" or relation[1] == "in":
            continue
        pieces = solution_pieces(relation)
        if pieces is None:
            continue
        try:
            written = region(other)
        except Undefined:
            return None
        if written is None or len(written) != len(pieces):
            return None if written is None else False
        name = min(symbols(relation[2]) | symbols(relation[3]))
        difference = ("sub", relation[2], relation[3])
        for (low, low_open, high, high_open), piece in zip(pieces, written, strict=True):
            if (low_open, high_open) != (piece[1], piece[3]):
                return False
            for root, end in ((low, piece[0]), (high, piece[2])):
                if (root is None) != (end is None):
                    return False
                if end is None:
                    continue
                # Near the root, and exactly a root.
                near = abs(number(end, {}) - root) <= (1 + abs(root)) * 1e-15
                zero = ("num", Number(Fraction(0)))
                if not near or not equal(zero, substituted(difference, name, end)):
                    return False
        return True
    return None


def _equal_pieces(first: Sequence[Piece], second: Sequence[Piece]) -> bool:
    if len(first) != len(second):
        return False
    for one, other in zip(first, second, strict=True):
        if (one[1], one[3]) != (other[1], other[3]):
            return False
        for a, b in ((one[0], other[0]), (one[2], other[2])):
            if (a is None) != (b is None):
                return False
            if a is not None and b is not None and not equal(a, b):
                return False
    return True


def _equal_inequalities(gold: Node, answer: Node) -> bool | None:
    """Compare inequalities in several symbols: proportional expressions, the same side."""
    if gold[0] != "rel" or answer[0] != "rel" or gold[1] == "in" or answer[1] == "in":
        # An inequality that has to be solved first, x^2 < 4: left to SymPy.
        return None if "rel" in (gold[0], answer[0]) or gold[0] == answer[0] else False
    if len(symbols(gold)) < 2 and len(symbols(answer)) < 2:
        return None
    flip = {"<": ">", "<=": ">=", ">": "<", ">=": "<=", "!=": "!=", "=": "="}
    signs: list[Any] = []

    def steady(a: Any, b: Any) -> bool:
        if not a or not b:
            return bool(a == b)
        signs.append(a / b)
        return bool(abs(signs[-1] - signs[0]) <= abs(signs[0]) * 1e-20)

    if (
        not equal_at_points(("sub", gold[2], gold[3]), ("sub", answer[2], answer[3]), steady)
        or not signs
    ):
        return False
    expected = gold[1] if signs[0] > 0 else flip[gold[1]]
    return bool(answer[1] == expected)
