"""Columns of all tables, as `schemas/*.sql` declares them: DuckDB turns the statements into the
Arrow schemas that writers must obey."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pyarrow as pa

from curate.errors import CurateError
from curate.shipped import data_dir

TABLES = (
    "problems",
    "traces",
    "rollouts",
    "rescored",
    "verdicts",
    "signals",
    "influences",
    "corpora",
    "funnel",
    "contamination",
    "jobs",
    "models",
    "metrics",
    "evaluations",
)


def shipped_file(path: str) -> str:
    """The path, or that of the shipped pipeline file of this name if the path does not exist."""
    shipped = data_dir("pipelines") / path
    return str(shipped) if not Path(path).exists() and shipped.is_file() else path


@cache
def statement(table: str) -> str:
    """The text of `schemas/<table>.sql`."""
    return (data_dir("schemas") / f"{table}.sql").read_text(encoding="utf-8")


@cache
def schema_version(table: str) -> int:
    """The version that the first line of the file declares."""
    match = re.match(r"-- version: (\d+)", statement(table))
    if match is None:
        raise CurateError(f"schemas/{table}.sql does not start with '-- version: N'")
    return int(match.group(1))


@cache
def comments(table: str) -> dict[str, str]:
    """Column name to its comment, which may continue on further comment lines."""
    column = r"^ {4}(\w+) [^-]*-- (.+(?:\n +-- .+)*)"
    return {
        name: re.sub(r"\n +-- ", " ", comment)
        for name, comment in re.findall(column, statement(table), flags=re.M)
    }


@cache
def arrow_schema(table: str) -> pa.Schema:
    """The Arrow schema of a table. Every column is nullable in Arrow; `conform` checks those that
    are NOT NULL."""
    with duckdb.connect() as connection:
        connection.execute(statement(table))
        return connection.sql(f"SELECT * FROM {table}").to_arrow_table().schema


def required(table: str) -> tuple[str, ...]:
    """Columns that must not be null, in order: the first one is part of the key."""
    return tuple(name for name, _, nullable in _columns()[table] if not nullable)


def types(table: str) -> dict[str, str]:
    """Column name to its SQL type, in order."""
    return {name: kind for name, kind, _ in _columns()[table]}


@cache
def _columns() -> dict[str, list[tuple[str, str, bool]]]:
    """Name, SQL type and nullability of the columns of each table.

    One connection reads all tables: opening one takes longer than its statements.
    """
    columns: dict[str, list[tuple[str, str, bool]]] = {}
    with duckdb.connect() as connection:
        for table in TABLES:
            connection.execute(statement(table))
        rows = connection.execute(
            "SELECT table_name, column_name, data_type, is_nullable FROM duckdb_columns() "
            "WHERE NOT internal ORDER BY table_name, column_index"
        ).fetchall()
    for table, *column in rows:
        columns.setdefault(table, []).append((column[0], column[1], column[2]))
    return columns


def conform(table: str, rows: Any) -> pa.Table:
    """Bring rows into the schema of a table: columns in order, absent ones null, lossless casts.

    `rows` is an Arrow table, a Polars frame or an iterable of mappings. Unknown columns, and nulls
    in columns that must not be null, raise CurateError: a writer that does not match the schema is
    a bug and must not go unnoticed.
    """
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
    rows = list(rows)
    unknown = sorted({name for row in rows for name in row} - set(schema.names))
    if unknown:
        raise CurateError(
            f"table {table} has no column {', '.join(unknown)}: see schemas/{table}.sql"
        )
    return pa.Table.from_pylist([dict(row) for row in rows], schema=schema)
