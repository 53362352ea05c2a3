"""Verdicts of the verifiers that problems name, for frames of traces."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

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


def verdict_rows(
    traces: pl.DataFrame, problems: pl.DataFrame, context: Context, verifiers: Sequence[str]
) -> dict[str, pl.DataFrame]:
    """Verdicts about these traces (TRACE_COLUMNS) by verifier: one row of the table `verdicts` per
    trace.

    A verifier `x` judges the traces of problems that name it, `ALONGSIDE + x` those of all other
    problems.
    """
    text = with_opener_expr(pl.col("completion"), pl.col("prompt"), pl.col("form"))
    joined = (
        traces.select(
            "trace_id", "attempt", "problem_id", "form", "finish_reason", text.alias("text")
        )
        .join(problems, on="problem_id", how="left", maintain_order="left")
        .with_columns(pl.col("verifier").fill_null(NO_VERIFIER), pl.col("question").fill_null(""))
    )
    result = {}
    for requested in verifiers:
        name = requested.removeprefix(ALONGSIDE)
        own = pl.col("verifier") == name
        if name == requested:
            rows = joined.filter(own)
        else:
            rows = joined.filter(~own).with_columns(verifier=pl.lit(name))
        result[requested] = _judge(rows, name, context)
    return result


def _judge(rows: pl.DataFrame, verifier: str, context: Context) -> pl.DataFrame:
    """Verdicts of one verifier. Failed requests have no answer to judge: they are unverifiable."""
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
            verifier_version=pl.lit(verifier_version(verifier)),
            kind=pl.lit("rule"),
        )
    )
