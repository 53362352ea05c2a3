"""The units of a job and their prompts: problems to sample, or traces to rewrite (rework.py)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import duckdb
import polars as pl

from curate.errors import UsageError
from curate.filter.expressions import check_expression
from curate.generate.config import GenerateConfig
from curate.job import Context
from curate.problems.store import ProblemStore
from curate.prompts.render import Chat, Example, Template, render

Row = dict[str, Any]


@dataclass(frozen=True)
class Units:
    """Problems, and their prompts.

    frame: one row per unit: its id `unit`, `simple`, and the columns of `problems`.
    origin: where the units come from, for the printed plan.
    parents: the versions that they come from.
    simple: template of the problems that `condition` selects, which get no worked examples.
    """

    frame: pl.DataFrame
    origin: str
    parents: list[str]
    context: Context
    template: Template
    simple: Template | None = None
    condition: str = ""
    examples: tuple[Example, ...] = ()

    NOUN: ClassVar[str] = "problems of"

    def label(self, chat: bool) -> str:
        """Name everything in the prompts that determines a text: part of the family's id."""
        label = self.template.label(self.examples) + ("+chat" if chat else "")
        return f"{label}+{self.simple.label()} where {self.condition}" if self.simple else label

    def fetch(self, unit: str) -> Row:
        """Read a unit that another job planned, in the columns of `frame`."""
        rows = self.context.warehouse.sql("SELECT * FROM problems WHERE problem_id = ?", [unit])
        return {"unit": unit, "simple": False, **rows.row(0, named=True)}

    def parent_trace(self, unit: str) -> str | None:
        """Return the value of `traces.parent_trace_id`."""
        return None

    def template_of(self, row: Row) -> Template:
        return self.simple if self.simple is not None and row["simple"] else self.template

    def template_label(self, row: Row) -> str:
        """Return the value of `traces.template`."""
        template = self.template_of(row)
        return template.label(() if template is self.simple else self.examples)

    def prompt(self, row: Row, chat: Chat | None) -> str:
        """Return the prompt of a unit for the engine, whose chat template is `chat`."""
        template = self.template_of(row)
        examples = () if template is self.simple else self.examples
        return render(template, row["question"], examples, chat=chat)


def select(
    config: GenerateConfig,
    problems: ProblemStore,
    template: Template,
    simple: Template | None,
    examples: tuple[Example, ...],
) -> Units:
    """Select the problems of a job. UsageError if none remains."""
    assert config.problems is not None  # the config checks it
    stored = problems.load(config.problems)
    frame = stored.frame.with_columns(unit=pl.col("problem_id"))
    if config.split:
        frame = frame.filter(pl.col("split") == config.split)
    if examples:
        frame = frame.filter(~pl.col("question").is_in([e.question for e in examples]))
    if config.source == "solutions":
        frame = frame.filter(pl.col("solution").is_not_null(), pl.col("reference").is_not_null())
    if config.where:
        frame = frame.filter(meets(frame, config.where, "where"))
    frame = frame.head(config.limit) if config.limit else frame
    if frame.is_empty():
        what = " with a worked solution" if config.source == "solutions" else ""
        what += f" where {config.where}" if config.where else ""
        raise UsageError(
            f"no problems{what} in {stored.ref}"
            + (f", split {config.split}" if config.split else "")
        )
    condition = config.simple.where if config.simple else ""
    chosen = meets(frame, condition, "simple.where") if condition else pl.lit(False)
    return Units(
        frame.with_columns(simple=chosen),
        stored.ref,
        [stored.ref],
        problems.context,
        template,
        simple,
        condition,
        examples,
    )


def meets(frame: pl.DataFrame, condition: str, key: str) -> pl.Series:
    """Return which problems meet a SQL condition on their columns. UsageError if DuckDB refuses it.

    `key` is the condition's place in the config.
    """
    check_expression(condition, key)
    with duckdb.connect() as connection:
        connection.register("problems", frame.with_row_index("_row").to_arrow())
        try:
            query = f"SELECT (({condition}\n) IS TRUE) AS met FROM problems ORDER BY _row"
            return connection.sql(query).pl()["met"]
        except duckdb.Error as error:
            raise UsageError(
                f"{key}: the condition '{condition}' cannot be evaluated on problems: {error}"
            ) from error
