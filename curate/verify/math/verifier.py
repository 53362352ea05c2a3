"""Judge mathematics: plain numbers exactly, then trees, then `math-verify` with SymPy.

The reference decides what kind of answer is expected; a reference that cannot be read makes the
problem unverifiable. Most answers are decided in the caller within bounded work; what needs SymPy
is decided in a worker that may be killed.
"""

from __future__ import annotations

import re
from fractions import Fraction
from functools import lru_cache
from typing import Any

from curate.records import Problem
from curate.verify.base import CORRECT, MAX_ANSWER, WRONG, Judgement, Verifier
from curate.verify.math.compare import equal, with_dummy_renamed
from curate.verify.math.dates import equal_dates, parse_date_or_time
from curate.verify.math.exact import NoValue, TooLarge, Undefined, symbols
from curate.verify.math.math_verify import ask_math_verify, is_for_math_verify
from curate.verify.math.notation import clean, final_answer
from curate.verify.math.numbers import equal_numbers, parse_number, plain
from curate.verify.math.numeric import number
from curate.verify.math.parser import (
    Excessive,
    Node,
    Unreadable,
    applied_names,
    parse,
    unwrap,
)
from curate.verify.math.units import measure, unit_factors, unit_named
from curate.verify.text import bare_letters, equal_words, normal

# Expressions up to this length are compared in the caller. Characters; ours.
MAX_QUICK = 300

_NO_ANSWER = re.compile(
    r"(?i)^\W*$|^(?:n/?a|none given|unknown|null|nan|not available|no (?:final )?answer"
    r"(?: (?:given|provided|available|found))?|not found|notfound|omitted|skipped|varies|tbd"
    r"|to be determined|answers? (?:may )?var(?:y|ies)|q\.? ?e\.? ?d|proved|proven|shown"
    r"|(?:the )?(?:(?:full |complete )?(?:proofs?|derivations?|solutions?|answers?|details?)"
    r"|(?:graph|statement|claim|inequality|identity)(?= ))"
    r"(?:,? (?:is |are )?(?:omitted|skipped|above|below|required|needed|provided|given|trivial"
    r"|obvious|unavailable|complete|proved|proven|not (?:provided|available|given|found|required)"
    r"|left (?:to|as|for) [\w ]+|in (?:the )?\w+))?"
    r"|(?:see|refer to|cf\.?) (?:the )?(?:\w+ )?(?:solution|above|below|text|proof|explanation"
    r"|figure|answer|graph|diagram|work)s?(?: (?:above|below|section))?"
    r"|(?:as|proved|shown|given) (?:above|below|shown|required)|left (?:to|as|for) [\w ]+"
    r"|(?:prove|show) (?:it|that)|siehe \w+|beweis|voir \w+ ?\w*|preuve|demostración|доказательство"
    r"|(?:答案|解答|证明|證明|解|过程)?[:：]?\s*(?:略|省略|见解析|见上|见答案|如图|见图|如上)"
    r"|证明过程?|證明|证毕|无答案"
    r"|暂无(?:答案)?|见(?:解析|详解|解答|答案|[上下]文?|图|过程|证明))\W*$"
)
_DIGIT = re.compile(r"[0-9]")
_EMPTY_SET = re.compile(r"\\\{\s*\\\}|∅|\\(?:emptyset|varnothing)")
_OVER_ZERO = re.compile(r"/\s*\(?0|\}\s*\{?\s*0|0\s*\^\s*\{?\s*0")
_CHOICE = re.compile(
    r"^\s*(?:\\(?:text|textbf|mathrm|mathbf)\s*\{\s*)?\(?([A-J])\)?\s*\}?\s*[.:]?\s*$"
)
_CHOICES = re.compile(r"[A-H](?:\s*[,、]\s*[A-H])+|[A-H]{2,6}")
_LABEL = re.compile(
    r"^\s*(?:\\(?:text|textbf|mathrm|mathbf)\s*\{\s*\(?([A-J])[).:]*\s*\}|\(([A-J])\))"
    r"(?!\s*[_^])[\s~:.]*(?:\\(?: quad|qquad|quad|,|;| ))*\s*(?=\S)"
)
_TRAILING_UNIT = re.compile(
    r"\s*(?:\\[,;! ]\s*|~)*"
    r"\\(?:text|mathrm|mbox|textrm)\s*\{\s*(?!and\b|or\b"
    r"|if\b)(?:[^{}]|\{-?\d\})*\}(?:\s*\^\s*\{?[23]\}?)?\s*\.?$"
)
# A unit in plain letters after an expression: 8\pi cm^2, \sqrt{2} km/h
_BARE_UNIT = re.compile(
    r"(?<=[\d})\w])\s+([a-zA-Z]{2,}(?:/[a-z]{1,6})?(?:\s*\^\s*\{?[23]\}?)?(?: [a-z]{2,12}){0,3})$"
)
_WORDS = re.compile(r"[^\W\d_]{2,}")
# "where k is an integer" after a family of solutions adds nothing.
_WHOLE = re.compile(
    r"[\s,;，]*(?:\\(?:quad|qquad|;|,| ))*\s*\(?\s*"
    r"(?:\\text\s*\{[\s,]*(?:where|for|with)?(?: any)?(?: all)?\s*\}|where|for|,)?\s*\$?[a-z]\s*"
    r"(?:(?:\\in|∈)\s*(?:\\mathbb\s*\{?\s*[ZN]\s*\}?|ℤ|ℕ|Z|N|\\Z)(?:\s*[\^_]\s*\{?[+*]\}?)?"
    r"|(?:\\text\s*\{)?\s*(?:is an(?:y)? integer|为整数|是整数)\}?)\$?\s*\)?$"
)


