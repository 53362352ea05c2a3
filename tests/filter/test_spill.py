"""Deciding slice by slice gives the same result as at once, in order, and within its memory."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path

import duckdb
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curate.errors import UsageError
from curate.filter import apply_rules, load_rules
from curate.filter.corpus import corpus_rows
from curate.filter.plain_files import filter_files
from curate.filter.spill import ExternalSort, bounds_of, in_chunks
from tests.filter.conftest import traces

SELECTIONS = [
    {},
    {"per_problem": {"best": {"k": 2, "by": "step_count"}}},
    {"per_problem": {"diverse": {"k": 2}}},
    {"per_problem": {"random": {"k": 1}}, "balance": {"by": "source"}},
    {"budget": 7},
    {"difficulty": {"low": 0.3, "high": 0.5, "model": "small"}},
    {"duplicates": {"near": True, "threshold": 0.3}},
    {"duplicates": {"over": "question", "within": "source"}},
]


class Thirds:
    """Points the view `third` at one third of `annotated` after another, then at all of it."""

    def __init__(self, con: duckdb.DuckDBPyConnection) -> None:
        self.con = con
        self.show("TRUE")

    def show(self, where: str) -> None:
        self.con.execute(f"CREATE OR REPLACE VIEW third AS SELECT * FROM annotated WHERE {where}")

    def __iter__(self) -> Iterator[int]:
        for third in range(3):
            self.show(f"hash(trace_id) % 3 = {third}")
            yield third
        self.show("TRUE")


@pytest.mark.parametrize("select", SELECTIONS, ids=lambda select: "-".join(select) or "none")
@pytest.mark.parametrize("name", ["unfiltered", "rejection"])
def test_slices_change_nothing(
    con: duckdb.DuckDBPyConnection, name: str, select: dict[str, object]
) -> None:
    rules = load_rules(name, {"select": select})
    whole, sliced = (
        apply_rules(con, rules),
        apply_rules(con, rules, view="third", slices=Thirds(con)),
    )
    assert sliced.rows.parts == 3
    assert sliced.funnel.equals(whole.funnel)
    assert sliced.counts() == whole.counts()
    for ours, theirs in ((sliced.decisions, whole.decisions), (sliced.kept, whole.kept)):
        assert ours.sort("trace_id").equals(theirs.sort("trace_id"))
    written = [
        pl.concat(corpus_rows(con, decided, "c", view="third", slices=slices))
        for decided, slices in ((whole, ()), (sliced, Thirds(con)), (sliced, ()))
    ]
    assert written[0].equals(written[1])
    assert written[0].equals(written[2])
    assert written[0]["trace_id"].is_sorted()


def test_rl_has_one_row_per_problem_whatever_the_slices(con: duckdb.DuckDBPyConnection) -> None:
    rules = load_rules("unfiltered", {"kind": "rl"})
    result = apply_rules(con, rules, view="third", slices=Thirds(con))
    rows = pl.concat(corpus_rows(con, result, "c", view="third", slices=Thirds(con), part_rows=3))
    assert rows["problem_id"].to_list() == ["p0", "p1", "p2", "p3"]


def test_a_window_sees_all_traces(con: duckdb.DuckDBPyConnection) -> None:
    rule = {
        "name": "many",
        "keep": "count(*) OVER (PARTITION BY problem_id) = 6",
        "reason": "All of a problem.",
    }
    rules = load_rules("unfiltered", {"rules": [rule]})
    assert apply_rules(con, rules, view="third", slices=Thirds(con)).kept.height == 24


def test_the_files_are_removed_with_the_result(
    con: duckdb.DuckDBPyConnection, tmp_path: Path
) -> None:
    result = apply_rules(con, load_rules("unfiltered"), folder=tmp_path)
    assert list(tmp_path.iterdir())
    del result
    gc.collect()
    assert not list(tmp_path.iterdir())


def test_a_too_small_memory_is_refused_with_the_amount_needed(
    con: duckdb.DuckDBPyConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    rules = load_rules("unfiltered", {"select": {"duplicates": {"near": False}}})
    assert apply_rules(con, rules, memory="300MB").rows.total == 24
    monkeypatch.setattr("curate.filter.decide.TEXT_BYTES", 100_000_000)
    with pytest.raises(
        UsageError, match=r"24 traces passed .* takes about 2\.4 GB: give memory=4GB"
    ):
        apply_rules(con, rules, memory="2GB")
    assert apply_rules(con, rules, memory="4GB").rows.total == 24
    # nothing is chosen
    assert apply_rules(con, load_rules("unfiltered"), memory="300MB").rows.total == 24


def test_files_of_several_parts_are_filtered_as_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = traces().select("completion", "question", "verdict", "finish_reason", "source")
    rows.write_ndjson(tmp_path / "all.jsonl")
    rows.head(10).write_ndjson(tmp_path / "a.jsonl")
    rows.slice(10).write_parquet(tmp_path / "b.parquet")
    rules = load_rules("rejection", {"select": {"per_problem": {"shortest": {"k": 1}}}})
    once = filter_files([tmp_path / "all.jsonl"], rules, tmp_path / "once.jsonl", form="r1-zero")
    monkeypatch.setattr("curate.files.PART_ROWS", 4)
    parts = filter_files(
        [tmp_path / "a.jsonl", tmp_path / "b.parquet"],
        rules,
        tmp_path / "parts.jsonl",
        form="r1-zero",
    )
    assert parts.rows.parts == 7
    assert parts.kept.equals(once.kept)
    assert (tmp_path / "parts.jsonl").read_text() == (tmp_path / "once.jsonl").read_text()


IDS = st.lists(
    st.tuples(st.text("0aß中", max_size=4), st.integers(0, 3)), unique=True, max_size=300
)


@settings(deadline=None, max_examples=30)
@given(ids=IDS, pieces=st.integers(1, 5), rows=st.integers(1, 80))
def test_external_sort_orders_rows(
    tmp_path_factory: pytest.TempPathFactory, ids: list[tuple[str, int]], pieces: int, rows: int
) -> None:
    frame = pl.DataFrame(ids, schema={"trace_id": pl.String, "attempt": pl.Int64}, orient="row")
    frame = frame.with_columns(text=pl.col("trace_id") + "!")
    parts = [frame.gather_every(pieces, at) for at in range(pieces)]
    ordered = ExternalSort(bounds_of(parts, rows), tmp_path_factory.mktemp("ordered"))
    for part in parts:
        ordered.add(part)
    for _ in range(2):  # it can be read more than once
        read = list(in_chunks(ordered, rows, 1 << 30, "text"))
        assert pl.concat([frame.clear(), *read]).equals(frame.sort("trace_id", "attempt"))
        assert all(part.height == rows for part in read[:-1])
    ordered.remove()


def test_chunks_end_at_the_limit_of_their_text() -> None:
    parts = [pl.DataFrame({"text": ["x" * 10] * 7}), pl.DataFrame({"text": ["x" * 25, None, "x"]})]
    heights = [part.height for part in in_chunks(parts, 4, 30, "text")]
    assert heights == [3, 3, 2, 2]
