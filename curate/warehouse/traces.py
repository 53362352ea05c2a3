"""Rows of finished traces, from logs and rollouts, as frames with the types of the table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

import polars as pl

from curate.prompts.forms import answer_expr, reasoning_expr, with_opener_expr
from curate.warehouse import schemas


@cache
def trace_types() -> dict[str, pl.DataType]:
    """Polars type of each column of `traces`: inference fails on columns that start with nulls."""
    frame = pl.DataFrame(pl.from_arrow(schemas.arrow_schema("traces").empty_table()))
    return dict(frame.schema)


def trace_frame(rows: Iterable[Mapping[str, Any]]) -> pl.DataFrame:
    """Put rows (mappings with columns of `traces`) into a frame; columns of no row are left out.

    `created_at` may be ISO 8601 text.
    """
    rows = list(rows)
    names = [name for name in trace_types() if any(name in row for row in rows)]
    texts = {"created_at"} if any(isinstance(row.get("created_at"), str) for row in rows) else set()
    types = {name: pl.String() if name in texts else trace_types()[name] for name in names}
    frame = pl.DataFrame(rows, schema=types)
    return frame.with_columns(pl.col(name).str.to_datetime(time_zone="UTC") for name in texts)


def with_parts(frame: pl.DataFrame) -> pl.DataFrame:
    """Add `reasoning` and `answer` to a frame (completion, prompt, form), as its form has them."""
    form = pl.col("form")
    text = with_opener_expr(pl.col("completion"), pl.col("prompt"), form)
    return frame.with_columns(reasoning=reasoning_expr(text, form), answer=answer_expr(text, form))
