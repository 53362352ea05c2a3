from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curate.verify.math.units import measure, unit_factors, unit_named


@pytest.mark.parametrize(
    ("first", "second", "ratio"),
    [
        ("km", "m", 1000), ("km/h", "m/s", Fraction(5, 18)), ("km per hour", "km/h", 1),
        ("square meters", "cm^2", 10**4), ("m squared", "m^2", 1), ("L", "cm^3", 1000),
        ("kWh", "J", 3_600_000), ("N", "kg m/s^2", 1), ("J", "N m", 1), ("mph", "miles/hour", 1),
        ("ft", "in", 12), ("in", "cm", Fraction(127, 50)), ("千米", "米", 1000),
        ("平方米", "m^2", 1),
        ("dollars", "cents", 100), ("mA", "A", Fraction(1, 1000)),
    ],
)  # fmt: skip
def test_units_of_one_kind_convert_exactly(first: str, second: str, ratio: Fraction) -> None:
    one, other = measure(first), measure(second)
    assert one is not None
    assert other is not None
    assert one[0] == other[0]
    assert one[1] / other[1] == ratio


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("m", "s"),
        ("m^2", "m^3"),
        ("m/s", "m/s^2"),
        ("$", "€"),
        ("cm", "apples"),
        ("元", "円"),
        ("°c", "°f"),
    ],
)
def test_units_of_two_kinds_do_not(gold: str, answer: str) -> None:
    assert unit_factors(gold, answer) is None


def test_nouns_do_not_matter_and_one_sign_serves_two_currencies() -> None:
    assert (
        unit_factors("apples", "people")
        == unit_factors("", "cm")
        == unit_factors("cm", "cm")
        == unit_factors("¥", "元")
        == (1, 1)
    )


@pytest.mark.parametrize(
    "words", ["apples", "red apples", "apples per day", "th", "cm", "km/h", "feet tall", "个"]
)
def test_words_that_may_follow_a_number(words: str) -> None:
    assert unit_named(words) is not None


@pytest.mark.parametrize(
    "words",
    [
        "is impossible",
        "but not really",
        "or eight",
        "times x",
        "more than that",
        "ist falsch und nicht",
        "不对",
        "ではありません",
        "가 아닙니다",
        "one two three four five",
    ],
)
def test_words_that_change_the_number_are_not_units(words: str) -> None:
    assert unit_named(words) is None


@given(st.text(max_size=40))
def test_no_text_raises(text: str) -> None:
    unit_named(text)
    measure(text)
