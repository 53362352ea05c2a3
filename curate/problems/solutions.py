"""Worked solutions of procedural problems, step by step, as a person would write them on paper.

Every step is computed, never taken from the reference. A solution that does not end in the
reference is dropped.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Mapping
from decimal import Decimal
from fractions import Fraction
from typing import Any

Step = tuple[str, str]  # a computation and its result: ("4 - 1", "3")
Number = Fraction | Decimal

_SIGNS: dict[type[ast.operator], str] = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/"}


def worked_solution(dataset: str, entry: Mapping[str, Any], language: str = "en") -> str | None:
    """The worked solution of one `reasoning_gym` entry, in English ("en") or Chinese ("zh").

    None without a solver for the generator, without words in the language, or if the steps do not
    lead to the answer.
    """
    steps, words = _steps(dataset, entry), _WORDS.get(language)
    if not steps or words is None or not same_number(steps[-1][1], str(entry["answer"])):
        return None
    opening, between, closing = words
    text = between.join(f"{computed} = {result}" for computed, result in steps)
    return opening.format(steps=text) + closing.format(result=entry["answer"])


def contradicted(dataset: str, entry: Mapping[str, Any]) -> bool:
    """Whether solving the problem gives another answer than the generator's, whose reference is
    then wrong.

    For example, `basic_arithmetic` gives -118 for -118 + 142 / -(-592 - 143 + -734).
    """
    steps = _steps(dataset, entry)
    return bool(steps) and not same_number(steps[-1][1], str(entry["answer"]))


def _steps(dataset: str, entry: Mapping[str, Any]) -> list[Step]:
    """Steps of an entry; empty without a solver, or if the solver cannot read the entry."""
    if dataset not in SOLVERS:
        return []
    try:
        return SOLVERS[dataset](entry["metadata"])
    except (ArithmeticError, KeyError, SyntaxError, ValueError):
        return []


# Opening, text between two steps, closing. Short, since small models copy the style of what they
# see.
_WORDS = {
    "en": ("Step by step: {steps}.", ", then ", " So the result is {result}."),
    "zh": ("逐步计算：{steps}。", "，然后 ", "所以结果是 {result}。"),
}


def same_number(left: str, right: str) -> bool:
    """Whether two plain numbers or fractions (`-4`, `7.140`, `3/4`) are the same."""
    try:
        return Fraction(left.strip()) == Fraction(right.strip())
    except (ValueError, ZeroDivisionError):
        return False


def _expression(metadata: Mapping[str, Any]) -> list[Step]:
    """Steps of an expression in + - * / and parentheses: inner parts first, by precedence, from
    left to right.
    """
    text = str(metadata["expression"])
    decimal = "." in text
    steps: list[Step] = []

    def value(node: ast.expr) -> Number:
        if isinstance(node, ast.Constant):
            source = ast.get_source_segment(text, node) or str(node.value)
            return Decimal(source) if decimal else Fraction(source)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            inside = value(node.operand)
            if not isinstance(node.operand, ast.Constant):
                steps.append((f"-({_show(inside)})", _show(-inside)))
            return -inside
        if not isinstance(node, ast.BinOp):
            raise ValueError(f"not arithmetic: {ast.dump(node)}")
        left, right = value(node.left), value(node.right)
        result = _apply(node.op, left, right)
        steps.append(
            (f"{_show(left)} {_SIGNS[type(node.op)]} {_show(right, inner=True)}", _show(result))
        )
        return result

    last = value(ast.parse(text.strip(), mode="eval").body)
    return steps or [(text.strip(), _show(last))]


def _apply(op: ast.operator, left: Any, right: Any) -> Number:
    if isinstance(op, ast.Add):
        return left + right
    if isinstance(op, ast.Sub):
        return left - right
    if isinstance(op, ast.Mult):
        return left * right
    if isinstance(op, ast.Div):
        return left / right
    raise ValueError(f"not arithmetic: {op}")


def _show(number: Number, inner: bool = False) -> str:
    """A number as it is written; in parentheses if it would be misread after an operator."""
    text = f"{number:f}" if isinstance(number, Decimal) else str(number)
    return f"({text})" if inner and (text.startswith("-") or "/" in text) else text


def _product(metadata: Mapping[str, Any]) -> list[Step]:
    """Long multiplication: by each place of the second factor, then the sum of the parts."""
    factors = [int(part) for part in str(metadata["expression"]).split("*")]
    steps: list[Step] = []
    result = factors[0]
    for factor in factors[1:]:
        places = [int(d) * 10**i for i, d in enumerate(reversed(str(abs(factor)))) if d != "0"]
        if len(places) < 2:
            steps.append(
                (f"{result} * {_show(Fraction(factor), inner=True)}", str(result * factor))
            )
        else:
            sign = -1 if factor < 0 else 1
            parts = [result * place * sign for place in reversed(places)]
            steps += [
                (f"{result} * {_show(Fraction(place * sign), inner=True)}", str(part))
                for place, part in zip(reversed(places), parts, strict=True)
            ]
            steps.append(
                (
                    " + ".join(_show(Fraction(p), inner=i > 0) for i, p in enumerate(parts)),
                    str(sum(parts)),
                )
            )
        result *= factor
    return steps


def _euclid(a: int, b: int) -> list[Step]:
    """Steps of Euclid's algorithm for a, b > 0; the last result is the greatest common divisor."""
    steps: list[Step] = []
    big, small = max(a, b), min(a, b)
    while small:
        steps.append((f"gcd({big}, {small})", f"gcd({small}, {big % small})"))
        big, small = small, big % small
    steps[-1] = (steps[-1][0], str(big))
    return steps


def _gcd(metadata: Mapping[str, Any]) -> list[Step]:
    numbers = [int(n) for n in metadata["numbers"]]
    steps: list[Step] = []
    common = numbers[0]
    for number in numbers[1:]:
        steps += _euclid(common, number)
        common = math.gcd(common, number)
    return steps


def _lcm(metadata: Mapping[str, Any]) -> list[Step]:
    numbers = [int(n) for n in metadata["numbers"]]
    steps: list[Step] = []
    least = numbers[0]
    for number in numbers[1:]:
        common = math.gcd(least, number)
        steps += _euclid(least, number)
        steps.append(
            (
                f"lcm({least}, {number}) = {least} / {common} * {number}",
                str(least // common * number),
            )
        )
        least = least // common * number
    return steps


SOLVERS: dict[str, Callable[[Mapping[str, Any]], list[Step]]] = {
    "basic_arithmetic": _expression,
    "chain_sum": _expression,
    "decimal_chain_sum": _expression,
    "gcd": _gcd,
    "lcm": _lcm,
    "products": _product,
}
