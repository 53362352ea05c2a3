"""Problems from local files: JSONL, CSV and Parquet, with a mapping from their columns to ours."""

from __future__ import annotations

import glob
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl
from pydantic import Field, field_validator

from curate.errors import UsageError
from curate.problems.base import Source, to_text

FIELDS = (
    *("question", "reference", "solution", "choices", "tests", "verifier"),
    *("target_language", "difficulty", "split", "source", "domain", "metadata"),
)


class Mapped(Source):
    """What sources of tables share: columns to fields, constants where there is no column, how a reference is read."""

    columns: dict[str, str] = Field(
        default_factory=dict,
        description="our field: their column; a field not named here is the column of its own name",
    )
    verifier: str | None = Field(None, description="for every row that has none of its own")
    domain: str | None = Field(None, description="for every row that has none of its own")
    target_language: str | None = Field(None, description="for every row that has none of its own")
    difficulty: float | None = Field(
        None, ge=0, le=1, description="for every row that has none of its own"
    )
    split: str | None = Field(None, description="for every row that has none of its own")
    label: str | None = Field(
        None,
        description="what the column `source` holds; default: the name of the file or data set",
    )
    reference_pattern: str | None = Field(
        None,
        description="regular expression whose first group is the reference, e.g. '#### (.+)' for GSM8K",
    )
    reference_is_index: bool = Field(
        False, description="the reference is the position of the right choice, from 0"
    )
    skip_invalid: bool = Field(
        False, description="leave out rows without a question instead of refusing them"
    )
    limit: int | None = Field(None, ge=1, description="only the first so many rows")

    @field_validator("columns")
    @classmethod
    def _known_fields(cls, columns: dict[str, str]) -> dict[str, str]:
        if unknown := sorted(set(columns) - set(FIELDS)):
            raise ValueError(f"unknown field '{unknown[0]}': map any of {', '.join(FIELDS)}")
        return columns

    @field_validator("reference_pattern")
    @classmethod
    def _one_group(cls, pattern: str | None) -> str | None:
        if pattern is not None:
            try:
                groups = re.compile(pattern).groups
            except re.error as error:
                raise ValueError(f"is no regular expression: {error}") from error
            if groups < 1:
                raise ValueError("needs a group (parentheses) around the reference")
        return pattern

    def mapped(
        self, table: pl.DataFrame, where: str, label: str, lines: Sequence[int]
    ) -> pl.DataFrame:
        """A table in our columns. In messages `where` names it and `lines` numbers its rows."""
        names = {field: self.columns.get(field, field) for field in FIELDS}
        missing = sorted(
            {their for field, their in self.columns.items() if their not in table.columns}
        )
        if missing or names["question"] not in table.columns:
            raise UsageError(
                f"{where} has no column '{(missing or [names['question']])[0]}': it has {', '.join(table.columns)}. "
                "Say which column is which, e.g. `columns: {question: problem, reference: answer}`"
            )
        picked = {field: their for field, their in names.items() if their in table.columns}
        frame = pl.DataFrame(
            [_column(table[their], field, where) for field, their in picked.items()]
        )
        frame = frame.head(self.limit) if self.limit else frame
        frame = self._without_blank_questions(frame, where, lines)
        constants = {
            "verifier": self.verifier,
            "domain": self.domain,
            "target_language": self.target_language,
        }
        for field, value in {
            **constants,
            "difficulty": self.difficulty,
            "split": self.split,
            "source": label,
        }.items():
            own = [pl.col(field)] if field in frame.columns else []
            dtype = pl.Float64 if field == "difficulty" else pl.String
            frame = frame.with_columns(pl.coalesce(*own, pl.lit(value, dtype=dtype)).alias(field))
        frame = self._references(frame, where)
        return (
            frame.with_columns(pl.col("metadata").alias("identity"))
            if "metadata" in frame.columns
            else frame
        )

    def _without_blank_questions(
        self, frame: pl.DataFrame, where: str, lines: Sequence[int]
    ) -> pl.DataFrame:
        blank = pl.col("question").is_null() | (pl.col("question").str.strip_chars() == "")
        rows = frame.with_row_index("row").filter(blank)["row"]
        if len(rows) and not self.skip_invalid:
            raise UsageError(
                f"{where}, line {lines[rows[0]]}: no question ({len(rows):,} such rows). "
                "Mend it, map another column to `question`, or set `skip_invalid: true`"
            )
        return frame.filter(~blank)

    def _references(self, frame: pl.DataFrame, where: str) -> pl.DataFrame:
        if "reference" not in frame.columns:
            return frame
        reference = pl.col("reference").str.strip_chars()
        if self.reference_pattern:
            reference = reference.str.extract(self.reference_pattern, 1).str.strip_chars()
            if frame.height and frame.select(reference.is_null().all()).item():
                raise UsageError(
                    f"{where}: `reference_pattern` '{self.reference_pattern}' matches no reference"
                )
        if self.reference_is_index:
            position = reference.str.to_integer(strict=False)
            letters = {i: chr(ord("A") + i) for i in range(26)}
            reference = position.replace_strict(letters, default=None, return_dtype=pl.String)
            if bad := frame.filter(pl.col("reference").is_not_null() & reference.is_null())[
                "reference"
            ].to_list():
                raise UsageError(
                    f"{where}: the reference '{bad[0]}' is no position of a choice (0 for A, 1 for B, ...)"
                )
        return frame.with_columns(reference.alias("reference"))


