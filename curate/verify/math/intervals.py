"""Intervals, inequalities and unions as pieces of the real line, sorted and merged."""

from __future__ import annotations

from typing import Any

from curate.verify.math.exact import Undefined, symbols
from curate.verify.math.numeric import context, number
from curate.verify.math.parser import Node

Piece = tuple[
    Node | None, bool, Node | None, bool
]  # low (None: minus infinity), low is open, high, high is open


def region(node: Node) -> list[Piece] | None:
    """Return sorted, merged pieces of the line; None if the tree is not a region of numbers."""
    kind = node[0]
    if kind == "reals":
        return [(None, True, None, True)]
    if kind == "interval":
        return tidy([_piece(node[3], node[1] == "(", node[4], node[2] == ")")])
    if kind in ("tuple", "bracket") and len(node) == 3:
        if _are_reversed(node[1], node[2]):
            return None  # (2, -1) is a point
        return tidy([_piece(node[1], kind == "tuple", node[2], kind == "tuple")])
    if kind == "set":
        return tidy([_piece(part, False, part, False) for part in node[1:]])
    if kind in ("union", "either", "list"):
        parts = [region(part) for part in node[1:]]
        return (
            None
            if any(part is None for part in parts)
            else tidy([piece for part in parts for piece in part or []])
        )
    if kind in ("cap", "both", "minus"):
        pieces = region(node[1])
        for part in node[2:]:
            other = region(part)
            if pieces is None or other is None:
                return None
            pieces = meet(pieces, rest(other) if kind == "minus" else other)
        return pieces
    if kind == "rel":
        return _region_of_relation(node)
    return (
        [_piece(node, False, node, False)]
        if not symbols(node) and kind in ("num", "neg", "div", "call", "const")
        else None
    )


def _are_reversed(low: Node, high: Node) -> bool:
    if symbols(low) or symbols(high):
        return False
    try:
        return bool(number(low, {}) > number(high, {}))
    except (Undefined, ValueError, TypeError, ZeroDivisionError, OverflowError):
        return False


def _region_of_relation(node: Node) -> list[Piece] | None:
    _, operator, left, right = node[:4]
    if operator == "in":
        return region(right) if _is_name(left) else None
    if not _is_name(left) and _is_name(right):
        left, right = right, left
        operator = {"<": ">", "<=": ">=", ">": "<", ">=": "<="}.get(operator, operator)
    if not _is_name(left) or symbols(right):
        return None
    if operator == "=":
        return [_piece(right, False, right, False)]
    if operator == "!=":
        return rest([_piece(right, False, right, False)])
    opened = operator in ("<", ">")
    if operator in ("<", "<="):
        return [_piece(None, True, right, opened)]
    return [_piece(right, opened, None, True)]


def _is_name(node: Node) -> bool:
    """Whether a node is what an inequality is about: x, or f(x)."""
    return node[0] == "sym" or (node[0] == "call" and node[1].startswith("f:"))


def symbolic_pieces(node: Node) -> list[Piece] | None:
    """Return the pieces of a region with symbolic ends, as they are written; None for anything
    else.
    """
    kind = node[0]
    if kind == "interval":
        return [_ends(node[3], node[1] == "(", node[4], node[2] == ")")]
    if kind in ("tuple", "bracket") and len(node) == 3:
        return [_ends(node[1], kind == "tuple", node[2], kind == "tuple")]
    if kind in ("union", "either", "list"):
        parts = [symbolic_pieces(part) for part in node[1:]]
        if any(part is None for part in parts):
            return None
        return [piece for part in parts for piece in part or []]
    if kind == "both" and len(node) == 3:  # a < x < b
        first, second = symbolic_pieces(node[1]), symbolic_pieces(node[2])
        if not (first and second and len(first) == len(second) == 1):
            return None
        (low, low_open, high, high_open), other = first[0], second[0]
        if low is None and other[2] is None:
            low, low_open = other[0], other[1]
        elif high is None and other[0] is None:
            high, high_open = other[2], other[3]
        else:
            return None
        return [(low, low_open, high, high_open)]
    if kind != "rel" or node[1] not in ("<", "<=", ">", ">=", "in"):
        return None
    _, operator, left, right = node[:4]
    if operator == "in":
        return symbolic_pieces(right) if _is_name(left) else None
    if left[0] == "sym" and left[1] not in _VARIABLES and right[0] == "sym":
        left, right = right, left
        operator = {"<": ">", "<=": ">=", ">": "<", ">=": "<="}[operator]
    elif not _is_name(left):
        if not _is_name(right):
            return None
        left, right = right, left
        operator = {"<": ">", "<=": ">=", ">": "<", ">=": "<="}[operator]
    if operator in ("<", "<="):
        return [_ends(None, True, right, operator == "<")]
    return [_ends(right, operator == ">", None, True)]


_VARIABLES = frozenset("x y z t".split())


def _ends(low: Node | None, low_open: bool, high: Node | None, high_open: bool) -> Piece:
    low = None if low == ("neg", ("const", "inf")) else low
    high = None if high == ("const", "inf") else high
    return (low, True if low is None else low_open, high, True if high is None else high_open)


def _piece(low: Node | None, low_open: bool, high: Node | None, high_open: bool) -> Piece:
    piece = _ends(low, low_open, high, high_open)
    for end in (piece[0], piece[2]):
        if end is not None:
            _size(end)  # raises if the end is not a number
    return piece


def _size(node: Node) -> Any:
    value = number(node, {})
    if context().im(value):
        raise Undefined("a complex end of an interval")
    return context().re(value)


def _low(piece: Piece) -> Any:
    return -context().inf if piece[0] is None else _size(piece[0])


def _high(piece: Piece) -> Any:
    return context().inf if piece[2] is None else _size(piece[2])


def tidy(pieces: list[Piece]) -> list[Piece]:
    """Sort pieces by their lower ends, merge touching ones and drop empty ones."""
    kept: list[Piece] = []
    alive = [
        p for p in pieces if _low(p) < _high(p) or (_low(p) == _high(p) and not p[1] and not p[3])
    ]
    for piece in sorted(alive, key=lambda p: (_low(p), p[1])):
        if kept:
            last = kept[-1]
            touch = _low(piece) < _high(last) or (
                _low(piece) == _high(last) and not (piece[1] and last[3])
            )
            if touch:
                further = _high(piece) > _high(last) or (
                    _high(piece) == _high(last) and not piece[3]
                )
                kept[-1] = (last[0], last[1], piece[2], piece[3]) if further else last
                continue
        kept.append(piece)
    return kept


def meet(first: list[Piece], second: list[Piece]) -> list[Piece]:
    """Return the intersection of two regions."""
    pieces: list[Piece] = []
    for a in first:
        for b in second:
            low = max((a, b), key=lambda p: (_low(p), p[1]))
            high = min((a, b), key=lambda p: (_high(p), not p[3]))
            pieces.append((low[0], low[1], high[2], high[3]))
    return tidy(pieces)


def rest(pieces: list[Piece]) -> list[Piece]:
    """Return the complement of a region."""
    remaining: list[Piece] = [(None, True, None, True)]
    for low, low_open, high, high_open in pieces:
        outside: list[Piece] = []
        if low is not None:
            outside.append((None, True, low, not low_open))
        if high is not None:
            outside.append((high, not high_open, None, True))
        remaining = meet(remaining, outside)
    return remaining
