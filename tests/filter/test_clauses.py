"""Explanation of a dropped trace: each failed clause of a rule or macro, with values and
thresholds.
"""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl

from curate.filter import load_rules
from curate.filter.expressions import columns_of, conjuncts, reads_other_rows
from curate.filter.plain_files import explain_files


def explanation(folder: Path, text: str, keep: str) -> str:
    pl.DataFrame({"completion": [text]}).write_parquet(folder / "in.parquet")
    rules = folder / "rules.yaml"
    rules.write_text(json.dumps({"rules": [{"name": "mine", "keep": keep, "reason": "r"}]}))
    return explain_files([folder / "in.parquet"], load_rules(rules), "row-000000000")


def test_a_macro_names_the_clause_that_failed_with_value_and_threshold(tmp_path: Path) -> None:
    shown = explanation(tmp_path, "I add the numbers again. " * 40, "readable")
    failed = [line for line in shown.splitlines() if "readable fails" in line]
    assert any("loop_repeats >= 4" in line and "loop_repeats = 40" in line for line in failed)
    assert not any("vowelless_share" in line for line in failed)


def test_only_the_failed_clauses_of_a_rule_are_named(tmp_path: Path) -> None:
    shown = explanation(tmp_path, "Three and four are seven.", "readable AND characters > 99")
    assert "fails: characters > 99: characters = 25" in shown
    assert "readable fails" not in shown


def test_a_macro_that_must_not_hold_shows_why_it_holds(tmp_path: Path) -> None:
    text = (
        "First, fold the paper in half. "
        "第二次折叠会产生新的折痕，与第一条垂直，所以一共有三条折痕。 Then unfold it."
    )
    shown = explanation(tmp_path, text, "NOT mixed_language")
    assert "mixed_language holds: dominant_language_share <= 0.95" in shown


def test_expressions_are_split_by_the_parse_tree() -> None:
    assert [c.strip("()") for c in conjuncts("a > 1 AND (b OR c) AND NOT d")] == [
        "a > 1",
        "b OR c",
        "NOT d",
    ]
    assert conjuncts("a OR b") == ("a OR b",)
    assert columns_of("labels.score > 0.5 AND annotated.quality > 0") == ("labels", "quality")
    assert reads_other_rows("rank() OVER (ORDER BY quality) < 5")
    assert not reads_other_rows("answer = 'over (and over)'")
