"""A source of problems: a config that can load itself into a frame."""

from __future__ import annotations

import json
import re
from typing import Annotated, Any

import polars as pl
from pydantic import AfterValidator, Field

from curate.config import Config
from curate.errors import UsageError
from curate.registry import check
from curate.verify.registry import REGISTRY

# The columns of schemas/problems.sql that a source gives; a test compares them with that file.
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
# More columns that a source may give: see `curate.problems.identity`.
EXTRA: dict[str, Any] = {"identity": pl.String, "same_as": pl.String}


class Source(Config):
    """A source of problems: its fields are its config, `load` gives the rows.

    `load` returns any columns of `schemas/problems.sql` (only `question` is needed; `problem_id`
    is ignored), and may add `identity` and `same_as`. `load_problems` fills in the rest. A source
    reports rows without a question itself, since it knows where they came from.
    """

    source: str = Field(description="name of the source in the registry, or 'package.module:Class'")

    def load(self) -> pl.DataFrame:
        """The rows, in columns of SCHEMA and EXTRA."""
        raise NotImplementedError

    def expected(self) -> int | None:
        """The number of problems that `load` gives at most, if it is known without loading."""
        return None


def to_schema(frame: pl.DataFrame) -> pl.DataFrame:
    """The frame with every column of SCHEMA and EXTRA, cast, in order; missing ones are null."""
    have = frame.schema
    columns = {**SCHEMA, **EXTRA}
    if unknown := sorted(set(have) - set(columns)):
        raise UsageError(
            f"a source made unknown columns: {', '.join(unknown)}; a problem has "
            f"{', '.join(SCHEMA)}"
        )
    if not have:  # else the literals below would make a row of nothing
        return pl.DataFrame(schema=columns)
    return frame.select(
        (pl.col(name).cast(dtype) if name in have else pl.lit(None, dtype=dtype)).alias(name)
        for name, dtype in columns.items()
    )


def to_text(value: Any) -> str | None:
    """A JSON or Arrow value as text: text unchanged, nested values as JSON, null as null."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    return json.dumps(value, ensure_ascii=False, sort_keys=True, default=str)


def _with_group(pattern: str) -> str:
    """Check that a pattern has a group; pydantic reports the ValueError."""
    try:
        groups = re.compile(pattern).groups
    except re.error as error:
        raise ValueError(f"is not a valid regular expression: {error}") from error
    if groups < 1:
        raise ValueError("needs a group (parentheses) around the reference")
    return pattern


def _existing(name: str) -> str:
    """Check that a verifier exists; raises UsageError."""
    check("verifier", name, REGISTRY)
    return name


# The name of a verifier, or a dotted path to the user's own.
VerifierName = Annotated[str, AfterValidator(_existing)]

# A regular expression whose first group is the reference inside a longer text.
ReferencePattern = Annotated[str, AfterValidator(_with_group)]
