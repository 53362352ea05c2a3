"""Kept rows in the shape a trainer reads."""

from __future__ import annotations

from pathlib import Path

import duckdb
import pytest

from curate.errors import UsageError
from curate.filter import apply_rules, load_rules
from curate.filter.corpus import corpus_rows, write_corpus
from curate.filter.job import bounded
from curate.warehouse import Warehouse
from curate.warehouse.schemas import conform


def test_rows_have_new_prompts_and_whole_completions(con: duckdb.DuckDBPyConnection) -> None:
    result = apply_rules(con, load_rules("cold-start"))
    parts = list(corpus_rows(con, result, "mine", part_rows=3))
    assert [part.height for part in parts] == [3, 3, 2]
    row = parts[0].row(0, named=True)
    assert row["trace_id"] == "t04"
    assert row["prompt"].endswith("User: What is 0 + 4 + 3? Assistant:")
    assert row["prompt"].count("User:") == 1
    assert row["completion"] == " <think>0 + 4 = 4. 4 + 3 = 7.</think> <answer>7</answer>"
    assert [turn["role"] for turn in row["messages"]] == ["user", "assistant"]
    assert conform("corpora", parts[0]).num_rows == 3


def test_another_form_is_composed_from_the_parts(con: duckdb.DuckDBPyConnection) -> None:
    result = apply_rules(con, load_rules("cold-start", {"output.form": "r1"}))
    row = next(corpus_rows(con, result, "mine")).row(0, named=True)
    assert row["completion"].strip() == "<think>\n0 + 4 = 4. 4 + 3 = 7.\n</think>\n\n7"
    assert row["form"] == "r1"


def test_rl_corpora_hold_problems_once(con: duckdb.DuckDBPyConnection) -> None:
    result = apply_rules(con, load_rules("unfiltered", {"kind": "rl"}))
    rows = next(corpus_rows(con, result, "mine"))
    assert rows["problem_id"].to_list() == ["p0", "p1", "p2", "p3"]
    assert rows["completion"].to_list() == [""] * 4
    assert rows["messages"].list.len().to_list() == [1] * 4


def test_a_corpus_is_sealed_once_with_its_funnel(
    con: duckdb.DuckDBPyConnection, tmp_path: Path
) -> None:
    warehouse = Warehouse(tmp_path / "w")
    result = apply_rules(con, load_rules("cold-start"))
    version = write_corpus(warehouse, con, result, "mine", parents=["traces/x/y"])
    again = write_corpus(warehouse, con, apply_rules(con, load_rules("cold-start")), "mine")
    assert version.ref == again.ref
    assert version.sealed
    assert version.manifest["parents"] == ["traces/x/y"]
    assert warehouse.sql("SELECT count(*) AS n FROM corpora")["n"].item() == 8
    stored = warehouse.sql("SELECT rule, sum(drops_first)::INT AS n FROM funnel GROUP BY rule")
    assert dict(stored.iter_rows())["correct"] == 4
    other = write_corpus(warehouse, con, result, "mine", key="another template")
    assert other.ref != version.ref


@pytest.mark.parametrize("name", ["cold-start", "rejection", "unfiltered"])
def test_shipped_sets_make_rows(con: duckdb.DuckDBPyConnection, name: str) -> None:
    result = apply_rules(con, load_rules(name))
    assert sum(part.height for part in corpus_rows(con, result, "c")) == result.kept.height


@pytest.mark.parametrize("memory", ["much", "10MB", "2 TB"])
def test_an_invalid_memory_limit_is_refused(
    memory: str, tmp_path: Path, con: duckdb.DuckDBPyConnection
) -> None:
    with pytest.raises(UsageError, match="memory: "), bounded(con, memory, tmp_path):
        pass


def test_the_memory_limit_reaches_duckdb(tmp_path: Path, con: duckdb.DuckDBPyConnection) -> None:
    with bounded(con, "400MB", tmp_path):
        limit = con.sql("SELECT current_setting('memory_limit')").fetchall()[0][0]
        spill = con.sql("SELECT current_setting('temp_directory')").fetchall()[0][0]
    assert limit == "190.7 MiB"  # half, in 2^20 bytes
    assert str(tmp_path) in spill