class MathVerifier(Verifier):
    """Decides whether an answer is the same mathematical object as the reference."""

    name = "math"
    version = "7"

    def load(self) -> None:
        # The parser and the solver of SymPy build their tables at first use.
        ask_math_verify("x^2 < 4", "-2 < x < 2")

    def unverifiable(self, problem: Problem) -> str | None:
        reference = (problem.reference or "").strip()
        return None if _number(reference) is not None else _unreadable(reference)

    def quick(self, problem: Problem, answer: str) -> Judgement | None:
        if len(answer) > MAX_ANSWER:
            answer = " ".join(answer.split())
            if len(answer) > MAX_ANSWER:
                return Judgement("wrong", f"the answer is longer than {MAX_ANSWER} characters")
        reference = (problem.reference or "").strip()
        gold = _number(reference)
        if gold is not None:
            given = parse_number(answer)
            if given is not None:
                is_equal, why = equal_numbers(gold, given)
                if is_equal or not _may_be_read_otherwise(reference, answer):
                    return CORRECT if is_equal else Judgement("wrong", why)
        if len(reference) > MAX_QUICK or len(answer) > MAX_QUICK:
            return None
        return compare_answers(final_answer(reference) or reference, answer)

    def check(self, problem: Problem, answer: str) -> Judgement:
        reference = (problem.reference or "").strip()
        reference = final_answer(reference) or reference
        judgement = compare_answers(reference, answer)
        if judgement is not None:
            return judgement
        judgement = ask_math_verify(clean(reference), clean(answer))
        if judgement.verdict == "unverifiable" and _is_readable(reference):
            return Judgement("wrong", "the answer cannot be read")
        return judgement

    def failed(self, problem: Problem, answer: str, why: str) -> Judgement:
        # A reference that this package reads by itself is not to blame for the cost of its answer.
        reference = final_answer((problem.reference or "").strip()) or ""
        return Judgement("wrong" if _is_readable(reference) else "unverifiable", why)


_INTEGER = re.compile(r"[+-]?(?:[0-9]+|[0-9]{1,3}(?:,[0-9]{3})+)")


def _may_be_read_otherwise(reference: str, answer: str) -> bool:
    """Whether a comma may mean something else: 3,14 for 3.14, or 100,200 for a list."""
    if "," not in reference and "," not in answer:
        return False
    return not (_INTEGER.fullmatch(reference) and _INTEGER.fullmatch(answer))


@lru_cache(maxsize=8192)
def _number(reference: str) -> Any:
    return parse_number(reference)


