from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curate.verify.math.numbers import equal_numbers, parse_number


def value(text: str) -> Fraction:
    number = parse_number(text)
    assert number is not None, text
    return number.value


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("12,345", 12345), (r"12\,345", 12345), ("12{,}345", 12345),
        ("1.234.567,89", Fraction(123456789, 100)),
        ("1.5e3", 1500), (r"1.5\times10^{-3}", Fraction(3, 2000)), ("1.5 × 10³", 1500),
        ("10^2", 100),
        (r"0.\overline{3}", Fraction(1, 3)), (r"0.1\overline{6}", Fraction(1, 6)),
        ("0.(142857)", Fraction(1, 7)), ("0.333...", Fraction(1, 3)),
        ("1 1/2", Fraction(3, 2)), (r"-1\frac{1}{2}", Fraction(-3, 2)), ("2½", Fraction(5, 2)),
        (r"\frac12", Fraction(1, 2)),
        ("１２３", 123), ("−7", -7), ("三分之二", Fraction(2, 3)), ("一千零五", 1005),
        ("三点一四", Fraction(314, 100)), ("负十二", -12), ("两万三千", 23000),
        ("twenty-five", 25), ("three hundred and two", 302), ("two thirds", Fraction(2, 3)),
        ("2 hours 30 minutes", Fraction(5, 2)), ("$1,200", 1200), (r"5\text{ cm}", 5),
        ("45^\\circ", 45), ("12th", 12),
    ],
)  # fmt: skip
def test_read_exactly(text: str, expected: Fraction | int) -> None:
    assert value(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "5x",
        "2ab",
        "3 x",
        "1/0",
        "1,23,45",
        "9^9",
        "nan",
        "inf",
        "1e999999999",
        "..",
        "--5",
        "1 2",
        "see 5",
        "5 or 6",
        "{",
        "\ud800",
    ],
)
def test_anything_else_is_not_a_number(text: str) -> None:
    assert parse_number(text) is None


@given(st.integers(-(10**30), 10**30))
def test_integers_with_and_without_separators(n: int) -> None:
    assert value(str(n)) == value(f"{n:,}") == value(f"{n:,}".replace(",", r"\,")) == n


@given(
    st.fractions(max_denominator=10**6),
    st.sampled_from([r"\frac{%d}{%d}", r"\dfrac{%d}{%d}", "%d/%d"]),
)
def test_fractions(f: Fraction, form: str) -> None:
    assert value(form % (f.numerator, f.denominator)) == f


@given(
    st.decimals(
        allow_nan=False, allow_infinity=False, places=6, min_value=-(10**9), max_value=10**9
    )
)
def test_decimals(d: object) -> None:
    assert value(f"{d:f}") == Fraction(str(d))


@given(st.text(max_size=150))
def test_no_text_raises(text: str) -> None:
    parse_number(text)


@given(
    st.fractions(min_value=-(10**6), max_value=10**6, max_denominator=10**4),
    st.fractions(min_value=-(10**6), max_value=10**6, max_denominator=10**4),
)
def test_exact_numbers_are_equal_only_if_their_values_are(a: Fraction, b: Fraction) -> None:
    first, second = (
        parse_number(f"{a.numerator}/{a.denominator}"),
        parse_number(f"{b.numerator}/{b.denominator}"),
    )
    assert first is not None
    assert second is not None
    assert equal_numbers(first, second)[0] == (a == b)


@pytest.mark.parametrize(
    ("gold", "answer", "same"),
    [
        ("1e-7", "2e-7", False), ("1/3", "0.333333", True), ("1/3", "0.33333", False),
        ("1/6", "0.166667", True), ("2/3", "0.666666", True),
        ("175000.125", "175000.25", False), ("0.3", "0.30000000000000004", True),
        ("3.1416", "3.14159265", False), ("3.14159", "3.14159265", True),
        ("5", "5.000001", False), ("5", "5.0", True), ("1000000", "1000001", False),
        ("200000.5e3", "200000501", False), ("6.02214e23", "6.02214076e23", True),
        ("50%", "0.5", True), ("50%", "50", True), ("0.5", "50%", True), ("0.5", "0.5%", False),
        ("25", "25%", True), ("50%", "5%", False),
        ("5 cm", "50 mm", True), ("5 cm", "5 m", False), ("5 cm", "5", True),
        ("$5", "5 dollars", True), ("$5", "€5", False), ("7 apples", "7 people", True),
    ],
)  # fmt: skip
def test_the_rules_of_equality(gold: str, answer: str, same: bool) -> None:
    first, second = parse_number(gold), parse_number(answer)
    assert first is not None
    assert second is not None
    assert equal_numbers(first, second)[0] == same
