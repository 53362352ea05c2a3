"""What a source of problems is: a config model that can load itself into a frame of columns."""

from __future__ import annotations

import json
from typing import Any

import polars as pl
from pydantic import Field

from curate.config import Config
from curate.errors import UsageError

# The columns of schemas/problems.sql, which a test holds against that file.
SCHEMA: dict[str, Any] = {
    "problem_id": pl.String,
    "source": pl.String,
    "domain": pl.String,
    "question": pl.String,
    "reference": pl.String,
    "solution": pl.String,
    "choices": pl.List(pl.String),
    "tests": pl.String,
    "verifier": pl.String,
    "target_language": pl.String,
    "difficulty": pl.Float64,
    "split": pl.String,
    "metadata": pl.String,
}
# What a source may give beside them: see `curate.problems.identity`.
EXTRA: dict[str, Any] = {"identity": pl.String, "same_as": pl.String}


class Source(Config):
    """A source of problems: its fields are its config (unknown keys are errors), `load` makes the rows.

    `load` returns any of the columns of `schemas/problems.sql` (only `question` is needed; `problem_id` is ignored),
    and may add `identity` and `same_as`. `load_problems` fills in the rest. A row without a question is the source's
    to report, since it knows where the row came from.
    """

    source: str = Field(description="name of the source in the registry, or 'package.module:Class'")

    def load(self) -> pl.DataFrame:
        """The rows, in columns of SCHEMA and EXTRA."""
        raise NotImplementedError

    def expected(self) -> int | None:
        """How many problems `load` gives at most, if that is known without loading."""
        return None


def to_schema(frame: pl.DataFrame) -> pl.DataFrame:
    """The frame with every column of SCHEMA and EXTRA, cast, in order; missing ones are null."""
    have = frame.schema
    columns = {**SCHEMA, **EXTRA}
    if unknown := sorted(set(have) - set(columns)):
        raise UsageError(
            f"a source made unknown columns: {', '.join(unknown)}; a problem has {', '.join(SCHEMA)}"
        )
    if not have:  # else the literals below would make a row of nothing
        return pl.DataFrame(schema=columns)
    return frame.select(
        (pl.col(name).cast(dtype) if name in have else pl.lit(None, dtype=dtype)).alias(name)
        for name, dtype in columns.items()
    )


def to_text(value: Any) -> str | None:
    """A value of JSON or Arrow as the text of a column: text as it is, anything nested as JSON, null as null."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    return json.dumps(value, ensure_ascii=False, sort_keys=True, default=str)
