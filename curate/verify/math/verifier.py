"""Mathematics: an exact path for plain numbers, a comparison of trees, and `math-verify` with SymPy behind them.

The reference decides what is asked for; a reference that cannot be read makes the problem unverifiable. Most answers
are decided in the caller within bounded work; what needs SymPy is decided in a worker that may be killed.
"""

from __future__ import annotations

import re
from fractions import Fraction
from functools import lru_cache
from typing import Any

from curate.records import Problem
from curate.verify.base import CORRECT, MAX_ANSWER, WRONG, Judgement, Verifier
from curate.verify.math.compare import equal
from curate.verify.math.dates import equal_dates, parse_date_or_time
from curate.verify.math.math_verify import ask_math_verify
from curate.verify.math.numbers import equal_numbers, parse_number, plain
from curate.verify.math.numeric import NoValue, TooLarge, Undefined, number, symbols
from curate.verify.math.parser import Excessive, Node, Unreadable, parse, unwrap
from curate.verify.math.units import unit_factors, unit_named
from curate.verify.text import bare_letters, equal_words, normal

# Expressions up to this length are compare_answers in the caller. Characters; ours.
MAX_QUICK = 300

_NOTHING = re.compile(
    r"(?i)^\W*$|^(?:n/?a|none given|unknown|null|nan|not available|no answer|proof|见解析|略|证明略)\W*$"
)
_OVER_ZERO = re.compile(r"/\s*\(?0|\}\s*\{?\s*0|0\s*\^\s*\{?\s*0")
_CHOICE = re.compile(
    r"^\s*(?:\\(?:text|textbf|mathrm|mathbf)\s*\{\s*)?\(?([A-J])\)?\s*\}?\s*[.:]?\s*$"
)
_LABEL = re.compile(
    r"^\s*(?:\\(?:text|textbf|mathrm|mathbf)\s*\{\s*\(?([A-J])[).:]*\s*\}|\(([A-J])\))"
    r"[\s~:.]*(?:\\(?: quad|qquad|quad|,|;| ))*\s*(?=\S)"
)
_TRAILING_UNIT = re.compile(
    r"\s*(?:\\[,;! ]\s*|~)*"
    r"\\(?:text|mathrm|mbox|textrm)\s*\{\s*(?!and\b|or\b|if\b)[^{}]*\}(?:\s*\^\s*\{?[23]\}?)?\s*\.?$"
)
_WORDS = re.compile(r"[^\W\d_]{2,}")
# "where k is an integer" after a family of solutions says nothing new.
_WHOLE = re.compile(
    r"[\s,;，]*(?:\\(?:quad|qquad|;|,| ))*\s*\(?\s*(?:\\text\s*\{[\s,]*(?:where|for|with)?(?: any)?(?: all)?\s*\}|where|for|,)?\s*\$?[a-z]\s*"
    r"(?:(?:\\in|∈)\s*(?:\\mathbb\s*\{?\s*[ZN]\s*\}?|ℤ|Z|N|\\Z)(?:\s*[\^_]\s*\{?[+*]\}?)?|(?:\\text\s*\{)?\s*(?:is an integer|为整数|是整数)\}?)\$?\s*\)?$"
)


def _unit_text(written: str) -> str:
    """The words of a unit in LaTeX: `\\,\\text{ cm}^2` as "cm^2"."""
    return re.sub(
        r"\\(?:text|mathrm|mbox|textrm)\s*\{\s*([^{}]*?)\s*\}|\\[,;! ]|~", r"\1", written
    ).strip(" .")


class MathVerifier(Verifier):
    """Is this the same mathematical object as the reference?"""

    name = "math"
    version = "3"

    def load(self) -> None:
        ask_math_verify(
            "x^2 < 4", "-2 < x < 2"
        )  # parser and solver load and build their tables at first use

    def unverifiable(self, problem: Problem) -> str | None:
        reference = (problem.reference or "").strip()
        return None if _number(reference) is not None else _unreadable(reference)

    def quick(self, problem: Problem, answer: str) -> Judgement | None:
        if len(answer) > MAX_ANSWER:
            return Judgement("wrong", f"the answer is longer than {MAX_ANSWER} characters")
        reference = (problem.reference or "").strip()
        gold = _number(reference)
        if gold is not None:
            given = parse_number(answer)
            if given is not None:
                same_, why = equal_numbers(gold, given)
                if same_ or not _commas(reference, answer):
                    return CORRECT if same_ else Judgement("wrong", why)
        if len(reference) > MAX_QUICK or len(answer) > MAX_QUICK:
            return None
        return compare_answers(reference, answer)

    def check(self, problem: Problem, answer: str) -> Judgement:
        reference = (problem.reference or "").strip()
        judged = compare_answers(reference, answer)
        return judged or ask_math_verify(reference, answer)


