"""Read `schemas/signals.sql` and `schemas/macros.sql`, and apply the macros to a frame.

The macros themselves, which rules call by name, are in `schemas/macros.sql`. To add one, add it
there: the parameters of a macro have the names of the signal columns they read, so that views and
plain files can call it without a list of macros or of their arguments.
"""

from __future__ import annotations

import re
from functools import cache

import duckdb
import polars as pl

from curate.warehouse import schemas


def macro_sql() -> str:
    """Text of `schemas/macros.sql`."""
    return schemas.statement("macros")


@cache
def column_groups() -> dict[str, str]:
    """Map each signal column to its group, in the order of the schema.

    The group is the word in square brackets at the start of the column's comment.
    """
    tags = {
        name: re.match(r"\[([\w-]+)\]", comment)
        for name, comment in schemas.comments("signals").items()
    }
    return {name: tag.group(1) for name, tag in tags.items() if tag is not None}


@cache
def signal_types() -> dict[str, pl.DataType]:
    """Map each signal column to the Polars type that the schema declares."""
    frame = pl.DataFrame(pl.from_arrow(schemas.arrow_schema("signals").empty_table()))
    return {name: dtype for name, dtype in frame.schema.items() if name in column_groups()}


@cache
def derived_columns() -> dict[str, str]:
    """Map each derived column to the SQL that calls its macro on the signal columns.

    In the order of `schemas/macros.sql`.
    """
    with duckdb.connect() as connection:
        connection.execute(macro_sql())
        rows = connection.execute(
            "SELECT function_name, parameters FROM duckdb_functions() "
            "WHERE function_type = 'macro' AND NOT internal ORDER BY function_oid"
        ).fetchall()
    signals = set(column_groups())
    return {
        name: f"{name}({', '.join(parameters)})"
        for name, parameters in rows
        if signals.issuperset(parameters)
    }


def with_macros(frame: pl.DataFrame) -> pl.DataFrame:
    """Return `frame` with the derived columns, computed from its signal columns by the macros."""
    needed = [name for name in column_groups() if name in frame.columns]
    signals = frame.select(needed).with_row_index("_row")
    calls = ", ".join(f"{sql} AS {name}" for name, sql in derived_columns().items())
    with duckdb.connect() as connection:
        connection.execute(macro_sql())
        connection.register("signals", signals.to_arrow())
        derived: pl.DataFrame = connection.sql(f"SELECT {calls} FROM signals ORDER BY _row").pl()
    return frame.drop(derived.columns, strict=False).hstack(derived)
