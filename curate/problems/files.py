"""Problems from local files of any kind that `curate.files` reads, with a mapping from their
columns to ours.
"""

from __future__ import annotations

import glob
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl
from pydantic import Field, field_validator

from curate.errors import UsageError
from curate.files import (
    KINDS,
    Reading,
    column_expr,
    column_names,
    data_files,
    kind_of,
    read_numbered,
    stem_of,
)
from curate.problems.base import ReferencePattern, Source, VerifierName, to_text

FIELDS = (
    *("question", "reference", "solution", "choices", "tests", "verifier"),
    *("target_language", "difficulty", "split", "source", "domain", "metadata"),
)


class Mapped(Source):
    """Common part of sources that are tables: columns of fields, constants for missing columns, and
    how a reference is read.
    """

    columns: dict[str, str] = Field(
        default_factory=dict,
        description="our field: their column; any other field is the column of the same name",
    )
    verifier: VerifierName | None = Field(None, description="verifier of rows that have none")
    domain: str | None = Field(None, description="domain of rows that have none")
    target_language: str | None = Field(None, description="target_language of rows that have none")
    difficulty: float | None = Field(
        None, ge=0, le=1, description="difficulty of rows that have none"
    )
    split: str | None = Field(None, description="split of rows that have none")
    label: str | None = Field(
        None,
        description="value of the column `source`; default: the name of the file or dataset",
    )
    reference_pattern: ReferencePattern | None = Field(
        None,
        description="regular expression whose first group is the reference: '#### (.+)' for GSM8K",
    )
    reference_is_index: bool = Field(
        False, description="the reference is the position of the right choice, counted from 0"
    )
    show_choices: bool = Field(
        False, description="add the choices below the question, as lines `A) …`"
    )
    skip_invalid: bool = Field(
        False, description="skip rows without a question instead of refusing them"
    )
    limit: int | None = Field(None, ge=1, description="maximum number of rows")

    def expected(self) -> int | None:
        return self.limit

    @field_validator("columns")
    @classmethod
    def _known_fields(cls, columns: dict[str, str]) -> dict[str, str]:
        if unknown := sorted(set(columns) - set(FIELDS)):
            raise ValueError(f"unknown field '{unknown[0]}': map any of {', '.join(FIELDS)}")
        return columns

    def mapped(
        self, table: pl.DataFrame, where: str, label: str, lines: Sequence[int]
    ) -> pl.DataFrame:
        """The table in our columns. In messages `where` names it and `lines` numbers its rows."""
        names = {field: self.columns.get(field, field) for field in FIELDS}
        columns = {field: column_expr(table.schema, their) for field, their in names.items()}
        missing = sorted(their for field, their in self.columns.items() if columns[field] is None)
        if missing or columns["question"] is None:
            raise UsageError(
                f"{where} has no column '{(missing or [names['question']])[0]}': it has "
                f"{', '.join(column_names(table.schema))}. "
                "Say which column is which, e.g. `columns: {question: problem, reference: answer}`"
            )
        picked = {
            field: table.select(column[0]).to_series()
            for field, column in columns.items()
            if column
        }
        frame = pl.DataFrame([_column(values, field, where) for field, values in picked.items()])
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
        if self.show_choices and "choices" in frame.columns:
            frame = frame.with_columns(with_choices(frame["question"], frame["choices"]))
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
                "Correct it, map another column to `question`, or set `skip_invalid: true`"
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
                    f"{where}: the reference '{bad[0]}' is not a position of a choice (0 "
                    "for A, 1 for B, ...)"
                )
        return frame.with_columns(reference.alias("reference"))


class Files(Mapped):
    """Problems from one or several files: `path` is a file, a directory, or a pattern such as
    `data/*.jsonl`.
    """

    path: str | list[str] = Field(description="file, directory or pattern; or several of them")
    header: bool | None = Field(
        None, description="whether the first row of CSV and TSV files holds names; null: detected"
    )
    rows: str | None = Field(None, description="the key of a JSON object that holds the rows")

    def load(self) -> pl.DataFrame:
        patterns = [self.path] if isinstance(self.path, str) else self.path
        reading = Reading(header=self.header, rows=self.rows, skip_invalid=self.skip_invalid)
        frames = []
        for path in data_files([path for pattern in patterns for path in find(pattern)]):
            parts = list(read_numbered(path, reading=reading))
            table = pl.concat([frame for frame, _ in parts], how="vertical")
            lines = [number for _, numbers in parts for number in numbers]
            frames.append(self.mapped(table, str(path), self.label or stem_of(path), lines))
        return pl.concat(frames, how="diagonal_relaxed")


def find(pattern: str) -> list[Path]:
    """The files that a path, a directory or a pattern matches, sorted. UsageError if there are
    none.
    """
    path = Path(pattern).expanduser()
    if path.is_file():
        return [path]
    if path.is_dir():
        paths = [p for p in sorted(path.iterdir()) if p.is_file() and kind_of(p)]
    else:
        paths = [Path(p) for p in sorted(glob.glob(str(path), recursive=True)) if Path(p).is_file()]
    if not paths:
        raise UsageError(
            f"no problems at '{pattern}': there is no such file, and no {', '.join(KINDS)} in it"
        )
    return paths


def with_choices(questions: pl.Series, choices: pl.Series) -> pl.Series:
    """Questions with their choices below them, as `A) …`, one on each line; null choices add
    nothing.
    """
    rows = zip(questions.to_list(), choices.to_list(), strict=True)
    texts = [
        "\n".join([f"{question}\n", *_lettered(listed)]) if question and listed else question
        for question, listed in rows
    ]
    return pl.Series("question", texts, dtype=pl.String)


def _lettered(choices: list[str | None]) -> list[str]:
    return [f"{chr(ord('A') + place)}) {text or ''}" for place, text in enumerate(choices)]


def _column(values: pl.Series, field: str, where: str) -> pl.Series:
    """A column of any type, in the type of our field."""
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
    except (ValueError, TypeError, RecursionError, pl.exceptions.PolarsError) as error:
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