def _commas(reference: str, answer: str) -> bool:
    """Whether a comma may stand for something else: 3,14 for 3.14, or 100,200 for a list."""
    return "," in reference or "," in answer


@lru_cache(maxsize=8192)
def _number(reference: str) -> Any:
    return parse_number(reference)


@lru_cache(maxsize=8192)
def _unreadable(reference: str) -> str | None:
    """Why a reference can be no standard, or None."""
    bare = unwrap(reference)
    if _NOTHING.match(normal(bare)) and not re.fullmatch(r"\\\{\s*\\\}|∅", bare):
        return "the reference is no answer" if bare else "no reference answer"
    if re.fullmatch(r"\\\{\s*\\\}|∅", bare):
        return None
    if len(reference) > MAX_ANSWER:
        return f"the reference is longer than {MAX_ANSWER} characters"
    depth = 0
    for sign in re.findall(r"\\.|[{}]", bare):
        depth += (sign == "{") - (sign == "}")
        if depth < 0:
            break
    if depth:
        return "the braces of the reference do not match"
    if _OVER_ZERO.search(bare):
        try:
            tree = parse(bare)
            number(tree, dict.fromkeys(symbols(tree), 1))
        except NoValue as error:
            return f"the reference has no value: {error}"
        except ValueError:
            return None
    return None


@lru_cache(maxsize=8192)
def read_answer(text: str) -> tuple[Node | None, str]:
    """The tree of an answer (None where it is unreadable) and the unit written after it. Raises `Excessive`."""
    bare = _WHOLE.sub("", unwrap(text))
    if (known := _REGIONS.get(normal(bare))) is not None:
        return known, ""
    unit = _TRAILING_UNIT.search(bare)
    named = unit_named(_unit_text(unit.group())) if unit else None
    if (
        unit
        and named is not None
        and unit.start()
        and not bare[: unit.start()].rstrip().endswith((",", ";"))
    ):
        try:
            return parse(bare[: unit.start()]), named
        except Unreadable:
            pass
    try:
        tree = parse(bare)
        return (None if _mixed(tree) else tree), ""
    except Excessive:
        raise
    except Unreadable:
        return None, ""


@lru_cache(maxsize=16384)
def compare_answers(reference: str, answer: str) -> Judgement | None:
    """A judgement from trees and words; None where `math-verify` has to be asked."""
    letter = _CHOICE.match(reference)
    if letter and (named := bare_letters(answer)):
        return (
            CORRECT
            if named == {letter.group(1)}
            else Judgement("wrong", f"names {', '.join(sorted(named))}")
        )
    answer, reference = _unlabelled(answer), _unlabelled(reference)
    day = parse_date_or_time(reference)
    if day is not None:
        given_day = parse_date_or_time(answer)
        if given_day is not None:
            return (
                CORRECT
                if equal_dates(day, given_day)
                else Judgement("wrong", "another date or time")
            )
        if day.month:
            return Judgement("wrong", "no date")
    if equal_words(reference, answer) or equal_spelling(reference, answer):
        return CORRECT
    try:
        gold, unit = read_answer(reference)
    except Excessive:
        return None
    try:
        given_tree, given_unit = read_answer(answer)
    except Excessive as error:
        # A long reference may have a long answer; beside a plain one it is only meant to be expensive.
        return None if len(answer) <= 4 * len(reference) else Judgement("wrong", str(error))
    if is_words(reference, gold):
        # Words were asked for; anything else is another answer.
        return Judgement("wrong", "another text")
    if gold is None:
        return None
    if given_tree is None:
        return Judgement("wrong", "another text") if is_words(answer, given_tree) else None
    if unit_factors(unit, given_unit) not in _ONE:
        return Judgement("wrong", f"unit {given_unit} instead of {unit}")
    try:
        verdict = equal(gold, given_tree)
        if not verdict:
            for first, second in _other_readings(reference, gold, answer, given_tree):
                if equal(first, second):
                    return CORRECT
    except TooLarge as error:
        return Judgement("wrong" if not _too_large(gold) else "unverifiable", str(error))
    except NoValue as error:
        if _has_value(gold):
            return Judgement("wrong", f"the answer has no value: {error}")
        return (
            None
            if symbols(gold)
            else Judgement("unverifiable", f"the reference has no value: {error}")
        )
    except (Undefined, ZeroDivisionError, OverflowError, RecursionError, ValueError):
        return None
    if verdict is None:
        return None
    return CORRECT if verdict else WRONG


