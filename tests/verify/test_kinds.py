"""Labelled cases by kind, a shared list if it is next to the checkout, and a search for cheats."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curate.records import Problem
from curate.verify import VerifierPool
from curate.verify.extract import THINK
from curate.verify.registry import verifier_named
from tests.verify.kinds import CASES

CHOICES = ["dogs", "cats", "mice", "rats"]
LABELS = {"c": "correct", "w": "wrong", "u": "unverifiable"}
SHARED = Path(__file__).resolve().parents[3] / "shared" / "cases" / "verdicts.jsonl"


def test_every_kind_has_cases_on_both_sides() -> None:
    kinds = Counter((kind, label) for kind, *_, label in CASES)
    assert len(CASES) == len(set(CASES))
    one_sided = {"unreadable", "prose", "place"}
    for kind in {kind for kind, *_ in CASES} - one_sided:
        assert kinds[kind, "c"] >= 1, kind
        assert kinds[kind, "w"] >= 1, kind


def test_every_case_is_judged_as_labelled(pool: VerifierPool) -> None:
    problems = [
        Problem("", reference, verifier, choices=CHOICES if verifier == "choice" else None)
        for _, verifier, reference, _, _ in CASES
    ]
    verdicts = pool.verify_batch(problems, [text for *_, text, _ in CASES])
    misjudged = [
        (case, verdict.verdict, verdict.extracted, verdict.detail)
        for case, verdict in zip(CASES, verdicts, strict=True)
        if verdict.verdict != LABELS[case[-1]]
    ]
    assert misjudged == []


@pytest.mark.skipif(not SHARED.is_file(), reason="the shared list is not next to this checkout")
@pytest.mark.slow
def test_the_shared_list_is_judged_as_others_labelled_it(pool: VerifierPool) -> None:
    rows = [json.loads(line) for line in SHARED.read_text().splitlines()]

    def text(value: object) -> str | None:
        return value if value is None or isinstance(value, str) else json.dumps(value)

    problems = [
        Problem(
            "",
            row.get("gold"),
            row["verifier"],
            choices=row.get("choices"),
            tests=text(row.get("tests")),
            metadata=text(row.get("metadata")),
        )
        for row in rows
    ]
    verdicts = pool.verify_batch(problems, [row.get("prediction", "") for row in rows])
    judged = list(zip(rows, verdicts, strict=True))
    false_correct = [
        row["id"]
        for row, verdict in judged
        if verdict.verdict == "correct" != row["verdict"]
        and not row["kind"].startswith("policy:")
        # Several right letters are accepted as a reference; the list was labelled before they were.
        and row["kind"] != "reference forms"
    ]
    right = sum(verdict.verdict == row["verdict"] for row, verdict in judged)
    needless = sum(verdict.verdict == "unverifiable" != row["verdict"] for row, verdict in judged)
    assert false_correct == []
    assert right >= 0.97 * len(rows)
    assert needless <= 0.01 * len(rows)


# -- no way to turn a wrong answer into a correct one

# A reference, and answers that are not it.
WRONG = {
    "7": ["8", "-7", "0.7", "70", r"7\pi", "7^2", r"\frac{7}{2}", "3.5"],
    r"\frac{1}{2}": ["2", "0.25", r"-\frac{1}{2}", r"\frac{3}{2}"],
    "x^2+1": ["x^2", "x^2-1", "2x", "(x+1)^2"],
    "(1,2)": ["(2,1)", "1", r"\{1,2\}", "(1,2,3)"],
    "f(0)": ["0", "f(1)", "f"],
    "2,3": ["2", "3", "2,4", "5"],
}
WRAPPED = [
    "{a}", r"\boxed{{{a}}}", "The answer is ${a}$.", "<answer>{a}</answer>", "**{a}**", "$${a}$$",
    "Answer: {a}", "so {a}\n#### {a}", r"$x = \boxed{{{a}}}$", "The answer is **{a}**.",
    "答案是{a}。",
]  # fmt: skip
HEDGED = [
    "{g} or {w}", "{w} or {g}", "{g}, maybe {w}", "{g} / {w}", "either {g} or {w}", "{g} vs {w}",
    "{g} but also {w}", "{g} unless it is {w}", "{g}? No, {w}", "{g}, {w}, or both", "{g}; {w}",
    "{g} plus {w}", "{g} times {w}", "{w} = {g}", "{g} = {w}", "{g} {w}", "{g}, possibly {w}",
]  # fmt: skip
DENIED = [
    "not {g}", "{g} is wrong", "{g} is not the answer", "more than {g}", "at least {g}",
    "less than {g}",
    "anything but {g}", "nearly {g}", "{g} doubled", "{g} halves", "{g} squared", "minus {g} less",
    "the opposite of {g}", "{g} is incorrect", "it is not {g}", "{g}以上", "除了{g}", "不是{g}",
    "nicht {g}",
    "{g} factorial", "{g} log n", "{g} pi", "{g}, which is wrong",
]  # fmt: skip
BEFORE = [
    "The wrong answer is ${g}$.", "Suppose the answer is {g}.", "I doubt that the answer is {g}.",
    "The student's answer is {g}.", "If the answer is {g}, we are done.", "错误的答案是{g}。",
    "The naive answer is {g}.", "Nobody says that the answer is {g}?", "The answer is not {g}.",
    r"It is not \boxed{{{g}}}.", "Die falsche Antwort ist {g}.",
]  # fmt: skip
APPENDED = [
    "The answer is ${g}$. No, it is ${w}$.", "The answer is {g}. Wait, it is {w}.",
    "The answer is {g}! Just kidding, {w}.", "The answer is {g}? Perhaps {w}.",
    r"\boxed{{{g}}} or \boxed{{{w}}}", r"\boxed{{{g}}} / \boxed{{{w}}}",
    r"\boxed{{{w}}} | \boxed{{{g}}}",
    r"\boxed{{{g}}}, maybe \boxed{{{w}}}", "Answer: ${g}$ or ${w}$", "Answer: {g} (could be {w})",
    "<answer>{g}</answer><answer>{w}</answer>", r"\boxed{{{g}}} is wrong, it is {w}",
    "<think>the answer is {g}</think> I do not know", r"<think>\boxed{{{g}}}</think> \boxed{{{w}}}",
    r"Answer 1: \boxed{{{w}}} Answer 2: \boxed{{{g}}}",
]  # fmt: skip


@st.composite
def cheats(draw: st.DrawFn) -> tuple[str, str]:
    """Draw a reference and a completion that does not give it as its one answer."""
    gold = draw(st.sampled_from(sorted(WRONG)))
    wrong = draw(st.sampled_from(WRONG[gold]))
    kind = draw(st.sampled_from(["wrong", "hedged", "denied", "before", "appended"]))
    if kind == "wrong":
        return gold, draw(st.sampled_from(WRAPPED)).format(a=wrong)
    if kind == "hedged":
        inner = draw(st.sampled_from(HEDGED)).format(g=gold, w=wrong)
        return gold, draw(st.sampled_from(WRAPPED)).format(a=inner)
    if kind == "denied":
        inner = draw(st.sampled_from(DENIED)).format(g=gold)
        return gold, draw(st.sampled_from(WRAPPED)).format(a=inner)
    sentences = BEFORE if kind == "before" else APPENDED
    return gold, draw(st.sampled_from(sentences)).format(g=gold, w=wrong)


@given(cheats())
@settings(max_examples=800, deadline=None)
def test_no_wrapping_hedging_denying_or_appending_makes_a_wrong_answer_correct(
    cheat: tuple[str, str],
) -> None:
    gold, text = cheat
    if "2,3" in gold and ("2" in text and "3" in text and " or " in text):
        return  # "2 or 3" does list 2 and 3
    verifier = verifier_named("math")
    problem = Problem("", gold, "math")
    answer = verifier.extract(problem, text, THINK).answer
    if answer is None:
        return
    judgement = verifier.quick(problem, answer) or verifier.check(problem, answer)
    assert judgement.verdict != "correct", (answer, judgement)
