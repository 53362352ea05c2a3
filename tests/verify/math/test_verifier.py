"""Trees and their comparison, beyond the labelled pairs."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curate.verify import VerifierPool
from curate.verify.math.numeric import TooLarge, exact
from curate.verify.math.parser import Excessive, Unreadable, parse
from curate.verify.math.verifier import compare_answers


def verdict(gold: str, answer: str) -> str | None:
    judged = compare_answers(gold, answer)
    return None if judged is None else judged.verdict


@st.composite
def polynomials(draw: st.DrawFn) -> tuple[str, list[int]]:
    coefficients = draw(
        st.lists(st.integers(-9, 9), min_size=2, max_size=5).filter(
            lambda c: c[-1] != 0 and any(c[1:])
        )
    )
    return "+".join(f"({c})x^{{{i}}}" for i, c in enumerate(coefficients)), coefficients


@given(polynomials(), st.integers(-9, 9))
@settings(max_examples=40, deadline=None)
def test_a_polynomial_equals_itself_rewritten_and_nothing_else(
    polynomial: tuple[str, list[int]], a: int
) -> None:
    text, coefficients = polynomial
    horner = str(coefficients[-1])
    for c in reversed(coefficients[:-1]):
        horner = f"(({horner})x+({c}))"
    assert verdict(text, horner) == "correct"
    assert verdict(text, f"{horner}+{abs(a) + 1}") == "wrong"


@given(st.lists(st.integers(-50, 50), min_size=2, max_size=6, unique=True), st.randoms())
@settings(max_examples=40, deadline=None)
def test_sets_have_no_order_and_tuples_do(values: list[int], rng: object) -> None:
    shuffled = list(values)
    rng.shuffle(shuffled)  # type: ignore[attr-defined]
    inside, other = ", ".join(map(str, values)), ", ".join(map(str, shuffled))
    assert verdict(rf"\{{{inside}\}}", rf"\{{{other}\}}") == "correct"
    assert verdict(f"({inside})", f"({other})") == ("correct" if shuffled == values else "wrong")
    assert verdict(rf"\{{{inside}\}}", f"({inside})") == "wrong"
    assert verdict(rf"\{{{inside}\}}", rf"\{{{', '.join(map(str, values[1:]))}\}}") == "wrong"


@given(st.integers(-50, 49), st.integers(1, 20), st.booleans(), st.booleans())
@settings(max_examples=40, deadline=None)
def test_intervals_and_inequalities_both_ways_round(
    low: int, width: int, left: bool, right: bool
) -> None:
    high = low + width
    interval = f"{'[' if left else '('}{low}, {high}{']' if right else ')'}"
    below, above = "\\le" if left else "<", "\\le" if right else "<"
    inequality = f"{low} {below} x {above} {high}"
    assert verdict(interval, inequality) == "correct"
    assert verdict(inequality, interval) == "correct"
    assert verdict(inequality, interval.replace(str(high), str(high + 1))) == "wrong"


@pytest.mark.parametrize(
    ("gold", "answer", "expected"),
    [
        (r"\sqrt{x^2}", "x", "wrong"), (r"|x-1|", r"|1-x|", "correct"),
        (r"\ln(x^2)", r"2\ln x", "correct"), (r"\log 100", "2", "correct"),
        ("x=1, y=2", "x=2, y=1", "wrong"), ("(x,y)=(1,2)", "(1,2)", "correct"),
        (r"\frac13", r"\frac13 \approx 0.33", "correct"),
        ("5", r"5 \approx 7", "correct"), ("7", r"5 \approx 7", "wrong"), ("3", "1+2=3", "correct"),
        ("x+y=3", "3=y+x", "correct"),
        ("x<y", "y>x", "correct"), ("x<y", "x>y", "wrong"), (r"(1,2)\cup(2,3)", r"(1,3)", "wrong"),
        (r"(1,2]\cup(2,3)", "(1,3)", "correct"),
        (r"\mathbb{R}\setminus\{0\}", r"x \neq 0", "correct"),
        (r"\mathbb{R}", r"\text{all real numbers}", "correct"), (r"\{\}", r"\emptyset", "correct"),
        ("2", r"\frac{7}{0}", "wrong"), (r"\frac{1}{0}", "2", "unverifiable"),
        ("5", r"9^{9^{9^9}}", "wrong"), (r"9^{9^{9^9}}", "5", "unverifiable"),
        ("north-east", "north-west", "wrong"), ("2 hours 30 minutes", "2.5 hours", "correct"),
        ("100, 200", "100,200", "correct"), ("3.14", "3,14", "correct"),
    ],
)  # fmt: skip
def test_pairs(gold: str, answer: str, expected: str) -> None:
    assert verdict(gold, answer) == expected


@pytest.mark.parametrize(
    ("gold", "right", "wrong"),
    [
        ("x^2<4", "-2<x<2", "-2<x<2+10^{-30}"),
        ("x^2-5x+6>0", r"(-\infty,2)\cup(3,\infty)", "(2,3)"),
        (r"x^2\le 2", r"[-\sqrt2,\sqrt2]", r"(-\sqrt2,\sqrt2)"),
        (r"\{x\mid x^2=9\}", r"\{-3,3\}", r"\{3\}"),
        (r"\int_0^1 x\,dx", r"\frac12", r"\frac13"),
        (r"\sum_{k=1}^{n} k", r"\frac{n(n+1)}{2}", r"\frac{n(n-1)}{2}"),
        (r"\sum_{k=1}^{10^6} k^2", "333333833333500000", "333333833333500001"),
        (r"\prod_{k=1}^{5} k", "120", "121"),
    ],
)
def test_polynomials_sums_and_products_are_carried_out(gold: str, right: str, wrong: str) -> None:
    assert verdict(gold, right) == "correct"
    assert verdict(right, gold) == "correct"
    assert verdict(gold, wrong) == "wrong"


def test_what_only_sympy_can_decide_is_passed_to_it(pool: VerifierPool) -> None:
    pairs = [
        (r"|x-2|<3", "(-1,5)"),
        (r"\int_0^1 e^x\,dx", "e-1"),
        (r"\lim_{x\to0}\frac{\sin x}{x}", "1"),
    ]
    assert [verdict(*pair) for pair in pairs] == [None] * 3
    judged = pool.verify_answers(
        [gold for gold, _ in pairs], [rf"\boxed{{{answer}}}" for _, answer in pairs]
    )
    assert [v.verdict for v in judged] == ["correct"] * 3
    wrong = [
        (r"\int_0^1 e^x\,dx", "e"),
        ("x^2<4", "-2<x<3"),
        (r"\int_0^1 x\,dx", r"\frac13"),
        (r"\int_0^{100007} 6x\,dx", r"\frac{60008400295}{2}"),  # near, and both exact
        (r"\int_0^1 \frac{x}{10000000} dx", "10^{-7}"),
    ]
    judged = pool.verify_answers(
        [gold for gold, _ in wrong], [rf"\boxed{{{answer}}}" for _, answer in wrong]
    )
    assert [v.verdict for v in judged] == ["wrong"] * len(wrong)


@given(st.text(alphabet=r"x1290+-*/^_=<>(){}[]|\,.!% fracsqrtpiinle", max_size=60))
@settings(max_examples=200, deadline=None)
def test_no_notation_raises_anything_but_unreadable(text: str) -> None:
    try:
        parse(text)
    except Unreadable:
        return


def test_sizes_are_bounded_before_they_are_computed() -> None:
    with pytest.raises(TooLarge):
        exact(parse("9^{9^9}"))
    with pytest.raises(TooLarge):
        exact(parse("100000!"))
    with pytest.raises(Excessive):
        parse("(" * 100 + "x" + ")" * 100)
    with pytest.raises(Excessive):
        parse("x+" * 1000 + "x")