@lru_cache(maxsize=8192)
def _unreadable(reference: str) -> str | None:
    """Return why a reference cannot be judged against, or None."""
    answer = final_answer(reference)
    if answer is None:
        return "the reference is a worked solution without a final answer that can be read"
    bare = clean(unwrap(answer))
    if _EMPTY_SET.fullmatch(bare):
        return None
    if not _DIGIT.search(bare) and _NO_ANSWER.match(normal(bare)):
        return "the reference is not an answer" if bare else "no reference answer"
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


def _is_readable(reference: str) -> bool:
    """Whether this package reads a reference without help, so that only the answer can be at
    fault.
    """
    if parse_date_or_time(clean(reference)) is not None:
        return True
    try:
        tree, _ = read_answer(clean(reference))
    except Excessive:
        return False
    return tree is not None or is_words(reference, tree)


@lru_cache(maxsize=8192)
def read_answer(text: str, functions: frozenset[str] = frozenset()) -> tuple[Node | None, str]:
    """Return the tree of an answer (None if it is unreadable) and the unit written after it. Raises
    `Excessive`.
    """
    bare = _without_whole(unwrap(text))
    if _REGION_HINT.search(bare) and (region := _REGIONS.get(normal(bare))) is not None:
        return region, ""
    for unit, named in _units_after(bare):
        try:
            tree = parse(bare[:unit].rstrip(), functions)
        except Unreadable:
            continue
        has_unit = tree[0] == "num" and tree[1].unit  # "7 K people"
        if not _mixes_words(tree) and not has_unit:
            return tree, named
    try:
        tree = parse(bare, functions)
        return (None if _mixes_words(tree) else tree), ""
    except Excessive:
        raise
    except Unreadable:
        return None, ""


# An inequality or a set of values is another one if only whole numbers are meant.
_OVER_VALUES = re.compile(
    r"[<>≤≥⩽⩾≠∈|]|\\(?:le|ge|leq|geq|leqslant|geqslant|lt|gt|ne|neq|in|mid)(?![a-zA-Z])"
)


def _without_whole(bare: str) -> str:
    """Strip "where k is an integer" after a family of values."""
    whole = _WHOLE.search(bare)
    if whole is None or _OVER_VALUES.search(bare[: whole.start()]):
        return bare
    return bare[: whole.start()]


_SET_END = re.compile(r"\s*(?:\\right\s*)?\\\}$")


def _counts_from(text: str) -> str | None:
    """Return the numbers that the counter of a family takes, "Z" or "N"; None if it has none."""
    whole = _WHOLE.search(_SET_END.sub("", unwrap(text)))
    if whole is None:
        return None
    return "N" if re.search(r"N|ℕ|[+*]|positive|正", whole.group()) else "Z"


def _units_after(bare: str) -> list[tuple[int, str]]:
    """Return where a unit may begin at the end of a text, and its name."""
    positions = []
    for pattern in (_TRAILING_UNIT, _BARE_UNIT):
        match = pattern.search(bare)
        if match is None or not match.start():
            continue
        before = bare[: match.start()].rstrip()
        words = match[1] if pattern is _BARE_UNIT else _unit_text(match.group())
        named = unit_named(words)
        if pattern is _BARE_UNIT and named is not None and measure(words) is None and "\\" in words:
            continue
        if named is not None and not before.endswith((",", ";")):
            positions.append((match.start(), named))
    return positions


def _unit_text(written: str) -> str:
    """Return the words of a unit in LaTeX: `\\,\\text{ cm}^2` as "cm^2"."""
    text = re.sub(
        r"\\(?:text|mathrm|mbox|textrm)\s*\{\s*((?:[^{}]|\{-?\d\})*?)\s*\}", r"\1", written
    )
    return re.sub(r"\\[,;:! ]|\\cdot(?![a-z])|~", " ", text).strip(" .")


