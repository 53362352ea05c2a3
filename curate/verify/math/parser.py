"""Parse mathematical notation (LaTeX, ASCII, Unicode) into a small tree.

A node is a tuple whose first field is its kind:

    ("num", Number)  ("sym", name)  ("text", words)  ("const", "pi" | "e" | "i" | "inf")
    ("add" | "sub" | "mul" | "div" | "pow", a, b)  ("neg", a)  ("pm", sign, a | None, b)
    ("call", function, *arguments); "f:" in front of the name of an unknown function
    ("sum" | "prod" | "integral", name, low, high, body)
    ("list", *items)  ("either", *items)  ("both", *items): with commas, "or", "and" between them
    ("tuple" | "bracket" | "set", *items)  ("interval", opening, closing, a, b)
    ("matrix", *rows)  ("ratio", *items)  ("union" | "minus" | "cap", a, b)
    ("rel", operator, a, b, *between)  ("mod", a, m)  ("base", digits, base)
    ("cong", a | None, b, m): a = b modulo m  ("reals",)  ("integers",)

Length and depth are bounded, so that reading takes bounded time. Other notation raises
`Unreadable`: limits, derivatives, prose. Some of it is left to `math-verify`.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Any

from curate.verify.math.lexer import Excessive, Unreadable, tokens, unwrap
from curate.verify.math.numbers import Number, parse_number

__all__ = ["Excessive", "Node", "Unreadable", "parse", "unwrap"]

MAX_LENGTH = 1000  # characters of an expression; ours
Node = tuple[Any, ...]

MAX_DEPTH = 40  # ours

_RANGES = {"\\sum": "sum", "\\prod": "prod", "\\int": "integral"}
FACTORS = frozenset(
    [
        "\\frac",
        "\\sqrt",
        "\\pi",
        "\\infty",
        "\\binom",
        "\\lfloor",
        "\\lceil",
        "\\|",
        "\\imath",
        "\\sum",
        "\\prod",
        "\\int",
    ]
)
# Marks that make a new symbol (a vector, a mean), and figures named by their points.
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


# Letters that name a function even if their argument is an expression: f(a+b), P(A+B).
_ALWAYS_FUNCTIONS = frozenset("f g".split())
_FUNCTION_LETTERS = frozenset("h F G H P E phi varphi psi Phi Psi".split())


def applied_names(gold: str, answer: str) -> frozenset[str]:
    """Return the letters that a pair of texts uses as functions: f in f(0), I in I(0)e^{-t}, but
    not k in k(x+1).

    A letter in front of brackets is a function if the brackets hold one number, one symbol or a
    list. Otherwise it is one if it usually is (`f`, `P`) and never occurs without an argument.
    """
    simple: set[str] = set()
    compound: set[str] = set()
    bare: set[str] = set()
    for text in (gold, answer):
        if _APPLIED.search(text):
            try:
                _collect_applied(tokens(text), simple, compound, bare)
            except Unreadable:
                continue
        else:
            bare.update(_LETTER.findall(text))
    unclear = compound & _FUNCTION_LETTERS - bare
    return frozenset(simple | compound & _ALWAYS_FUNCTIONS | unclear)


_APPLIED = re.compile(
    r"(?<!ln)(?<!sin)(?<!cos)(?<!tan)(?<!log)(?<!exp)(?<!left)(?<=[a-zA-Z}'])\s*(?:\\left\s*)?\("
)
_LETTER = re.compile(r"(?<![a-zA-Z\\])[a-zA-Z](?![a-zA-Z])|(?<=\\)(?:var)?(?:phi|psi|Phi|Psi)")


def _collect_applied(
    parts: list[tuple[str, str]], simple: set[str], compound: set[str], bare: set[str]
) -> None:
    for i, (kind, name) in enumerate(parts):
        if kind != "sym":
            continue
        at = _after_marks(parts, i + 1)
        if at >= len(parts) or parts[at] != ("op", "("):
            bare.add(name)
            continue
        depth, end = 0, at
        while end < len(parts):
            depth += (parts[end] == ("op", "(")) - (parts[end] == ("op", ")"))
            if not depth:
                break
            end += 1
        content = [part for part in parts[at + 1 : end] if part != ("op", "-")]
        listed = any(part in (("op", ","), ("op", "|"), ("op", "=")) for part in content)
        atom = len(content) == 1 and content[0][0] in ("num", "sym")
        (simple if listed or atom else compound).add(name)


def _after_marks(parts: list[tuple[str, str]], at: int) -> int:
    """Return the index after the primes, subscript and exponent -1 of a letter."""
    while at < len(parts) and parts[at] == ("op", "'"):
        at += 1
    if at + 1 < len(parts) and parts[at] == ("op", "_"):
        if parts[at + 1] != ("op", "{"):
            return at + 2
        while at < len(parts) and parts[at] != ("op", "}"):
            at += 1
        return at + 1
    if parts[at : at + 5] == [("op", "^"), ("op", "{"), ("op", "-"), ("num", "1"), ("op", "}")]:
        return at + 5
    return at


def parse(text: str, functions: frozenset[str] = frozenset()) -> Node:
    """Return the tree of an expression, a list or a relation; `functions` are letters that take
    arguments.

    Raises `Unreadable`.
    """
    if len(text) > MAX_LENGTH:
        raise Excessive("an expression that is too long")
    number = parse_number(text)
    if number is not None:
        return ("num", number)
    parser = _Parser(tokens(text), functions)
    node = parser.items(())
    if parser.at < len(parser.tokens):
        raise Unreadable(f"unexpected {parser.peek()!r}")
    return node


class _Parser:
    """A cursor over tokens; each method reads one level of the grammar, loosest binding first."""

    def __init__(
        self, parts: list[tuple[str, str]], functions: frozenset[str] = frozenset()
    ) -> None:
        self.tokens, self.at, self.depth = parts, 0, 0
        self.functions = functions
        self.inside_set = False  # whether ":" comes before a condition and is not a ratio
        self.inside_bars = (
            False  # whether the next "|" closes an absolute value or a set's condition
        )

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

    # -- lists and relations

    def items(self, until: tuple[str, ...]) -> Node:
        """Read items up to a closing sign; several become a list, alternatives, or "both"."""
        relations, between = [self.relation()], set()
        while self.peek()[0] != "end" and self.peek()[1] not in until:
            kind, value = self.peek()
            if kind != "op" or value not in (",", ";", "and", "or"):
                break
            self.at += 1
            if value in (",", ";") and self.peek()[1] in ("and", "or"):
                value = self.peek()[1]
                self.at += 1
            between.add(value)
            if self.peek()[0] == "end":
                break
            relations.append(self.relation())
        if len(relations) == 1:
            return relations[0]
        # "1, 2 or 3" is a list; only "1 or 2" offers alternatives that may be the same twice.
        return (
            "either" if between == {"or"} else "both" if between == {"and"} else "list",
            *relations,
        )

    def relation(self) -> Node:
        """Read a = b, a < b < c (as "both"), x in S."""
        terms, operators = [self.sets()], []
        while self.follows("=", "<", ">", "<=", ">=", "!=", "~", "≡", "\\in"):
            operators.append("in" if self.peek()[1] == "\\in" else self.peek()[1])
            self.at += 1
            terms.append(self.sets())
        modulus = self.modulus()
        if modulus is not None:
            if operators not in ([], ["≡"], ["="]):
                raise Unreadable("a modulus after a relation")
            return ("cong", terms[0] if operators else None, terms[-1], modulus)
        if "≡" in operators:
            raise Unreadable("a congruence without a modulus")
        if not operators:
            return terms[0]
        relations = [
            ("rel", operator, terms[i], terms[i + 1]) for i, operator in enumerate(operators)
        ]
        if len(relations) == 1:
            return relations[0]
        if operators[-1] == "~" and set(operators[:-1]) <= {"="}:  # x = a ≈ b
            return ("rel", "~", terms[-2], terms[-1])
        if set(operators) == {"="}:
            # a = b = c says that a is c; the terms between must agree
            return ("rel", "=", terms[0], terms[-1], *terms[1:-1])
        return ("both", *relations)

    def modulus(self) -> Node | None:
        """Read the modulus of \\pmod{m} or (mod m) after a relation; None if it has none."""
        if self.take("\\pmod"):
            return self.argument()
        if self.follows("(") and self.peek(1)[1] == "\\bmod":
            self.at += 2
            node = self.sum()
            self.need(")")
            return node
        return None

    def sets(self) -> Node:
        left = self.ratio()
        while self.peek() in (("cmd", "\\cup"), ("cmd", "\\cap"), ("cmd", "\\minus")):
            name = {"\\cup": "union", "\\cap": "cap", "\\minus": "minus"}[self.peek()[1]]
            self.at += 1
            left = (name, left, self.ratio())
        return left

    def ratio(self) -> Node:
        left = self.sum()
        parts = [left]
        while self.peek() == ("op", ":") and not self.inside_set:
            self.at += 1
            parts.append(self.sum())
        return left if len(parts) == 1 else ("ratio", *parts)

    # -- arithmetic

    def sum(self) -> Node:
        self.deeper()
        left = self.product()
        while True:
            kind, value = self.peek()
            if kind == "op" and value in "+-":
                self.at += 1
                left = ("add" if value == "+" else "sub", left, self.product())
            elif value in ("\\pm", "\\mp"):
                self.at += 1
                left = ("pm", value[1:], left, self.product())
            else:
                self.depth -= 1
                return left

    def product(self) -> Node:
        left = self.signed()
        while True:
            kind, value = self.peek()
            if kind == "op" and value in ("*", "/"):
                self.at += 1
                left = ("mul" if value == "*" else "div", left, self.signed())
            elif value == "\\bmod" and kind == "cmd":
                self.at += 1
                left = ("mod", left, self.signed())
            elif kind == "num" and value.isdigit() and left[0] == "sym":
                self.at += 1  # x2 is a lost index, not a product
                left = ("sym", f"{left[1]}_{value}")
            elif value == "(" and self.peek(1)[1] == "\\bmod":
                return left
            elif self.starts_factor():
                right = self.power()
                left = self.juxtaposed(left, right)
            else:
                return left

    def juxtaposed(self, left: Node, right: Node) -> Node:
        """Join two factors side by side: a product, or a mixed number."""
        if left[0] == "num" and left[1].value.denominator == 1 and left[1].decimals is None:
            number = _fraction(right)
            if number is not None and 0 < number < 1:
                whole = left[1].value
                return ("num", Number(whole + number if whole >= 0 else whole - number))
        if right[0] == "num" and left[0] == "num":
            if self.peek() == ("op", "/") and self.peek(1)[0] == "num":  # 1 1/2
                under = Fraction(self.peek(1)[1])
                self.at += 2
                if under and 0 < right[1].value / under < 1:
                    return ("num", Number(left[1].value + right[1].value / under))
            raise Unreadable("two numbers side by side")
        return ("mul", left, right)

    def bare_argument(self) -> Node:
        """Read an argument without brackets (sin 2x, ln |x|): factors up to the next operator."""
        node = self.signed()
        while self.starts_factor() and self.peek()[0] != "fn" and self.peek()[1] not in ("(", "["):
            node = self.juxtaposed(node, self.power())
        return node

    def starts_factor(self) -> bool:
        kind, value = self.peek()
        if kind in ("num", "sym", "fn") or (kind == "env" and value.startswith("\\begin")):
            return True
        if kind == "op":
            return value in ("(", "{", "[") or (value == "|" and self.bar_opens())
        return kind == "cmd" and (value in FACTORS or value in MARKS or value in FIGURES)

    def bar_opens(self) -> bool:
        return not self.inside_bars

    def signed(self) -> Node:
        self.deeper()
        try:
            if self.take("-"):
                return ("neg", self.signed())
            if self.take("+"):
                return self.signed()
            if self.peek()[1] in ("\\pm", "\\mp"):
                sign = self.peek()[1][1:]
                self.at += 1
                return ("pm", sign, None, self.signed())
            return self.power()
        finally:
            self.depth -= 1

    def power(self) -> Node:
        base = self.postfix(self.atom())
        if self.take("^"):
            if self.degree():
                return ("call", "deg", base)
            exponent = self.script()
            if base[0] in ("bracket", "tuple", "matrix") and exponent == ("sym", "T"):
                return _transposed(base)
            inverse = exponent == ("neg", ("num", Number(Fraction(1))))
            if inverse and base[0] == "sym" and base[1] in self.functions and self.follows("("):
                return self.postfix(self.applied(base[1] + "^-1"))  # f^{-1}(x)
            if base in (("sym", "C"), ("sym", "A"), ("sym", "P")) and self.take("_"):
                return _chosen(base[1], self.script(), exponent) or ("pow", base, exponent)
            lowered = re.fullmatch(r"([CAP])_(\w+)", base[1]) if base[0] == "sym" else None
            if lowered:  # C_5^2 is 5 choose 2 in Chinese textbooks
                below: Node | None = (
                    ("num", Number(Fraction(lowered[2]))) if lowered[2].isdigit() else None
                )
                below = below or (("sym", lowered[2]) if len(lowered[2]) == 1 else None)
                combination = _chosen(lowered[1], below, exponent) if below else None
                if combination:
                    return self.postfix(combination)
            return self.postfix(("pow", base, exponent))
        return base

    def applied(self, name: str) -> Node:
        """Read the arguments of an unknown function."""
        self.need("(")
        outside, self.inside_bars = self.inside_bars, True
        arguments = self.items((")", "|"))
        self.inside_bars = outside
        if self.take("|"):  # P(A|B)
            condition = self.items((")",))
            self.need(")")
            return ("call", f"f:{name}|", arguments, condition)
        self.need(")")
        parts = arguments[1:] if arguments[0] == "list" else (arguments,)
        whole = len(parts) == 2 and all(
            part[0] == "num" and part[1].value.denominator == 1 for part in parts
        )
        if name in ("C", "P", "A") and whole:
            return _chosen(name, parts[0], parts[1]) or ("call", f"f:{name}", *parts)
        return ("call", f"f:{name}", *parts)

    def degree(self) -> bool:
        if self.peek()[1] in ("\\circ", "°"):
            self.at += 1
            return True
        if self.peek()[1] == "{" and self.peek(1)[1] in ("\\circ", "°") and self.peek(2)[1] == "}":
            self.at += 3
            return True
        return False

    def script(self) -> Node:
        """Read a superscript or subscript: a group, or one sign."""
        if self.take("{"):
            node = self.items(("}",))
            self.need("}")
            return node
        if self.take("-"):
            return ("neg", self.script())
        if self.take("+"):
            return self.script()
        return self.power() if self.peek()[1] not in ("(",) else self.atom()

    def postfix(self, node: Node) -> Node:
        while True:
            if self.take("!"):
                node = ("call", "factorial", node)
            elif self.peek() == ("cmd", "\\%") or self.peek() == ("op", "%"):
                self.at += 1
                node = ("div", node, ("num", Number(Fraction(100))))
            elif self.take("'"):
                if node[0] != "sym":
                    raise Unreadable("a prime without a symbol before it")
                node = ("sym", node[1] + "'")
            elif self.peek() == ("op", "°"):
                self.at += 1
                node = ("call", "deg", node)
            elif node[0] == "sym" and self.peek() == ("op", "(") and self.is_function(node[1]):
                node = self.applied(node[1])
            elif self.peek() == ("op", "_") and node[0] in ("sym", "num"):
                self.at += 1
                node = self.lowered(node)
            else:
                return node

    def is_function(self, name: str) -> bool:
        return bool(self.functions) and name.partition("_")[0].rstrip("'") in self.functions

    def lowered(self, node: Node) -> Node:
        """Read a subscript: x_1, x_{n+1}, 1010_2."""
        if self.take("{"):
            start = self.at
            while self.peek()[1] != "}":
                if self.peek()[0] == "end":
                    raise Unreadable("an unclosed subscript")
                self.at += 1
            name = "".join(value for _, value in self.tokens[start : self.at])
            self.at += 1
        else:
            name = self.peek()[1]
            self.at += 1
        if node[0] == "sym":
            return ("sym", f"{node[1]}_{name}")
        if (
            not re.fullmatch(r"[2-9]|[12]\d|3[0-6]|two|ten|eight", name)
            or node[1].value.denominator != 1
        ):
            raise Unreadable("a number with a subscript")
        return ("base", str(node[1].value), name)

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
        outside, self.inside_bars = self.inside_bars, False
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
        """Read a braced group, or the next sign, as in \\frac12."""
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
            start = self.at
            over = self.argument()
            under = self.argument()
            named = "".join(value for _, value in self.tokens[start : self.at])
            if derivative := re.fullmatch(r"\{d([a-zA-Z])\}\{d[a-zA-Z]\}", named):
                return ("sym", derivative[1] + "'")  # dy/dx is y'
            if re.match(r"\{(?:d|\\partial)[\^}]", named):
                raise Unreadable("a derivative")
            return ("div", over, under)
        if value == "\\sqrt":
            if self.take("["):
                degree = self.sum()
                self.need("]")
                return ("call", "root", self.argument(), degree)
            return ("call", "sqrt", self.argument())
        if value in _RANGES:
            return self.over_range(_RANGES[value])
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
        if value in ("\\ZZ", "\\NN"):
            return ("integers",)
        if value in ("\\ldots", "\\dots", "\\cdots", "\\dotsc", "\\dotsb"):
            return ("sym", "…")
        if value == "\\{":
            return self.braced_set()
        if value in ("\\lfloor", "\\lceil"):
            node = self.sum()
            self.need("\\rfloor" if value == "\\lfloor" else "\\rceil")
            return ("call", "floor" if value == "\\lfloor" else "ceil", node)
        if value == "\\$":
            return self.atom()
        raise Unreadable(f"unknown command {value}")

    def over_range(self, kind: str) -> Node:
        """Read a sum or a product over whole numbers, or a definite integral: kind, bound name,
        low, high, body.
        """
        low: Node | None = None
        high: Node | None = None
        while self.follows("_", "^"):
            lower = self.take("_")
            if not lower:
                self.need("^")
            # Only the next sign or group: in \\int_0^3 the exponent belongs to the integral.
            bound = ("neg", self.argument()) if self.take("-") else self.argument()
            low, high = (bound, high) if lower else (low, bound)
        if low is None or high is None:
            raise Unreadable("a sum or an integral without bounds")
        if kind != "integral":
            if low[0] != "rel" or low[1] != "=" or low[2][0] != "sym":
                raise Unreadable("a sum over something other than a range")
            # A sum covers the product that follows it, but no later terms.
            return _bound(kind, low[2][1], low[3], high, self.product())
        end = next(
            (
                i
                for i in range(self.at, len(self.tokens) - 1)
                if self.tokens[i] == ("sym", "d") and self.tokens[i + 1][0] == "sym"
            ),
            None,
        )
        if end is None:
            raise Unreadable("an integral without a variable")
        inner = _Parser(self.tokens[self.at : end], self.functions)
        inner.depth = self.depth
        body = inner.sum() if inner.tokens else ("num", Number(Fraction(1)))
        if inner.at < len(inner.tokens):
            raise Unreadable("an integral of something other than an expression")
        name = self.tokens[end + 1][1]
        self.at = end + 2
        return _bound(kind, name, low, high, body)

    def marked(self, mark: str) -> Node:
        """Read \\vec{a}, \\bar x, \\overline{AB} as a symbol distinguished by its mark."""
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
        """Read an angle or triangle named by up to three points: angle ABC is angle CBA."""
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
        self.inside_bars = self.inside_set = True
        node = self.items(("\\}", "|", ":"))
        self.inside_bars = self.inside_set = False
        if self.take("|") or self.take(":"):  # {x | condition}
            condition = _without_types(self.items(("\\}",)), node)
            self.need("\\}")
            if node[0] == "rel":  # {x \\in Z | condition}
                if node[1] != "in" or node[2][0] != "sym":
                    raise Unreadable("a set of relations")
                if node[3] != ("reals",):
                    condition = ("list", condition, node)
                return _renamed(condition, node[2][1])
            # the name of the variable says nothing: {x | x > 2} is {y | y > 2}
            if condition[:3] == ("rel", "=", node) and _has_symbol_but(condition[3], node):
                return condition  # {x | x = 2k pi}
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
                raise Unreadable("an unclosed matrix")
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
        if name.group(1) == "array" and len(rows) == len(rows[0]) == 1:
            return rows[0][0]  # \\begin{array}{c}5\\end{array} only places its 5
        return ("matrix", *(tuple(row) for row in rows))

    def function(self, name: str) -> Node:
        name = {"asin": "arcsin", "acos": "arccos", "atan": "arctan"}.get(name, name)
        if name == "cbrt":
            three = ("num", Number(Fraction(3)))
            return (
                "call",
                "root",
                self.argument() if self.follows("{", "(") else self.power(),
                three,
            )
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


def _chosen(name: str, below: Node | None, above: Node) -> Node | None:
    """Return C_5^2 as a number of combinations, A_5^2 and P(5,2) of permutations; None if they are
    not meant.
    """
    if below is None:
        return None
    n, k = ((part[1].value if part[0] == "num" else None) for part in (below, above))
    if n is not None and k is not None and not 0 <= k <= n:
        return None
    if (n is None and below[0] != "sym") or (k is None and above[0] not in ("sym", "num")):
        return None
    if name == "C":
        return ("call", "binom", below, above)
    return ("call", "perm", below, above) if n is not None and k is not None else None


def _bound(kind: str, name: str, low: Node, high: Node, body: Node) -> Node:
    """Return a sum, product or integral with its bound variable renamed to "#1", "#2" …"""
    level = 1 + max(map(int, re.findall(r"'#(\d+)'", repr(body))), default=0)
    new = f"#{level}"

    def renamed(node: Node) -> Node:
        if node[0] == "sym" and len(node) == 2:
            letter, mark, index = str(node[1]).partition("_")
            if node[1] == name:
                return ("sym", new)
            return ("sym", letter + mark + re.sub(rf"\b{re.escape(name)}\b", new, index))
        return tuple(renamed(p) if isinstance(p, tuple) and p else p for p in node)

    return (kind, new, low, high, renamed(body))


def _transposed(node: Node) -> Node:
    """Return a row followed by the transpose sign T as a column."""
    if node[0] == "matrix":
        return ("matrix", *zip(*node[1:], strict=True))
    return ("tuple", *node[1:])


def _without_types(node: Node, member: Node) -> Node:
    """Return a condition without "k is an integer", the type of a parameter, and "x is real"."""
    if node[0] not in ("list", "both"):
        return node

    def is_type(part: Node) -> bool:
        if part[0] != "rel" or part[1] != "in":
            return False
        return bool(part[3] == ("reals",) or (part[3] == ("integers",) and part[2] != member))

    parts = [part for part in node[1:] if not is_type(part)]
    return (
        node
        if len(parts) == len(node) - 1 or not parts
        else (parts[0] if len(parts) == 1 else (node[0], *parts))
    )


def _has_symbol_but(node: Node, name: Node) -> bool:
    """Whether a tree has a symbol, and none of them is `name`."""
    written = repr(node)
    return "('sym', " in written and repr(name) not in written


def _renamed(node: Node, name: str) -> Node:
    if node == ("sym", name):
        return ("sym", "")
    return tuple(
        _renamed(part, name) if isinstance(part, tuple) and part else part for part in node
    )


def _fraction(node: Node) -> Fraction | None:
    """Return the value of ("div", integer, integer), else None."""
    if node[0] == "div" and node[1][0] == node[2][0] == "num":
        over, under = node[1][1].value, node[2][1].value
        if over.denominator == under.denominator == 1 and under:
            return Fraction(over / under)
    return None
