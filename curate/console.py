"""What a person reads of the warehouse in a terminal: results of queries, one trace, a prompt for
SQL."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from curate.errors import CurateError, UsageError
from curate.warehouse import Warehouse

if TYPE_CHECKING:
    import duckdb
    import polars as pl


def saved_query(file: Path) -> str:
    """The text of a query file, or of a saved query by name (with or without `.sql`)."""
    from curate.warehouse.schemas import data_dir

    for path in (file, data_dir("queries") / file.name, data_dir("queries") / f"{file.name}.sql"):
        if path.is_file():
            return path.read_text(encoding="utf-8")
    names = ", ".join(sorted(p.stem for p in data_dir("queries").glob("*.sql")))
    raise UsageError(f"no query file {file}" + (f"; saved queries: {names}" if names else ""))


def run_query(warehouse: Path, query: str, format: str) -> None:
    """Run one query and print its result. `json` is one object a line."""
    from curate.warehouse.sql import check_read_only, connect

    check_read_only(query)
    with connect(Warehouse(warehouse)) as connection:
        frame = _ask(connection, query)
    if format == "csv":
        sys.stdout.write(_flat(frame).write_csv())
    elif format == "json":
        sys.stdout.write(frame.write_ndjson())
    elif format == "parquet":
        if sys.stdout.isatty():
            raise UsageError("--format parquet writes binary data: redirect it to a file")
        frame.write_parquet(sys.stdout.buffer)
    else:
        print(table(frame))


def _ask(connection: duckdb.DuckDBPyConnection, query: str) -> pl.DataFrame:
    import duckdb
    import polars as pl

    try:
        found = connection.sql(query)
        return found.pl() if found is not None else pl.DataFrame()
    except duckdb.Error as error:
        raise UsageError(f"the query failed: {str(error).strip()}") from error


def _flat(frame: pl.DataFrame) -> pl.DataFrame:
    """Lists and structs as JSON text, which CSV can hold."""
    import json

    import polars as pl

    nested = [n for n, t in frame.schema.items() if t.is_nested()]
    return frame.with_columns(
        pl.col(n).map_elements(lambda v: json.dumps(_plain(v), default=str), return_dtype=pl.String)
        for n in nested
    )


def _plain(value: object) -> object:
    import polars as pl

    return value.to_list() if isinstance(value, pl.Series) else value


def table(frame: pl.DataFrame) -> str:
    """The result as a table for the eye: long text cut, at most 100 rows."""
    import polars as pl

    with pl.Config(
        tbl_rows=100,
        tbl_cols=-1,
        fmt_str_lengths=60,
        tbl_hide_dataframe_shape=True,
        tbl_hide_column_data_types=True,
        tbl_formatting="ASCII_MARKDOWN" if not sys.stdout.isatty() else "UTF8_FULL_CONDENSED",
        tbl_width_chars=-1 if not sys.stdout.isatty() else None,
        float_precision=4,
        thousands_separator=False,
    ):
        text = str(frame)
    more = f"\n({len(frame)} rows, 100 shown)" if len(frame) > 100 else ""
    return text + more


def interactive(warehouse: Path) -> None:
    """A prompt for SQL: a statement ends with `;`, an empty line at its start or Ctrl-D leaves."""
    import contextlib

    from curate.warehouse.sql import check_read_only, connect

    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (line editing and history for input())
    with connect(Warehouse(warehouse)) as connection:
        print(
            "SQL over the warehouse, read-only. End with ; and leave with Ctrl-D. Try: SHOW TABLES;"
        )
        lines: list[str] = []
        while True:
            try:
                lines.append(input("curate> " if not lines else "   ...> "))
            except EOFError:
                print()
                return
            except KeyboardInterrupt:
                lines.clear()
                print()
                continue
            text = "\n".join(lines).strip()
            if not text:
                lines.clear()
            elif text.endswith(";"):
                lines.clear()
                try:
                    check_read_only(text)
                    print(table(_ask(connection, text)))
                except CurateError as error:
                    print(f"error: {error}")


def show_trace(warehouse: Path, trace_id: str) -> str:
    """One trace as text. UsageError where the id fits none or several."""
    frame = Warehouse(warehouse).sql(
        "SELECT * FROM annotated WHERE starts_with(trace_id, ?) LIMIT 2", [trace_id]
    )
    if len(frame) != 1:
        what = "no trace has" if frame.is_empty() else "several traces have"
        raise UsageError(f"{what} an id that begins with '{trace_id}'")
    row = frame.row(0, named=True)
    long = ("question", "prompt", "completion", "reasoning", "answer", "solution")
    hidden = ("prompt_token_ids", "completion_token_ids", "logprobs")
    lines = [
        f"{name:<24} {_short(value)}" for name, value in row.items() if name not in long + hidden
    ]
    for name in ("question", "prompt", "completion"):
        lines += ["", f"--- {name} ---", str(row[name])]
    return "\n".join(lines)


def _short(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else str(value)
