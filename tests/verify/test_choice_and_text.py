from __future__ import annotations

import pytest

from curate.records import Problem
from curate.verify import VerifierPool

CHOICES = ["dogs", "cats", "12", r"\frac{1}{2}"]


@pytest.mark.parametrize(
    ("reference", "completion", "expected"),
    [
        ("C", r"\boxed{\textbf{(C)} 12}", "correct"), ("C", r"\boxed{12}", "correct"),
        ("C", r"\boxed{12.0}", "correct"), ("D", "The answer is 0.5.", "correct"),
        ("B", "The answer is (B).", "correct"), ("B", "**B**", "correct"),
        ("B", "答案是B", "correct"),
        ("B", "<answer>B. cats</answer>", "correct"),
        ("B", "Option B", "correct"), ("B", "cats", "correct"), ("cats", "B", "correct"),
        ("1", "B", "correct"), ("B", "b)", "correct"),
        ("B", "A", "wrong"), ("B", "A or B", "wrong"), ("B", "B. dogs", "wrong"),
        ("B", "(A), (B)", "wrong"), ("B", "AB", "wrong"), ("B", "", "wrong"),
        ("B", "E", "wrong"), ("B", "I like animals", "wrong"),
        ("B", "<answer>A</answer><answer>B</answer>", "wrong"),
        ("", "B", "unverifiable"), ("Z", "B", "unverifiable"), ("horses", "B", "unverifiable"),
    ],
)  # fmt: skip
def test_choice(pool: VerifierPool, reference: str, completion: str, expected: str) -> None:
    problem = Problem("Which?", reference, "choice", choices=CHOICES)
    assert pool.verify(problem, completion).verdict == expected


@pytest.mark.parametrize(
    ("verifier", "reference", "completion", "expected"),
    [
        ("exact", "a b", "<answer>a b</answer>", "correct"),
        ("exact", "a b", "<answer>A b</answer>", "wrong"),
        ("exact", "", "<answer>x</answer>", "unverifiable"),
        ("text", "Paris", "The answer is **paris**.", "correct"),
        ("text", "the Moon", "<answer>Moon</answer>", "correct"),
        ("text", "Paris", "Paris or Rome", "wrong"),
        ("text", "colour\ncolor", "<answer>Color</answer>", "correct"),
        ("text", "Ｐａｒｉｓ", "<answer>Paris</answer>", "correct"),
        ("text", "yes", "<answer>是</answer>", "correct"),
        ("text", "...", "<answer>x</answer>", "unverifiable"),
        ("text", "Paris", "<think>Paris</think>", "wrong"),
    ],
)  # fmt: skip
def test_text(
    pool: VerifierPool, verifier: str, reference: str, completion: str, expected: str
) -> None:
    assert pool.verify(Problem("", reference, verifier), completion).verdict == expected
