"""What `schemas/signals.sql` and `schemas/macros.sql` declare, and the macros applied to a frame.

A macro's parameters are called as the signal columns they read, so that a view (or a plain file) can call it without
anybody repeating the list.
"""

from __future__ import annotations

import re
from functools import cache

import polars as pl

from curate.warehouse import schemas

DERIVED = ("mixed_language", "readable", "quality")


def macro_sql() -> str:
    """The text of `schemas/macros.sql`."""
    return schemas.statement("macros")


@cache
def column_groups() -> dict[str, str]:
    """Signal column to its group, in the order of the schema. The group stands in brackets before the comment."""
    groups = {
        name: re.match(r"\[([\w-]+)\]", comment)
        for name, comment in schemas.comments("signals").items()
    }
    return {name: found.group(1) for name, found in groups.items() if found is not None}


@cache
def signal_types() -> dict[str, pl.DataType]:
    """Signal column to its Polars type, as the schema declares it."""
    frame = pl.DataFrame(pl.from_arrow(schemas.arrow_schema("signals").empty_table()))
    return {name: dtype for name, dtype in frame.schema.items() if name in column_groups()}


@cache
def derived_columns() -> dict[str, str]:
    """Name of each derived column to the SQL that calls its macro on the signal columns."""
    import duckdb

    with duckdb.connect() as connection:
        connection.execute(macro_sql())
        rows = connection.execute(
            "SELECT function_name, parameters FROM duckdb_functions() WHERE function_type = 'macro' AND NOT internal"
        ).fetchall()
    parameters: dict[str, list[str]] = dict(rows)
    return {name: f"{name}({', '.join(parameters[name])})" for name in DERIVED}


def with_macros(frame: pl.DataFrame) -> pl.DataFrame:
    """`frame` (with its signal columns) and `mixed_language`, `readable`, `quality`, computed by the shipped macros."""
    import duckdb

    needed = [name for name in column_groups() if name in frame.columns]
    signals = frame.select(needed).with_row_index("_row")
    calls = ", ".join(f"{sql} AS {name}" for name, sql in derived_columns().items())
    with duckdb.connect() as connection:
        connection.execute(macro_sql())
        connection.register("signals", signals.to_arrow())
        derived: pl.DataFrame = connection.sql(f"SELECT {calls} FROM signals ORDER BY _row").pl()
    return frame.drop(derived.columns, strict=False).hstack(derived)
