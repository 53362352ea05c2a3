"""Verdicts of the verifiers that problems name, for frames of traces."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import polars as pl

from curate.errors import UsageError
from curate.prompts.forms import with_opener_expr
from curate.records import Problem
from curate.verify import verifier_named
from curate.warehouse.annotations import NO_VERSION

if TYPE_CHECKING:
    from curate.job import Context

# Columns of `traces` that signals and verdicts read; the rest comes from the problem.
TRACE_COLUMNS = [
    "trace_id",
    "attempt",
    "problem_id",
    "prompt",
    "completion",
    "reasoning",
    "answer",
    "form",
    "finish_reason",
]
NO_VERIFIER = "none"
# Prefix of a verifier that runs alongside the problems' own ones: its verdicts about problems that
# name it are stored under its plain name, those about other problems under the prefixed one.
ALONGSIDE = "beside."


def verifier_version(name: str) -> str:
    """Version of a verifier. An unknown name has NO_VERSION: unverifiable until a verifier has
    that name.
    """
    if name == NO_VERIFIER:
        return "1"
    try:
        return verifier_named(name).version
    except UsageError:
        return NO_VERSION


class Judging(NamedTuple):
    """A verifier over some traces: those of problems whose reference is of this correction.

    A verifier `x` judges the traces of problems that name it, `ALONGSIDE + x` those of all other
    problems. Correction 0: references as they were loaded.
    """

    dataset: str
    correction: int = 0

    @property
    def verifier(self) -> str:
        return self.dataset.removeprefix(ALONGSIDE)

    @property
    def version(self) -> str:
        """Version of its verdicts. The same verifier judges anew what was corrected."""
        suffix = f"-r{self.correction}" if self.correction else ""
        return verifier_version(self.verifier) + suffix


def verdict_rows(
    traces: pl.DataFrame, problems: pl.DataFrame, context: Context, judgings: Sequence[Judging]
) -> dict[Judging, pl.DataFrame]:
    """Verdicts about these traces (TRACE_COLUMNS): one row of the table `verdicts` per trace."""
    text = with_opener_expr(pl.col("completion"), pl.col("prompt"), pl.col("form"))
    joined = (
        traces.select(
            "trace_id", "attempt", "problem_id", "form", "finish_reason", text.alias("text")
        )
        .join(problems, on="problem_id", how="left", maintain_order="left")
        .with_columns(
            pl.col("verifier").fill_null(NO_VERIFIER),
            pl.col("question").fill_null(""),
            pl.col("correction").fill_null(0),
        )
    )
    result = {}
    for judging in judgings:
        name = judging.verifier
        own = pl.col("verifier") == name
        rows = joined.filter(pl.col("correction") == judging.correction)
        if name == judging.dataset:
            rows = rows.filter(own)
        else:
            rows = rows.filter(~own).with_columns(verifier=pl.lit(name))
        result[judging] = _judge(rows, judging, context)
    return result


def _judge(rows: pl.DataFrame, judging: Judging, context: Context) -> pl.DataFrame:
    """Verdicts of one verifier. Failed requests have no answer to judge: they are unverifiable."""
    verifier = judging.verifier
    if verifier == NO_VERIFIER:
        answered, reason = rows.head(0), "the problem names no verifier"
    else:
        answered = rows.filter(pl.col("finish_reason") != "error")
        reason = "the request failed: there is no answer"
    fields = list(Problem.__dataclass_fields__)
    verdicts = context.pool.verify_batch(
        [Problem(**row) for row in answered.select(fields).iter_rows(named=True)],
        answered["text"].to_list(),
        forms=answered["form"].to_list(),
    )
    judged = answered.select("trace_id", "attempt").with_columns(
        pl.Series("verdict", [v.verdict for v in verdicts], dtype=pl.String),
        pl.Series("extracted", [v.extracted for v in verdicts], dtype=pl.String),
        pl.Series("detail", [v.detail for v in verdicts], dtype=pl.String),
        pl.Series("seconds", [v.seconds for v in verdicts], dtype=pl.Float64),
    )
    absent = pl.col("verdict").is_null()
    return (
        rows.select("trace_id", "attempt")
        .join(judged, on=["trace_id", "attempt"], how="left", maintain_order="left")
        .with_columns(
            pl.col("verdict").fill_null("unverifiable"),
            pl.when(absent).then(pl.lit(reason)).otherwise(pl.col("detail")).alias("detail"),
            verifier=pl.lit(verifier),
            verifier_version=pl.lit(judging.version),
            kind=pl.lit("rule"),
        )
    )
