"""`curate sql`: run a query and print its result as a table, CSV, JSON or Parquet.

`SHOW TABLES` leaves out views that only serve other views, and `DESCRIBE` adds the meaning of each
column.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import duckdb
import polars as pl

from curate.errors import UsageError, did_you_mean
from curate.progress import output
from curate.shipped import data_dir, names
from curate.visible import guard_formula, one_line, visible
from curate.warehouse import Warehouse
from curate.warehouse.comments import described, views
from curate.warehouse.parts import find_damage
from curate.warehouse.sql import (
    check_read_only,
    connect_read_only,
    may_be_damage,
    views_read,
)

TABLE_ROWS = 100


def saved_query(file: Path) -> str:
    """Return the text of a query file, or of a saved query by name (with or without `.sql`)."""
    for path in (file, data_dir("queries") / file.name, data_dir("queries") / f"{file.name}.sql"):
        if path.is_file():
            try:
                return path.read_text(encoding="utf-8")
            except UnicodeDecodeError as error:
                raise UsageError(f"{path} is not a text file: {error}") from error
    saved = names("queries", "*.sql")
    hint = did_you_mean(file.stem, saved) or f"; saved queries: {', '.join(saved) or 'none'}"
    raise UsageError(f"no query file {file}{hint}")


def run_query(
    root: Path, query: str, format: str, *, allow_files: bool = False, guard_formulas: bool = False
) -> None:
    """Run one query and print its result. `json` is one object per line.

    `guard_formulas`: text that a spreadsheet would run as a formula gets an apostrophe in front.
    """
    check_read_only(query)
    with connect_read_only(Warehouse(root).root, allow_files, views_read(query)) as connection:
        frame = special(connection, query)
        whole = frame is not None
        if frame is None:
            frame = result_of(connection, query, Warehouse(root).root)
    if format == "csv":
        _write(_flat(frame, guard_formulas).write_csv())
    elif format == "json":
        _write(frame.write_ndjson())
    elif format == "parquet":
        if sys.stdout.isatty():
            raise UsageError("--format parquet writes binary data: redirect it to a file")
        frame.write_parquet(sys.stdout.buffer)
    else:
        output(table(frame, whole))


def _write(text: str) -> None:
    """Print data: unchanged into a file or a pipe, without control characters on a terminal."""
    sys.stdout.write(visible(text) if sys.stdout.isatty() else text)


def special(connection: duckdb.DuckDBPyConnection, query: str) -> pl.DataFrame | None:
    """Curate's own result of `SHOW TABLES` or `DESCRIBE view`; None for any other query."""
    text = query.strip().rstrip("; \n")
    if re.fullmatch(r"(?i)show\s+tables|\.tables", text):
        return pl.DataFrame({"name": views(connection)}, schema={"name": pl.String})
    match = re.fullmatch(r"(?i)(?:describe|desc|\.schema)\s+(\w+)", text)
    if match is None or (view := match.group(1).lower()) not in views(connection):
        return None
    rows = described(connection, view)
    return pl.DataFrame(rows, schema=["column_name", "column_type", "comment"], orient="row")


def result_of(connection: duckdb.DuckDBPyConnection, query: str, root: Path) -> pl.DataFrame:
    """Return the result of one query. UsageError has DuckDB's message or names a damaged part."""
    try:
        result = connection.sql(query)
        return result.pl() if result is not None else pl.DataFrame()
    except duckdb.PermissionException as error:
        raise UsageError(
            f"the query reads a file outside the warehouse: {_first(error)}; --allow-files lets it "
            "read files"
        ) from error
    except duckdb.Error as error:
        damage = find_damage(root) if may_be_damage(error) else None
        raise damage or UsageError(f"the query failed: {str(error).strip()}") from error


def _first(error: Exception) -> str:
    return str(error).strip().splitlines()[0]


def _flat(frame: pl.DataFrame, guard_formulas: bool = False) -> pl.DataFrame:
    """Lists and structs as JSON text, which CSV can hold; formulas guarded on request."""
    nested = [name for name, kind in frame.schema.items() if kind.is_nested()]
    frame = frame.with_columns(
        pl.col(name).map_elements(
            lambda value: json.dumps(_plain(value), default=str), return_dtype=pl.String
        )
        for name in nested
    )
    if not guard_formulas:
        return frame
    frame = frame.rename({name: guard_formula(name) for name in frame.columns})
    return frame.with_columns(pl.col(pl.String).map_elements(guard_formula, return_dtype=pl.String))


def _plain(value: object) -> object:
    return value.to_list() if isinstance(value, pl.Series) else value


def table(frame: pl.DataFrame, whole: bool = False) -> str:
    """Format a result as a table: unless `whole`, long text is cut and at most TABLE_ROWS rows are
    shown.
    """
    rows = len(frame) if whole else TABLE_ROWS
    shown = frame.head(rows)
    shown = shown.rename({name: one_line(name) for name in shown.columns})
    shown = shown.with_columns(pl.col(pl.String).map_elements(one_line, return_dtype=pl.String))
    terminal = sys.stdout.isatty()
    with pl.Config(
        tbl_rows=rows,
        tbl_cols=-1,
        fmt_str_lengths=1000 if whole else 60,
        tbl_hide_dataframe_shape=True,
        tbl_hide_column_data_types=True,
        tbl_formatting="UTF8_FULL_CONDENSED" if terminal else "ASCII_MARKDOWN",
        tbl_width_chars=None if terminal else -1,
        float_precision=4,
        thousands_separator=False,
    ):
        text = visible(shown)  # texts inside lists and structs
    rest = f"\n({len(frame):,} rows, {rows} shown)" if len(frame) > rows else ""
    return text + rest