@lru_cache(maxsize=16384)
def compare_answers(reference: str, answer: str) -> Judgement | None:
    """Judge from trees and words; None if `math-verify` has to decide."""
    letters = _compare_letters(reference, answer)
    if letters is not None:
        return letters
    answer, reference = clean(_without_label(answer)), clean(_without_label(reference))
    dates = _compare_dates(reference, answer)
    if dates is not None:
        return dates
    if equal_words(reference, answer) or equal_spelling(reference, answer):
        return CORRECT
    if ":" in reference or ":" in answer:
        reference, answer = _with_colon(reference, answer)
    families = {_counts_from(reference), _counts_from(answer)}
    if families == {"N", "Z"}:
        return Judgement("wrong", "a family over other whole numbers")
    functions = applied_names(reference, answer)
    try:
        gold, unit = read_answer(reference, functions)
    except Excessive:
        return None
    try:
        given, given_unit = read_answer(answer, functions)
    except Excessive as error:
        # A long reference may have a long answer; next to a plain one, a long answer only wastes
        # time.
        return None if len(answer) <= 4 * len(reference) else Judgement("wrong", str(error))
    if is_words(reference, gold):
        # The reference is words; anything else is a different answer.
        return Judgement("wrong", "another text")
    if gold is None:
        return None
    if given is None:
        if is_words(answer, given) or not is_for_math_verify(answer):
            return Judgement("wrong", "different text, or notation that cannot be read")
        return None
    if unit_factors(unit, given_unit) not in _SAME_UNIT:
        return Judgement("wrong", f"unit {given_unit} instead of {unit}")
    return _compare_trees(reference, gold, answer, given)


_TO = re.compile(r"([\d.]+)\s*(?:\\text\s*\{\s*to\s*\}|to)\s*([\d.]+)")
_RATIO = re.compile(r"[\d.\s]+:[\d.\s]+")


def _with_colon(reference: str, answer: str) -> tuple[str, str]:
    """Write "3 to 4" as 3:4 if the other side is a ratio."""
    if _RATIO.fullmatch(reference) and (ratio := _TO.fullmatch(answer)):
        return reference, f"{ratio[1]}:{ratio[2]}"
    if _RATIO.fullmatch(answer) and (ratio := _TO.fullmatch(reference)):
        return f"{ratio[1]}:{ratio[2]}", answer
    return reference, answer


def _compare_trees(reference: str, gold: Node, answer: str, given: Node) -> Judgement | None:
    try:
        verdict = equal(gold, given)
        if not verdict:
            is_family = bool(_WHOLE.search(unwrap(reference)) and _WHOLE.search(unwrap(answer)))
            renamed = with_dummy_renamed(gold, given, is_family)
            if renamed is not None and equal(gold, renamed):
                return CORRECT
            for first, second in _other_readings(reference, gold, answer, given):
                if equal(first, second):
                    return CORRECT
    except TooLarge as error:
        return Judgement("unverifiable" if _is_too_large(gold) else "wrong", str(error))
    except NoValue as error:
        if _has_value(gold):
            return Judgement("wrong", f"the answer has no value: {error}")
        if symbols(gold):
            return None
        return Judgement("unverifiable", f"the reference has no value: {error}")
    except (Undefined, ZeroDivisionError, OverflowError, RecursionError, ValueError, TypeError):
        verdict = None
    if verdict is None and gold == given:
        return CORRECT
    if verdict is None:
        # Only what SymPy can solve or evaluate is worth passing on.
        if is_for_math_verify(reference) or is_for_math_verify(answer):
            return None
        return Judgement("wrong", "not comparable with the reference")
    return CORRECT if verdict else WRONG


def _compare_letters(reference: str, answer: str) -> Judgement | None:
    """Judge by the letters of choices if the reference is nothing else."""
    bare = clean(reference)
    letter = _CHOICE.match(bare)
    if letter:
        named = bare_letters(answer)
        if not named:
            return None
        if named == {letter.group(1)}:
            return CORRECT
        return Judgement("wrong", f"names {', '.join(sorted(named))}")
    if _CHOICES.fullmatch(bare):
        expected = set(re.findall("[A-H]", bare))
        if len(expected) == len(re.findall("[A-H]", bare)) and bare_letters(answer) == expected:
            return CORRECT
    return None


