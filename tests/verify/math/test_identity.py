"""Rational expressions are compared exactly; other expressions are left undecided."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curate.verify.math.compare import equal
from curate.verify.math.identity import is_identity, is_multiple
from curate.verify.math.parser import parse

whole = st.integers(min_value=-(10**30), max_value=10**30)


@settings(deadline=None)
@given(a=whole, b=whole, off=st.integers(min_value=-3, max_value=3))
def test_a_product_is_its_expansion_and_no_other_polynomial(a: int, b: int, off: int) -> None:
    product = parse(f"(x+({a}))(x+({b}))")
    expansion = parse(f"x^2+({a + b})x+({a * b + off})")
    assert is_identity(product, expansion) is (off == 0)
    assert equal(product, expansion) is (off == 0)


def test_a_difference_beyond_every_digit_of_a_float_is_detected() -> None:
    assert is_identity(parse("x+10^{20}y"), parse("x+10^{20}y+0.001")) is False
    assert is_identity(parse(r"\frac{x^2-y^2}{x-y}"), parse("x+y")) is True
    assert is_identity(parse(r"\frac{\pi}{4}+x"), parse("0.7853981633974x+x")) is False


def test_long_decimals_are_left_to_the_numeric_comparison() -> None:
    third = parse("0." + "3" * 28 + "x")
    assert is_identity(parse(r"\frac{x}{3}"), third) is None
    assert equal(parse(r"\frac{x}{3}"), third) is True


@pytest.mark.parametrize(
    "text",
    [r"\sqrt{x}", r"\sin x", "x^n", "x^{1/2}", "x^{-1}", "e^2", "i", r"\frac{x}{x-x}", "30^\\circ"],
)
def test_other_expressions_are_left_to_the_numeric_comparison(text: str) -> None:
    assert is_identity(parse(text), parse(text)) is None
    assert is_multiple(parse(text), parse("x")) is None


def test_a_tower_of_powers_is_left_to_the_limits_on_size() -> None:
    assert is_identity(parse("(((x^{20})^{20})^{20})^{20}"), parse("x")) is None


def test_equations_are_multiples_only_with_one_factor_for_all_terms() -> None:
    assert is_multiple(parse("2x-4y+6"), parse("x-2y+3")) is True
    assert is_multiple(parse("2x-4y+6"), parse("x-2y+4")) is False
    assert is_multiple(parse("x-x"), parse("x")) is None  # zero is a multiple of everything
