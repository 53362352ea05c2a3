"""`math-strict` asks for a value that is carried out; `math-rounded` forgives rounding."""

from __future__ import annotations

import pytest

from curate.records import Problem
from curate.verify import VerifierPool


@pytest.mark.parametrize(
    ("reference", "answer", "plain", "strict"),
    [
        ("5", "5", "correct", "correct"),
        ("5", "x = 5", "correct", "correct"),
        ("5", "4+1 = 5", "correct", "correct"),
        ("5", "4+1", "correct", "wrong"),
        ("5", r"\sqrt{25}", "correct", "wrong"),
        ("1/3", r"\int_0^1 x^2\,dx", "correct", "wrong"),
        ("1/3", r"\frac{2}{6}", "correct", "correct"),
        ("2\\pi", r"\pi + \pi", "correct", "correct"),  # the reference is not a plain number
        ("5 cm", "5", "correct", "wrong"),
        ("5 cm", "50 mm", "correct", "correct"),
        ("7 apples", "7 oranges", "correct", "wrong"),
        ("7 apples", "7 apples", "correct", "correct"),
        ("5", "6", "wrong", "wrong"),
        ("see solution", "5", "unverifiable", "unverifiable"),
    ],
)
def test_strict(pool: VerifierPool, reference: str, answer: str, plain: str, strict: str) -> None:
    completion = rf"\boxed{{{answer}}}"
    verdicts = [
        pool.verify(Problem("", reference, name), completion).verdict
        for name in ("math", "math-strict")
    ]
    assert verdicts == [plain, strict]


@pytest.mark.parametrize(
    ("reference", "answer", "rounded"),
    [
        ("100/3", "33.3", "correct"),
        ("100/3", "33.33", "correct"),
        ("100/3", "33.34", "wrong"),
        ("100/3", "33", "wrong"),
        ("33.3", r"\frac{100}{3}", "correct"),
        (r"\sqrt{2}", "1.41", "correct"),
        (r"\sqrt{2}", "1.42", "wrong"),
        (r"\sqrt{2}", "1.4", "wrong"),
        (r"2\pi", "6.28", "correct"),
        ("12.346", "12.3", "correct"),
        ("12.346", "12.4", "wrong"),
        ("100/3 cm", "33.3 kg", "wrong"),
        ("1000", "1001", "wrong"),
        ("x", "1.23", "wrong"),
    ],
)
def test_rounded(pool: VerifierPool, reference: str, answer: str, rounded: str) -> None:
    verdict = pool.verify(Problem("", reference, "math-rounded"), rf"\boxed{{{answer}}}")
    assert verdict.verdict == rounded, verdict.detail
