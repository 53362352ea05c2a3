"""Duplicates and contamination as selection steps."""

from __future__ import annotations

from pathlib import Path

import duckdb

from curate.filter import apply_rules, load_rules


def fallen(con: duckdb.DuckDBPyConnection, **select: object) -> dict[str, set[str]]:
    result = apply_rules(con, load_rules("unfiltered", {"select": select}))
    dropped: dict[str, set[str]] = {}
    for trace, _, step in result.decisions.iter_rows():
        if step:
            dropped.setdefault(step, set()).add(trace)
    return dropped


def test_duplicate_traces_keep_the_best(con: duckdb.DuckDBPyConnection) -> None:
    # the loop (sample 1) is the same text in every problem
    assert fallen(con, duplicates={"near": False}) == {"duplicates": {"t11", "t21", "t31"}}
    kept = fallen(con, duplicates={"near": False, "by": "difficulty"})
    assert kept == {"duplicates": {"t01", "t11", "t21"}}


def test_near_duplicates_are_dropped_too(con: duckdb.DuckDBPyConnection) -> None:
    near = fallen(con, duplicates={"threshold": 0.3})["duplicates"]
    assert {"t11", "t21", "t31"} < near


def test_contaminated_problems_are_dropped_with_their_overlap(
    con: duckdb.DuckDBPyConnection, tmp_path: Path
) -> None:
    path = tmp_path / "benchmark.jsonl"
    path.write_text('{"question": "What is 2 + 4 + 3?"}\n')
    rules = load_rules(
        "unfiltered", {"select": {"contamination": {"benchmarks": [str(path)], "n": 5}}}
    )
    result = apply_rules(con, rules)
    overlaps = result.overlaps.select("problem_id", "tokens", "overlap")
    assert overlaps.rows() == [("p2", 5, "what is 2 4 3")]
    assert result.kept.filter(result.kept["problem_id"] == "p2").is_empty()
    assert result.kept.height == 18


def test_duplicate_problems_drop_all_their_traces(con: duckdb.DuckDBPyConnection) -> None:
    con.sql("CREATE VIEW twice AS SELECT * REPLACE ('What is it?' AS question) FROM annotated")
    rules = load_rules(
        "unfiltered", {"select": {"duplicates": {"over": "question", "by": "difficulty"}}}
    )
    assert set(apply_rules(con, rules, view="twice").kept["problem_id"]) == {"p3"}
