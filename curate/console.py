"""Printing for `curate sql` and `curate show`: results of queries, one trace, a prompt for SQL."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path

import duckdb
import polars as pl

from curate.errors import CurateError, UsageError
from curate.progress import output
from curate.visible import guard_formula, one_line, visible
from curate.warehouse import Warehouse
from curate.warehouse.parts import find_damage
from curate.warehouse.schemas import data_dir
from curate.warehouse.sql import (
    check_read_only,
    connect_read_only,
    may_be_damage,
    views_read,
)

TABLE_ROWS = 100
# Columns of `annotated` that are printed in full below the others, or not at all.
LONG = ("question", "prompt", "completion", "reasoning", "answer", "solution")
HIDDEN = ("prompt_token_ids", "completion_token_ids", "logprobs")


def saved_query(file: Path) -> str:
    """The text of a query file, or of a saved query by name (with or without `.sql`)."""
    for path in (file, data_dir("queries") / file.name, data_dir("queries") / f"{file.name}.sql"):
        if path.is_file():
            try:
                return path.read_text(encoding="utf-8")
            except UnicodeDecodeError as error:
                raise UsageError(f"{path} is not a text file: {error}") from error
    names = ", ".join(sorted(p.stem for p in data_dir("queries").glob("*.sql")))
    raise UsageError(f"no query file {file}" + (f"; saved queries: {names}" if names else ""))


def run_query(
    root: Path, query: str, format: str, *, allow_files: bool = False, guard_formulas: bool = False
) -> None:
    """Run one query and print its result. `json` is one object per line.

    `guard_formulas`: text that a spreadsheet would run as a formula gets an apostrophe in front.
    """
    check_read_only(query)
    with connect_read_only(Warehouse(root).root, allow_files, views_read(query)) as connection:
        frame = _result(connection, query, Warehouse(root).root)
    if format == "csv":
        _write(_flat(frame, guard_formulas).write_csv())
    elif format == "json":
        _write(frame.write_ndjson())
    elif format == "parquet":
        if sys.stdout.isatty():
            raise UsageError("--format parquet writes binary data: redirect it to a file")
        frame.write_parquet(sys.stdout.buffer)
    else:
        output(table(frame))


def _write(text: str) -> None:
    """Print data: as it is into a file or a pipe, without control characters on a terminal."""
    sys.stdout.write(visible(text) if sys.stdout.isatty() else text)


def _result(connection: duckdb.DuckDBPyConnection, query: str, root: Path) -> pl.DataFrame:
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


def table(frame: pl.DataFrame) -> str:
    """The result as a table for a person: long text is cut, at most TABLE_ROWS rows are shown."""
    shown = frame.head(TABLE_ROWS)
    shown = shown.rename({name: one_line(name) for name in shown.columns})
    shown = shown.with_columns(pl.col(pl.String).map_elements(one_line, return_dtype=pl.String))
    terminal = sys.stdout.isatty()
    with pl.Config(
        tbl_rows=TABLE_ROWS,
        tbl_cols=-1,
        fmt_str_lengths=60,
        tbl_hide_dataframe_shape=True,
        tbl_hide_column_data_types=True,
        tbl_formatting="UTF8_FULL_CONDENSED" if terminal else "ASCII_MARKDOWN",
        tbl_width_chars=None if terminal else -1,
        float_precision=4,
        thousands_separator=False,
    ):
        text = visible(shown)  # texts inside lists and structs
    rest = f"\n({len(frame)} rows, {TABLE_ROWS} shown)" if len(frame) > TABLE_ROWS else ""
    return text + rest


def interactive(root: Path, *, allow_files: bool = False) -> None:
    """A prompt for SQL: a statement ends with `;`, Ctrl-D leaves, Ctrl-C drops the statement."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (line editing and history for input())
    with connect_read_only(Warehouse(root).root, allow_files) as connection:
        output(
            "SQL over the warehouse, read-only. End with ; and leave with Ctrl-D. Try: SHOW TABLES;"
        )
        lines: list[str] = []
        while True:
            try:
                lines.append(input("curate> " if not lines else "   ...> "))
            except EOFError:
                output()
                return
            except KeyboardInterrupt:
                lines.clear()
                output()
                continue
            text = "\n".join(lines).strip()
            if not text:
                lines.clear()
            elif text.endswith(";"):
                lines.clear()
                try:
                    check_read_only(text)
                    output(table(_result(connection, text, Warehouse(root).root)))
                except (CurateError, duckdb.Error) as error:
                    output(f"error: {error}")


def show_trace(root: Path, trace_id: str) -> str:
    """One trace as text. UsageError if the id fits none or several."""
    frame = Warehouse(root).sql(
        "SELECT * FROM annotated WHERE starts_with(trace_id, ?) LIMIT 2", [trace_id]
    )
    if len(frame) != 1:
        what = "no trace has" if frame.is_empty() else "several traces have"
        raise UsageError(f"{what} an id that starts with '{trace_id}'")
    row = frame.row(0, named=True)
    lines = [
        f"{name:<24} {_short(value)}" for name, value in row.items() if name not in LONG + HIDDEN
    ]
    for name in ("question", "prompt", "completion"):
        lines += ["", f"--- {name} ---", visible(row[name])]
    return "\n".join(lines)


def _short(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else one_line(value)
