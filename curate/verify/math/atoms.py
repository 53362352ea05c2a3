"""The parts of an expression that are no arithmetic: brackets, commands, functions, matrices, sets, names.

The base of the parser in `notation.py`, which fills in how a list, a sum and a power are read.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Any

from curate.verify.math.lexer import Excessive, Unreadable
from curate.verify.math.numbers import Number, parse_number

Node = tuple[Any, ...]

MAX_DEPTH = 40  # ours

FACTORS = frozenset(
    ["\\frac", "\\sqrt", "\\pi", "\\infty", "\\binom", "\\lfloor", "\\lceil", "\\|", "\\imath"]
)
# What makes another symbol of one (a vector, a mean), and what names a figure by its points.
MARKS = frozenset(
    f"\\{name}"
    for name in (
        "vec",
        "bar",
        "overline",
        "hat",
        "tilde",
        "widehat",
        "overrightarrow",
        "overleftarrow",
    )
)
FIGURES = frozenset(["\\angle", "\\triangle"])
_MATRICES = frozenset(
    ["pmatrix", "bmatrix", "matrix", "vmatrix", "Bmatrix", "smallmatrix", "array"]
)


class Atoms:
    """A cursor over tokens, and everything that can stand between two operators."""

    def __init__(self, found: list[tuple[str, str]]) -> None:
        self.tokens, self.at, self.depth = found, 0, 0

    def peek(self, ahead: int = 0) -> tuple[str, str]:
        return self.tokens[self.at + ahead] if self.at + ahead < len(self.tokens) else ("end", "")

    def take(self, value: str) -> bool:
        if self.peek()[1] == value and self.peek()[0] != "text":
            self.at += 1
            return True
        return False

    def need(self, value: str) -> None:
        if not self.take(value):
            raise Unreadable(f"expected {value!r}, found {self.peek()[1]!r}")

    def deeper(self) -> None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise Excessive("nested too deeply")

    def follows(self, *values: str) -> bool:
        return self.peek()[0] in ("op", "cmd") and self.peek()[1] in values

    # -- what notation.py fills in

    def items(self, until: tuple[str, ...]) -> Node:
        raise NotImplementedError

    def relation(self) -> Node:
        raise NotImplementedError

    def sum(self) -> Node:
        raise NotImplementedError

    def signed(self) -> Node:
        raise NotImplementedError

    def power(self) -> Node:
        raise NotImplementedError

    def script(self) -> Node:
        raise NotImplementedError

    def bare_argument(self) -> Node:
        raise NotImplementedError

    # -- atoms

    def atom(self) -> Node:
        self.deeper()
        try:
            kind, value = self.peek()
            self.at += 1
            if kind == "num":
                number = parse_number(value)
                if number is None and value.isdigit():
                    return ("num", Number(Fraction(int(value))))
                if number is None:
                    raise Excessive("a number too large to compute")
                return ("num", number)
            if kind == "sym":
                return ("const", value) if value in ("e", "i") else ("sym", value)
            if kind == "text":
                return ("text", value)
            if kind == "fn":
                return self.function(value)
            if kind == "env" and value.startswith("\\begin"):
                return self.matrix(value)
            if kind == "op":
                return self.group(value)
            if kind == "cmd":
                return self.command(value)
            raise Unreadable(
                "the expression ends early" if kind == "end" else f"unexpected {value!r}"
            )
        finally:
            self.depth -= 1

    def group(self, opening: str) -> Node:
        if opening == "{":
            node = self.items(("}",))
            self.need("}")
            return node
        if opening == "|":
            self.inside_bars = True
            node = self.sum()
            self.inside_bars = False
            self.need("|")
            return ("call", "abs", node)
        if opening not in ("(", "["):
            raise Unreadable(f"unexpected {opening!r}")
        if opening == "(" and self.take(")"):
            return ("tuple",)
        if opening == "[" and self.take("]"):
            return ("bracket",)
        outside, self.inside_bars = getattr(self, "inside_bars", False), False
        node = self.items((")", "]"))
        self.inside_bars = outside
        closing = self.peek()[1]
        if closing not in (")", "]"):
            raise Unreadable(f"expected a closing bracket, found {closing!r}")
        self.at += 1
        parts = node[1:] if node[0] == "list" else None
        if (opening, closing) in (("(", "]"), ("[", ")")):
            if parts is None or len(parts) != 2:
                raise Unreadable("mismatched brackets")
            return ("interval", opening, closing, *parts)
        if parts is None:
            return ("bracket", node) if opening == "[" and node[0] in ("bracket", "tuple") else node
        return ("tuple" if opening == "(" else "bracket", *parts)

    def argument(self) -> Node:
        """A braced group, or the next sign, as \\frac12 has them."""
        if self.take("{"):
            node = self.items(("}",))
            self.need("}")
            return node
        kind, value = self.peek()
        if kind == "num" and len(value) > 1 and value.isdigit():
            self.tokens[self.at : self.at + 1] = [("num", value[0]), ("num", value[1:])]
        return self.atom()

    def command(self, value: str) -> Node:
        if value == "\\frac":
            over = self.argument()
            if over == ("sym", "d") and self.peek()[1] == "{" and self.peek(1)[1] == "d":
                raise Unreadable("a derivative")
            return ("div", over, self.argument())
        if value == "\\sqrt":
            if self.take("["):
                degree = self.sum()
                self.need("]")
                return ("call", "root", self.argument(), degree)
            return ("call", "sqrt", self.argument())
        if value in MARKS:
            return self.marked(value)
        if value in FIGURES:
            return self.figure(value)
        if value == "\\binom":
            upper = self.argument()
            return ("call", "binom", upper, self.argument())
        if value in ("\\pi", "\\infty"):
            return ("const", "pi" if value == "\\pi" else "inf")
        if value == "\\imath":
            return ("const", "i")
        if value == "\\emptyset":
            return ("set",)
        if value == "\\RR":
            return ("reals",)
        if value == "\\{":
            return self.braced_set()
        if value in ("\\lfloor", "\\lceil"):
            node = self.sum()
            self.need("\\rfloor" if value == "\\lfloor" else "\\rceil")
            return ("call", "floor" if value == "\\lfloor" else "ceil", node)
        if value == "\\$":
            return self.atom()
        raise Unreadable(f"unknown command {value}")

    def marked(self, mark: str) -> Node:
        """\\vec{a}, \\bar x, \\overline{AB}: a symbol of its own, told apart by its mark."""
        start = self.at
        node = self.argument()
        if node[0] not in ("sym", "mul") or any(
            kind not in ("sym", "op") for kind, _ in self.tokens[start : self.at]
        ):
            raise Unreadable(f"{mark} over more than a name")
        letters = [value for kind, value in self.tokens[start : self.at] if kind == "sym"]
        segment = mark == "\\overline" and len(letters) == 2  # AB is BA
        return ("sym", mark + "".join(sorted(letters) if segment else letters))

    def figure(self, kind: str) -> Node:
        """An angle or a triangle named by its points, up to three; an angle reads the same backwards."""
        start = self.at
        while (
            self.peek()[0] == "sym"
            and self.at - start < 3
            and (self.at == start or self.peek()[1].isupper())
        ):
            self.at += 1
        name = "".join(value for _, value in self.tokens[start : self.at])
        if not name and self.peek()[0] == "num":  # angle 1
            self.at += 1
            name = self.tokens[start][1]
        if not name:
            raise Unreadable("a figure without a name")
        return ("sym", kind + (min(name, name[::-1]) if kind == "\\angle" else name))

    def braced_set(self) -> Node:
        if self.take("\\}"):
            return ("set",)
        self.inside_bars = True
        node = self.items(("\\}", "|", ":"))
        self.inside_bars = False
        if self.take("|") or self.take(":"):  # {x | condition}
            condition = self.items(("\\}",))
            self.need("\\}")
            # the name of the variable says nothing: {x | x > 2} is {y | y > 2}
            return _renamed(condition, node[1]) if node[0] == "sym" else condition
        if node[0] == "ratio" and len(node) == 3 and node[1][0] == "sym":
            raise Unreadable("a set with a condition")
        self.need("\\}")
        return ("set", *node[1:]) if node[0] == "list" else ("set", node)

    def matrix(self, begin: str) -> Node:
        name = re.search(r"\{([a-zA-Z*]+)\}", begin)
        system = name is not None and name.group(1) in ("cases", "aligned")
        if name is None or not (system or name.group(1) in _MATRICES):
            raise Unreadable("an environment")
        rows: list[list[Node]] = [[]]
        while True:
            kind, value = self.peek()
            if kind == "env":
                self.at += 1
                break
            if kind == "end":
                raise Unreadable("an open matrix")
            if kind == "row":
                self.at += 1
                rows.append([])
            elif value == "&" or (system and value in (",", ";")):
                self.at += 1
            else:
                rows[-1].append(self.relation() if system else self.sum())
        rows = [row for row in rows if row]
        if not rows or len({len(row) for row in rows}) != 1:
            raise Unreadable("a ragged matrix")
        if system:
            if len(rows[0]) > 1 or any(row[0][0] != "rel" for row in rows):
                raise Unreadable("a function by cases")
            return ("list", *(row[0] for row in rows)) if len(rows) > 1 else rows[0][0]
        if name.group(1) == "vmatrix":
            raise Unreadable("a determinant")
        return ("matrix", *(tuple(row) for row in rows))

    def function(self, name: str) -> Node:
        name = {"asin": "arcsin", "acos": "arccos", "atan": "arctan"}.get(name, name)
        if name == "sqrt":
            return (
                "call",
                "sqrt",
                self.argument() if self.peek()[1] in ("{", "(") else self.power(),
            )
        base: Node | None = None
        exponent: Node | None = None
        while self.peek() in (("op", "_"), ("op", "^")):
            if self.take("_"):
                base = self.script()
            elif self.take("^"):
                exponent = self.script()
        if self.peek()[1] == "(":
            self.at += 1
            argument = self.group("(")
        elif self.peek()[1] == "{":
            argument = self.argument()
        else:
            argument = self.bare_argument()
        arguments = argument[1:] if argument[0] == "tuple" else (argument,)
        if name == "log" and base is not None:
            node: Node = ("call", "logb", arguments[0], base)
        else:
            node = ("call", name, *arguments)
        if exponent is None:
            return node
        if exponent == ("neg", ("num", Number(Fraction(1)))) and name in ("sin", "cos", "tan"):
            return ("call", "arc" + name, *arguments)
        return ("pow", node, exponent)


def _renamed(node: Node, name: str) -> Node:
    if node == ("sym", name):
        return ("sym", "")
    return tuple(
        _renamed(part, name) if isinstance(part, tuple) and part else part for part in node
    )