def _unlabelled(text: str) -> str:
    """Without the letter of a choice in front of its value."""
    label = _LABEL.match(text)
    return text[label.end() :] if label and label.end() < len(text) else text


_NAMED = re.compile(r"^[a-zA-Z](?:_\w|\([a-z]\))? ?= ?")


def _mixed(tree: Node) -> bool:
    """Whether words stand inside a formula: north-east is no difference."""
    parts = [
        part for part in tree[1:] if isinstance(part, tuple) and part and isinstance(part[0], str)
    ]
    if tree[0] in ("add", "sub", "mul", "div", "pow", "neg", "call") and any(
        part[0] == "text" for part in parts
    ):
        return True
    return any(_mixed(part) for part in parts)


def equal_spelling(reference: str, answer: str) -> bool:
    """Whether two texts differ only in spaces, in braces around one sign, or in a name that only one of them gives."""
    first, second = squeezed(reference), squeezed(answer)
    return first == second or _NAMED.sub("", first) == second or first == _NAMED.sub("", second)


def squeezed(text: str) -> str:
    text = " ".join(re.sub(r"\{(\w)\}", r" \1 ", unwrap(plain(text))).replace("\\,", " ").split())
    return _SPACES.sub("", text)


_SPACES = re.compile(r"(?<=[^\w\s]) | (?=[^\w\s])")
_ONE = ((Fraction(1), Fraction(1)),)
_REGIONS: dict[str, Node] = {
    **dict.fromkeys(
        (
            "all real numbers",
            "all reals",
            "any real number",
            "全体实数",
            "所有实数",
            "一切实数",
            "任意实数",
        ),
        ("reals",),
    ),
    **dict.fromkeys(("no solution", "empty set", "the empty set", "空集"), ("set",)),
}


def is_words(text: str, tree: Node | None) -> bool:
    """Whether a text is words rather than a formula."""
    if tree is not None:
        return tree[0] == "text"
    bare = normal(text)
    return "\\" not in bare and bool(_WORDS.search(bare)) and not re.search(r"[=^<>{}|/*+]", bare)


def _too_large(gold: Node) -> bool:
    try:
        equal(gold, gold)
        equal(gold, ("neg", gold))
    except TooLarge:
        return True
    except (Undefined, ValueError, ZeroDivisionError, OverflowError):
        return False
    return False


def _has_value(gold: Node) -> bool:
    try:
        number(gold, dict.fromkeys(symbols(gold), 1))
    except (Undefined, TooLarge, ValueError, ZeroDivisionError, OverflowError):
        return False
    return True


# 3,14 and 0,125; never 1,234, which is 1234 wherever it stands.
_COMMA_DECIMAL = re.compile(r"^(?![+-]?[1-9]\d{0,2},\d{3}$)[+-]?\d+,\d+$")
_COMMA_LIST = re.compile(r"^\d{1,3}(?:,\d{3})+$")


def _other_readings(reference: str, gold: Node, answer: str, tree: Node) -> list[tuple[Node, Node]]:
    """A decimal comma (3,14), and 100,200 as a list, where the other side suggests it."""
    readings = []
    for text, node, other, swap in ((answer, tree, gold, False), (reference, gold, tree, True)):
        bare, again = unwrap(text), None
        if (
            _COMMA_DECIMAL.match(bare)
            and other[0] == "num"
            and (other[1].decimals or other[1].value.denominator > 1)
        ):
            again = parse_number(bare.replace(",", "."))
        if again is not None:
            readings.append((other, ("num", again)) if not swap else (("num", again), other))
        if _COMMA_LIST.match(bare) and node[0] == "num" and other[0] == "list":
            parts = ("list", *(("num", parse_number(part)) for part in bare.split(",")))
            readings.append((other, parts) if not swap else (parts, other))
    return readings
