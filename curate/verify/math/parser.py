"""Mathematical notation to a small tree: LaTeX, ASCII and the signs of Unicode.

A node is a tuple whose first field says what it is:

    ("num", Number)  ("sym", name)  ("text", words)  ("const", "pi" | "e" | "i" | "inf")
    ("add" | "sub" | "mul" | "div" | "pow", a, b)  ("neg", a)  ("pm", sign, a | None, b)  ("call", function, *arguments)
    ("list", *items)  ("either", *items)  ("both", *items): items with commas, "or", "and" between them
    ("tuple" | "bracket" | "set", *items)  ("interval", opening, closing, a, b)  ("matrix", *rows)
    ("rel", operator, a, b)  ("mod", a, m)  ("cong", a | None, b, m): a = b modulo m  ("base", digits, base)
    ("union" | "minus" | "cap", a, b)  ("ratio", *items)  ("reals",)

Length and depth are bounded, so that reading takes bounded time. What is not understood raises `Unreadable`: sums,
integrals, limits, prose. Those are left to `math-verify`.
"""

from __future__ import annotations

import re
from fractions import Fraction

from curate.verify.math.atoms import FACTORS, FIGURES, MARKS, Atoms, Node
from curate.verify.math.lexer import Excessive, Unreadable, tokens, unwrap
from curate.verify.math.numbers import Number, parse_number

__all__ = ["Excessive", "Node", "Unreadable", "parse", "unwrap"]

MAX_LENGTH = 1000  # characters of an expression; ours


def parse(text: str) -> Node:
    """The tree of an expression, a list, a relation. Raises `Unreadable`."""
    if len(text) > MAX_LENGTH:
        raise Excessive("an expression that is too long")
    number = parse_number(text)
    if number is not None:
        return ("num", number)
    parser = _Parser(tokens(text))
    node = parser.items(())
    if parser.at < len(parser.tokens):
        raise Unreadable(f"unexpected {parser.peek()!r}")
    return node


class _Parser(Atoms):
    # -- lists and relations

    def items(self, until: tuple[str, ...]) -> Node:
        """Items up to a closing sign: one item as it is, several with what stood between them."""
        found, between = [self.relation()], set()
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
            found.append(self.relation())
        if len(found) == 1:
            return found[0]
        return ("either" if "or" in between else "both" if between == {"and"} else "list", *found)

    def relation(self) -> Node:
        """a = b, a < b < c (as "both"), x in S."""
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
        if set(operators) == {"="}:  # a = b = c says what a is at last
            return ("rel", "=", terms[0], terms[-1])
        return ("both", *relations)

    def modulus(self) -> Node | None:
        """The modulus of \\pmod{m} or (mod m) after a relation, or None."""
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
        while self.peek() == ("op", ":"):
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
                self.at += 1  # x2 is a lost index, no product
                left = ("sym", f"{left[1]}_{value}")
            elif value == "(" and self.peek(1)[1] == "\\bmod":
                return left
            elif self.starts_factor():
                right = self.power()
                left = self.beside(left, right)
            else:
                return left

    def beside(self, left: Node, right: Node) -> Node:
        """Two factors side by side: a product, or a mixed number."""
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
        """sin 2x, ln |x|: factors up to the next operator or function."""
        node = self.signed()
        while self.starts_factor() and self.peek()[0] != "fn" and self.peek()[1] not in ("(", "["):
            node = self.beside(node, self.power())
        return node

    def starts_factor(self) -> bool:
        kind, value = self.peek()
        if kind in ("num", "sym", "fn") or (kind == "env" and value.startswith("\\begin")):
            return True
        if kind == "op":
            return value in ("(", "{", "[") or (value == "|" and self.bar_opens())
        return kind == "cmd" and (value in FACTORS or value in MARKS or value in FIGURES)

    def bar_opens(self) -> bool:
        return not getattr(self, "inside_bars", False)

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
            return self.postfix(("pow", base, self.script()))
        return base

    def degree(self) -> bool:
        if self.peek()[1] in ("\\circ", "°"):
            self.at += 1
            return True
        if self.peek()[1] == "{" and self.peek(1)[1] in ("\\circ", "°") and self.peek(2)[1] == "}":
            self.at += 3
            return True
        return False

    def script(self) -> Node:
        """What is raised or lowered: a group, or one sign."""
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
                    raise Unreadable("a prime after no symbol")
                node = ("sym", node[1] + "'")
            elif self.peek() == ("op", "°"):
                self.at += 1
                node = ("call", "deg", node)
            elif self.peek() == ("op", "_") and node[0] in ("sym", "num"):
                self.at += 1
                node = self.lowered(node)
            else:
                return node

    def lowered(self, node: Node) -> Node:
        """x_1, x_{n+1}, 1010_2."""
        if self.take("{"):
            start = self.at
            while self.peek()[1] != "}":
                if self.peek()[0] == "end":
                    raise Unreadable("an open subscript")
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


def _fraction(node: Node) -> Fraction | None:
    """The value of ("div", integer, integer), else None."""
    if node[0] == "div" and node[1][0] == node[2][0] == "num":
        over, under = node[1][1].value, node[2][1].value
        if over.denominator == under.denominator == 1 and under:
            return Fraction(over / under)
    return None
