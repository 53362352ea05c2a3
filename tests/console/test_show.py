"""`curate show` is short by default, `--all` hides nothing, and problems can be looked at."""

from __future__ import annotations

from pathlib import Path

import pytest

from curate import api
from curate.console.show import list_problems, show_problems, show_trace
from curate.errors import UsageError


def one(warehouse: Path, verdict: str) -> dict[str, object]:
    query = "SELECT * FROM annotated WHERE verdict = ? ORDER BY trace_id LIMIT 1"
    from curate.warehouse import Warehouse

    return Warehouse(warehouse).sql(query, [verdict]).row(0, named=True)


def test_a_trace_fits_on_a_screen_with_the_essentials(warehouse: Path) -> None:
    row = one(warehouse, "correct")
    text = show_trace(warehouse, str(row["trace_id"])[:12])
    lines = text.splitlines()
    assert len(lines) < 25
    head = "\n".join(lines[: lines.index("--- question ---")])
    for part in ("trace", "problem", "sampled", "tokens", "verdict", "signals", "corpora"):
        assert f"\n{part:<10}" in f"\n{head}"
    assert f"reference {row['reference']}" in head
    assert "well-formed" in head
    assert str(row["completion"]) in text
    assert "--- prompt ---" not in text


def test_the_corpora_that_hold_a_trace_are_named(warehouse: Path) -> None:
    kept = api.sql("SELECT trace_id, version FROM corpora LIMIT 1", warehouse=warehouse).row(0)
    assert f"best@{kept[1]}" in show_trace(warehouse, kept[0])
    assert "corpora   none" in show_trace(warehouse, str(one(warehouse, "wrong")["trace_id"]))


def test_all_shows_every_column_with_its_meaning_once(warehouse: Path) -> None:
    row = one(warehouse, "wrong")
    text = show_trace(warehouse, str(row["trace_id"]), everything=True)
    columns = text.partition("\n\n")[2]  # below the head
    lines = [line.strip().split("  ")[0] for line in columns.splitlines()]
    texts = {"question", "prompt", "completion", "reasoning", "answer", "solution", "messages"}
    hidden = {"prompt_token_ids", "completion_token_ids", "logprobs"}
    for name in set(row) - texts - hidden:
        assert lines.count(name) == 1, name
    assert "characters of the text" in text
    assert "--- prompt ---" in text


def test_an_id_must_match_one_trace(warehouse: Path) -> None:
    with pytest.raises(UsageError, match="several traces"):
        show_trace(warehouse, "")
    with pytest.raises(UsageError, match="no trace has"):
        show_trace(warehouse, "zzz")


def test_problems_are_listed_and_shown(warehouse: Path) -> None:
    listed = list_problems(warehouse)
    assert "sums" in listed
    assert "math" in listed
    shown = show_problems(warehouse, "sums")
    assert "12 problems" in shown
    assert "What is 1 + 1?" in shown
    problem = api.sql("SELECT * FROM problems LIMIT 1", warehouse=warehouse).row(0, named=True)
    text = show_problems(warehouse, problem["problem_id"][:10])
    assert problem["question"] in text
    assert "pass_rate" in text or problem["split"] == "held-out"
    with pytest.raises(UsageError, match=r"no problems called 'sumz'.*did you mean 'sums'"):
        show_problems(warehouse, "sumz")


def test_a_warehouse_without_problems_says_how_to_load_some(tmp_path: Path) -> None:
    assert "curate problems load FILE" in list_problems(tmp_path / "none")
