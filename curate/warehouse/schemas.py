"""The one truth about columns: `schemas/*.sql`, turned by DuckDB into the Arrow schemas that
writers must obey."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import curate
from curate.errors import CurateError

if TYPE_CHECKING:
    import pyarrow as pa

TABLES = (
    "problems",
    "traces",
    "rollouts",
    "verdicts",
    "signals",
    "corpora",
    "funnel",
    "contamination",
    "jobs",
    "models",
    "metrics",
    "evaluations",
)


def data_dir(kind: str) -> Path:
    """Where shipped `schemas`, `pipelines` or `queries` lie: inside the package of a wheel, beside
    it in a checkout."""
    package = Path(curate.__file__).parent
    inside = package / "data" / kind
    if inside.is_dir():
        return inside
    return package.parent / ("warehouse/queries" if kind == "queries" else kind)


def shipped_file(path: str) -> str:
    """The path, or that of the file of this name that ships with the pipelines if there is none here."""
    shipped = data_dir("pipelines") / path
    return str(shipped) if not Path(path).exists() and shipped.is_file() else path


@cache
def statement(table: str) -> str:
    """The text of `schemas/<table>.sql`."""
    return (data_dir("schemas") / f"{table}.sql").read_text(encoding="utf-8")


@cache
def schema_version(table: str) -> int:
    """The version that the first line of the file declares."""
    found = re.match(r"-- version: (\d+)", statement(table))
    if found is None:
        raise CurateError(f"schemas/{table}.sql does not begin with '-- version: N'")
    return int(found.group(1))


@cache
def comments(table: str) -> dict[str, str]:
    """Column name to its comment."""
    return dict(re.findall(r"^\s{4}(\w+)\s+[^-\n]*?--\s*(.+)$", statement(table), flags=re.M))


@cache
def arrow_schema(table: str) -> pa.Schema:
    """The Arrow schema of a table. Every column is nullable in Arrow; `conform` checks those that
    are NOT NULL."""
    import duckdb

    with duckdb.connect() as connection:
        connection.execute(statement(table))
        found = connection.sql(f"SELECT * FROM {table}").to_arrow_table().schema
    return found


@cache
def required(table: str) -> tuple[str, ...]:
    """Columns that must not be null."""
    import duckdb

    with duckdb.connect() as connection:
        connection.execute(statement(table))
        rows = connection.execute(
            "SELECT column_name FROM duckdb_columns() WHERE table_name = ? AND NOT is_nullable",
            [table],
        ).fetchall()
    return tuple(name for (name,) in rows)


@cache
def types(table: str) -> dict[str, str]:
    """Column name to its SQL type."""
    import duckdb

    with duckdb.connect() as connection:
        connection.execute(statement(table))
        query = "SELECT column_name, data_type FROM duckdb_columns() WHERE table_name = ? ORDER BY column_index"
        return dict(connection.execute(query, [table]).fetchall())


def conform(table: str, rows: Any) -> pa.Table:
    """Rows in the schema of a table: columns in its order, absent ones null, types cast without
    loss.

    `rows` is an Arrow table, a Polars frame or an iterable of mappings. Unknown columns and nulls
    where the schema forbids them raise CurateError: a writer that does not know the schema is a
    bug, and must not pass silently.
    """
    import polars as pl
    import pyarrow as pa

    schema = arrow_schema(table)
    if isinstance(rows, pl.LazyFrame):
        rows = rows.collect()
    if isinstance(rows, pl.DataFrame):
        rows = rows.to_arrow()
    elif not isinstance(rows, pa.Table):
        rows = _from_mappings(table, list(rows), schema)
    unknown = [name for name in rows.column_names if name not in schema.names]
    if unknown:
        raise CurateError(
            f"table {table} has no column {', '.join(unknown)}: see schemas/{table}.sql"
        )
    columns = [
        rows.column(f.name).cast(f.type)
        if f.name in rows.column_names
        else pa.nulls(rows.num_rows, f.type)
        for f in schema
    ]
    result = pa.table(columns, schema=schema)
    for name in required(table):
        if result.column(name).null_count:
            raise CurateError(
                f"column {name} of table {table} must not be null: see schemas/{table}.sql"
            )
    return result


def _from_mappings(table: str, rows: Iterable[Mapping[str, Any]], schema: pa.Schema) -> pa.Table:
    import pyarrow as pa

    rows = list(rows)
    unknown = sorted({name for row in rows for name in row} - set(schema.names))
    if unknown:
        raise CurateError(
            f"table {table} has no column {', '.join(unknown)}: see schemas/{table}.sql"
        )
    return pa.Table.from_pylist([dict(row) for row in rows], schema=schema)