class Files(Mapped):
    """Problems from one or several files: `path` is a file, a directory, or a pattern such as `data/*.jsonl`."""

    path: str | list[str]

    def load(self) -> pl.DataFrame:
        paths = [
            path
            for pattern in ([self.path] if isinstance(self.path, str) else self.path)
            for path in find(pattern)
        ]
        frames = []
        for path in paths:
            table, lines = read_table(path)
            frames.append(self.mapped(table, str(path), self.label or path.stem, lines))
        return pl.concat(frames, how="diagonal_relaxed")


def find(pattern: str) -> list[Path]:
    """The files that a path, a directory or a pattern means, sorted; `UsageError` where there is none."""
    path = Path(pattern).expanduser()
    if path.is_file():
        return [path]
    if path.is_dir():
        found = [p for p in sorted(path.iterdir()) if p.suffix.lower() in READERS]
    else:
        found = [Path(p) for p in sorted(glob.glob(str(path), recursive=True)) if Path(p).is_file()]
    if not found:
        raise UsageError(
            f"no problems at '{pattern}': there is no such file, and no {', '.join(READERS)} in it"
        )
    return found


def read_table(path: Path) -> tuple[pl.DataFrame, Sequence[int]]:
    """One file as a table, and the numbers of its rows as an editor counts them (Parquet: from 1)."""
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise UsageError(f"'{path}' is of no known kind: give {', '.join(READERS)}")
    try:
        return reader(path)
    except (OSError, UnicodeDecodeError, pl.exceptions.PolarsError) as error:
        raise UsageError(f"'{path}' could not be read: {error}") from error


def _jsonl(path: Path) -> tuple[pl.DataFrame, Sequence[int]]:
    """Line by line, since only that can say which line is broken; values stay as JSON has them."""
    rows: list[dict[str, Any]] = []
    numbers: list[int] = []
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise UsageError(
                    f"{path}, line {number}: not JSON ({error}). Each line must be one JSON object"
                ) from error
            if not isinstance(row, dict):
                raise UsageError(
                    f"{path}, line {number}: a JSON object was expected, not {type(row).__name__}"
                )
            rows.append(row)
            numbers.append(number)
    names = dict.fromkeys(name for row in rows for name in row)
    return pl.DataFrame(
        [pl.Series(n, [row.get(n) for row in rows], dtype=pl.Object) for n in names]
    ), numbers


def _csv(path: Path) -> tuple[pl.DataFrame, Sequence[int]]:
    table = pl.read_csv(
        path, infer_schema=False, separator="\t" if path.suffix.lower() == ".tsv" else ","
    )
    return table, range(2, table.height + 2)  # below the header, where no value spans lines


def _parquet(path: Path) -> tuple[pl.DataFrame, Sequence[int]]:
    table = pl.read_parquet(path)
    return table, range(1, table.height + 1)


READERS = {".jsonl": _jsonl, ".ndjson": _jsonl, ".csv": _csv, ".tsv": _csv, ".parquet": _parquet}


def _column(values: pl.Series, field: str, where: str) -> pl.Series:
    """One column of any type as the type of our field."""
    try:
        if field == "choices":
            return _choices(values)
        if field == "difficulty":
            return pl.Series(field, values.to_list(), dtype=pl.String, strict=False).cast(
                pl.Float64
            )
        if values.dtype == pl.String:
            return values.alias(field)
        if values.dtype.is_integer():
            return values.cast(pl.String).alias(field)
        return pl.Series(field, [to_text(value) for value in values.to_list()], dtype=pl.String)
    except (ValueError, TypeError, pl.exceptions.PolarsError) as error:
        raise UsageError(
            f"{where}: column '{values.name}' cannot be read as {field}: {error}"
        ) from error


def _choices(values: pl.Series) -> pl.Series:
    """Choices as lists of text: lists, JSON lists in text, or records with `text` (as in ARC)."""
    if values.dtype == pl.List(pl.String):
        return values.alias("choices")
    return pl.Series(
        "choices", [_choice_list(value) for value in values.to_list()], dtype=pl.List(pl.String)
    )


def _choice_list(value: Any) -> list[str | None] | None:
    if isinstance(value, str):
        value = json.loads(value)
    if isinstance(value, Mapping):
        value = value["text"] if "text" in value else [value[key] for key in sorted(value)]
    if value is None:
        return None
    if not isinstance(value, list):
        raise ValueError(f"a list of choices was expected, not {value!r}")
    return [to_text(choice) for choice in value]