def _compare_dates(reference: str, answer: str) -> Judgement | None:
    """Judge if the reference is a date or a time of day."""
    expected = parse_date_or_time(reference)
    if expected is None:
        return None
    given = parse_date_or_time(answer)
    if given is not None:
        same = equal_dates(expected, given)
        return CORRECT if same else Judgement("wrong", "a different date or time")
    return Judgement("wrong", "no date") if expected.month else None


def _without_label(text: str) -> str:
    """Strip the letter of a choice from the front of its value."""
    label = _LABEL.match(text)
    return text[label.end() :] if label and label.end() < len(text) else text


_NAMED = re.compile(r"^[a-zA-Z](?:_\w|\([a-z]\))? ?= ?")


_FORMULAS = frozenset(["add", "sub", "mul", "div", "pow", "neg", "call"])


def _mixes_words(tree: Node) -> bool:
    """Whether words are inside a formula: north-east is not a subtraction."""
    is_formula = tree[0] in _FORMULAS
    for part in tree[1:]:
        if isinstance(part, tuple) and part and isinstance(part[0], str):
            if part[0] == "text" and is_formula:
                return True
            if _mixes_words(part):
                return True
    return False


def equal_spelling(reference: str, answer: str) -> bool:
    """Whether two texts differ only in spaces, in braces around one sign, or in a name that only
    one of them gives.
    """
    first, second = _squeezed(reference), _squeezed(answer)
    return first == second or _unnamed(first) == second or first == _unnamed(second)


def _unnamed(text: str) -> str:
    """Strip the name in "x = 5", unless the value uses it again: "f = f(0)"."""
    name = _NAMED.match(text)
    if name is None or text[0] in text[name.end() :]:
        return text
    return text[name.end() :]


def _squeezed(text: str) -> str:
    text = " ".join(re.sub(r"\{(\w)\}", r" \1 ", unwrap(plain(text))).replace("\\,", " ").split())
    return _SPACES.sub("", text)


_SPACES = re.compile(r"(?<=[^\w\s]) | (?=[^\w\s])")
_SAME_UNIT = ((Fraction(1), Fraction(1)),)
# Cheaper than `normal`: each key of `_REGIONS`, and its synonyms, contain one of these.
_REGION_HINT = re.compile(r"real|solution|set|none|[^\x00-\x7f]", re.I)
_REGIONS: dict[str, Node] = {
    **dict.fromkeys(
        (
            *("all real numbers", "all reals", "any real number", "全体实数", "所有实数"),
            *("一切实数", "任意实数"),
        ),
        ("reals",),
    ),
    **dict.fromkeys(("no solution", "empty set", "the empty set", "空集"), ("set",)),
}


def is_words(text: str, tree: Node | None) -> bool:
    """Whether a text is words rather than a formula."""
    if tree is not None:
        return bool(tree[0] == "text")
    bare = normal(text)
    return "\\" not in bare and bool(_WORDS.search(bare)) and not re.search(r"[=^<>{}|/*+]", bare)


def _is_too_large(gold: Node) -> bool:
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


# 3,14 and 0,125; never 1,234, which is 1234 wherever it is written.
_COMMA_DECIMAL = re.compile(r"^(?![+-]?[1-9]\d{0,2},\d{3}$)[+-]?\d+,\d+$")
_COMMA_LIST = re.compile(r"^\d{1,3}(?:,\d{3})+$")


def _other_readings(reference: str, gold: Node, answer: str, tree: Node) -> list[tuple[Node, Node]]:
    """Read a decimal comma (3,14), and 100,200 as a list, if the other side suggests it."""
    readings = []
    for text, node, other, swap in ((answer, tree, gold, False), (reference, gold, tree, True)):
        bare, decimal = unwrap(text), None
        if (
            _COMMA_DECIMAL.match(bare)
            and other[0] == "num"
            and (other[1].decimals or other[1].value.denominator > 1)
        ):
            decimal = parse_number(bare.replace(",", "."))
        if decimal is not None:
            readings.append((other, ("num", decimal)) if not swap else (("num", decimal), other))
        if _COMMA_LIST.match(bare) and node[0] == "num" and other[0] == "list":
            parts = ("list", *(("num", parse_number(part)) for part in bare.split(",")))
            readings.append((other, parts) if not swap else (parts, other))
    return readings
