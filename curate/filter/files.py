"""Rules over plain Parquet and JSONL files, without a warehouse.

The files are read twice: once for the narrow columns that the rules name (annotated on the way where a rule reads a
signal that the file lacks), once to write the kept rows. Text is in memory part by part only, unless the selection asks
for duplicates or contamination, which compare texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

from curate.errors import UsageError
from curate.filter.engine import FilterResult, apply_rules, columns_read, explain
from curate.filter.rules import RuleSet
from curate.signals import column_groups, derived_columns
from curate.signals.files import Writer, annotate_part, data_files, read_parts

if TYPE_CHECKING:
    import duckdb


def filter_files(
    paths: Sequence[str | Path],
    rules: RuleSet,
    out: str | Path,
    text_column: str = "completion",
    form: str | None = None,
    where: str | None = None,
) -> FilterResult:
    """Write the rows that `rules` keep, with the columns of the input, to one Parquet or JSONL file.

    Raises what `apply_rules` raises, and `UsageError` where a rule reads a column that the files have not.
    """
    frame = narrow_frame(paths, rules, text_column, form, where)
    with connect_frame(frame) as con:
        result = apply_rules(con, rules, where)
    kept = frame.get_column("trace_id").is_in(result.kept.get_column("trace_id").implode())
    with Writer(out) as writer:
        at = 0
        for path in data_files(paths):
            for part in read_parts(path):
                writer.write(part.filter(kept.slice(at, part.height)))
                at += part.height
    return result


def explain_files(
    paths: Sequence[str | Path],
    rules: RuleSet,
    trace_id: str,
    text_column: str = "completion",
    form: str | None = None,
    where: str | None = None,
) -> str:
    """Why one row was kept or dropped, as text. Rows without a column `trace_id` are called `row-000000000`, …"""
    with connect_frame(narrow_frame(paths, rules, text_column, form, where)) as con:
        return str(explain(con, rules, trace_id, where))


def connect_frame(frame: pl.DataFrame) -> duckdb.DuckDBPyConnection:
    """A connection whose view `annotated` is `frame`: for `apply_rules` and `explain`. Use it in a `with`."""
    import duckdb

    con = duckdb.connect()
    con.register("annotated", frame.to_arrow())
    return con


def narrow_frame(
    paths: Sequence[str | Path],
    rules: RuleSet,
    text_column: str = "completion",
    form: str | None = None,
    where: str | None = None,
) -> pl.DataFrame:
    """One row a row of the files, in order, with the columns that the rules read.

    Rows without a column `trace_id` are called by their number over all files (`row-000000000`); rows without
    `problem_id` share a problem where their `question` is the same, else each is its own. Columns of traces and
    problems that the files lack are null; a missing verdict, or an unknown column, is a `UsageError` naming the rule.
    """
    needed = columns_read(rules, where)
    parts: list[pl.DataFrame] = []
    rows = 0
    for path in data_files(paths):
        for part in read_parts(path):
            measured = set(column_groups()) | set(derived_columns())
            if (measured & set(needed)) - set(part.columns):
                part = annotate_part(part, text_column, form, None, str(path))
            parts.append(_keys(part, rows, text_column).select(_column(part, name, needed) for name in needed))
            rows += part.height
    frame = pl.concat(parts, how="vertical_relaxed")
    if frame.get_column("trace_id").is_duplicated().any():
        raise UsageError("the column trace_id holds some ids twice: make them distinct, or rename the column")
    return frame


def _keys(part: pl.DataFrame, first: int, text_column: str) -> pl.DataFrame:
    """`part` with trace_id, attempt, problem_id and completion."""
    row = pl.int_range(first, first + part.height, dtype=pl.Int64).cast(pl.String).str.zfill(9)
    keys: dict[str, pl.Expr] = {"completion": pl.col(text_column)} if text_column in part.columns else {}
    if "trace_id" not in part.columns:
        keys["trace_id"] = pl.lit("row-") + row
    else:
        keys["trace_id"] = pl.col("trace_id").cast(pl.String)
    if "attempt" not in part.columns:
        keys["attempt"] = pl.lit(0, dtype=pl.Int64)
    if "problem_id" not in part.columns:
        keys["problem_id"] = pl.col("question") if part.schema.get("question") == pl.String else keys["trace_id"]
    return part.with_columns(**keys)


def _column(part: pl.DataFrame, name: str, needed: dict[str, str]) -> pl.Expr:
    """The column, or null of its type where a plain file need not have it."""
    if name in part.columns or name in ("trace_id", "attempt", "problem_id", "completion"):
        return pl.col(name)
    types = _optional_types()
    if name in types:
        return pl.lit(None, dtype=types[name]).alias(name)
    hint = "(correct, wrong or unverifiable) " if name == "verdict" else ""
    raise UsageError(
        f"rule '{needed[name]}' reads the column '{name}', which the files have not: add it {hint}"
        "or use rules without it"
    )


def _optional_types() -> dict[str, pl.DataType]:
    """Columns of traces and problems, and the verdicts beside the rule's."""
    from curate.warehouse.schemas import arrow_schema

    beside = ("judge_verdict", "coherence_verdict", "consensus_verdict")
    types: dict[str, pl.DataType] = {name: pl.String() for name in beside}
    for table in ("traces", "problems"):
        types |= dict(pl.DataFrame(pl.from_arrow(arrow_schema(table).empty_table())).schema)
    return types
