"""Labelled cases by kind, and a shared list if it is next to the checkout."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from curate.records import Problem
from curate.verify import VerifierPool
from tests.verify.endings import ENDINGS
from tests.verify.kinds import CASES

CHOICES = ["dogs", "cats", "mice", "rats"]
LABELS = {"c": "correct", "w": "wrong", "u": "unverifiable"}
SHARED = Path(__file__).resolve().parents[3] / "shared" / "cases" / "verdicts.jsonl"


def test_every_kind_has_cases_on_both_sides() -> None:
    kinds = Counter((kind, label) for kind, *_, label in CASES)
    one_sided = {"unreadable", "prose", "place"}
    for kind in {kind for kind, *_ in CASES} - one_sided:
        assert kinds[kind, "c"] >= 1, kind
        assert kinds[kind, "w"] >= 1, kind


@pytest.mark.parametrize("cases", [CASES, ENDINGS], ids=["kinds", "endings"])
def test_every_case_is_judged_as_labelled(
    pool: VerifierPool, cases: list[tuple[str, str, str, str, str]]
) -> None:
    assert len(cases) == len(set(cases))
    problems = [
        Problem("", reference, verifier, choices=CHOICES if verifier == "choice" else None)
        for _, verifier, reference, _, _ in cases
    ]
    verdicts = pool.verify_batch(problems, [text for *_, text, _ in cases])
    misjudged = [
        (case, verdict.verdict, verdict.extracted, verdict.detail)
        for case, verdict in zip(cases, verdicts, strict=True)
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
