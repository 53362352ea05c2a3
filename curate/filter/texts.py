"""The two selection steps that read text: contamination and duplicates. They read only what the rules left.

Text comes from the view in batches; what stays in memory of a text is its signature (21 numbers).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import polars as pl

from curate.filter.rules import Contamination, Duplicates, Selection

if TYPE_CHECKING:
    import duckdb

_BATCH = 50_000  # texts in memory at once
_LEFT = pl.col("dropped_by").is_null()
_OVERLAPS = {"problem_id": pl.String, "tokens": pl.Int64, "overlap": pl.String}


def drop_by_text(
    con: duckdb.DuckDBPyConnection, frame: pl.DataFrame, selection: Selection, view: str
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """`frame` with `dropped_by` filled in, and the overlaps with benchmarks (problem_id, tokens, overlap)."""
    overlaps = pl.DataFrame(schema=_OVERLAPS)
    if selection.contamination is not None:
        overlaps = _contaminated(con, frame, selection.contamination, view)
        falls = pl.col("problem_id").is_in(overlaps["problem_id"].implode())
        frame = _drop(frame, "contamination", falls)
    if selection.duplicates is not None:
        frame = _drop_duplicates(con, frame, selection.duplicates, view)
    return frame, overlaps


def _drop(frame: pl.DataFrame, step: str, falls: pl.Expr) -> pl.DataFrame:
    return frame.with_columns(dropped_by=pl.when(_LEFT & falls).then(pl.lit(step)).otherwise("dropped_by"))


def _contaminated(con: duckdb.DuckDBPyConnection, frame: pl.DataFrame, step: Contamination, view: str) -> pl.DataFrame:
    from curate.filter.contamination import contaminated, read_benchmark

    benchmark = read_benchmark(step.benchmarks, step.column, step.n)
    asked = _units(frame, "question")
    found = []
    for part, texts in _texts(con, asked, "question", view):
        hits = contaminated(texts, benchmark)
        found.append(hits.select(part["problem_id"].gather(hits["at"]).alias("problem_id"), "tokens", "overlap"))
    return pl.concat([pl.DataFrame(schema=_OVERLAPS), *found])


def _drop_duplicates(con: duckdb.DuckDBPyConnection, frame: pl.DataFrame, step: Duplicates, view: str) -> pl.DataFrame:
    from curate.filter.duplicates import apart, duplicates, signatures

    units = _units(frame, step.over)
    if units.is_empty():
        return frame
    marks = pl.concat([signatures(texts, step.near) for _, texts in _texts(con, units, step.over, view)])
    if step.within is not None:
        marks = apart(marks, units["_within"])

    def fetch(at: pl.Series) -> pl.Series:
        wanted = units.select(pl.all().gather(at))
        return pl.concat([texts for _, texts in _texts(con, wanted, step.over, view)])

    found = duplicates(marks, fetch, units["_best"], step.threshold)
    lesser = units.filter(found["kind"].is_not_null())
    key = "problem_id" if step.over == "question" else "trace_id"
    return _drop(frame, "duplicates", pl.col(key).is_in(lesser[key].implode()))


def _units(frame: pl.DataFrame, over: str) -> pl.DataFrame:
    """What is compared: the traces that are left, or (for questions) one trace of each of their problems."""
    names = [n for n in ("trace_id", "attempt", "problem_id", "_best", "_within") if n in frame.columns]
    left = frame.filter(_LEFT).select(names).sort("trace_id", "attempt")
    if over != "question":
        return left
    best = left.group_by("problem_id").agg(pl.col("_best").max())
    return (
        left.drop("_best")
        .unique("problem_id", keep="first", maintain_order=True)
        .join(best, on="problem_id", how="left", maintain_order="left")
    )


def _texts(
    con: duckdb.DuckDBPyConnection, units: pl.DataFrame, column: str, view: str
) -> Iterator[tuple[pl.DataFrame, pl.Series]]:
    """Batches of units with their texts, in order."""
    for part in units.iter_slices(_BATCH):
        con.register("_asked", part.with_row_index("_n").select("_n", "trace_id", "attempt").to_arrow())
        try:
            rows = con.sql(
                f'SELECT k._n, a."{column}" AS text FROM _asked k '
                f"JOIN {view} a ON a.trace_id = k.trace_id AND a.attempt = k.attempt ORDER BY k._n"
            ).pl()
        finally:
            con.unregister("_asked")
        yield part, rows.get_column("text")
