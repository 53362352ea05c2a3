"""Rows of finished traces, as logs and rollouts hold them, put into columns of their types."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from curate.warehouse import schemas

if TYPE_CHECKING:
    import polars as pl


@cache
def trace_types() -> dict[str, pl.DataType]:
    """Column of `traces` to its Polars type. Without it a column that is null in the first rows is
    guessed wrong."""
    import polars as pl

    frame = pl.DataFrame(pl.from_arrow(schemas.arrow_schema("traces").empty_table()))
    return dict(frame.schema)


def trace_frame(rows: Iterable[Mapping[str, Any]]) -> pl.DataFrame:
    """Rows (mappings with columns of `traces`) as a frame; columns that no row has are left out.

    `created_at` may be ISO 8601 text.
    """
    import polars as pl

    rows = list(rows)
    names = [name for name in trace_types() if any(name in row for row in rows)]
    texts = {"created_at"} if any(isinstance(row.get("created_at"), str) for row in rows) else set()
    types = {name: pl.String() if name in texts else trace_types()[name] for name in names}
    frame = pl.DataFrame(rows, schema=types)
    return frame.with_columns(pl.col(name).str.to_datetime(time_zone="UTC") for name in texts)


def with_parts(frame: pl.DataFrame) -> pl.DataFrame:
    """The frame (completion, prompt, form) with `reasoning` and `answer`, as the form defines them."""
    import polars as pl

    from curate.prompts.forms import answer_expr, reasoning_expr, with_opener_expr

    form = pl.col("form")
    text = with_opener_expr(pl.col("completion"), pl.col("prompt"), form)
    return frame.with_columns(reasoning=reasoning_expr(text, form), answer=answer_expr(text, form))
