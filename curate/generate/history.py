"""Queries of a job's committed rows. They are lazy, so memory does not grow with the rows."""

from __future__ import annotations

import polars as pl

from curate.generate.plan import Plan
from curate.warehouse.chunks import unit_expr
from curate.warehouse.logs import replay


def _wanted(plan: Plan, columns: list[str]) -> pl.LazyFrame:
    """Committed rows of the job's units and samples: unit, sample_index, attempt, `columns`."""
    keys = ["problem_id", "parent_trace_id", "sample_index", "attempt"]
    rows = plan.family.committed([*keys, *columns]).filter(
        pl.col("sample_index") < plan.config.samples
    )
    units = plan.units.frame.lazy().select("unit")
    return rows.select(unit_expr(), "sample_index", "attempt", *columns).join(
        units, on="unit", how="semi"
    )


def _redone(rows: pl.LazyFrame) -> pl.DataFrame:
    """The last attempt of each sample with more than one; these are few."""
    again = rows.filter(pl.col("attempt") > 0).collect(engine="streaming")
    return again.sort("attempt").unique(["unit", "sample_index"], keep="last", maintain_order=True)


def _last(rows: pl.LazyFrame, which: pl.Expr) -> pl.DataFrame:
    """The last attempts that `which` selects."""
    redone = _redone(rows)
    first = rows.filter(pl.col("attempt") == 0, which).collect(engine="streaming")
    first = first.join(redone, on=["unit", "sample_index"], how="anti")
    return pl.concat([first, redone.filter(which)])


def to_redo(plan: Plan, retry_failed: bool) -> pl.DataFrame:
    """Rows truncated at a lower limit than the present one; with `retry_failed`, failed rows
    too.
    """
    which = (pl.col("finish_reason") == "length") & (
        pl.col("max_tokens") < plan.config.sampling.max_tokens
    )
    if retry_failed:
        which |= pl.col("finish_reason") == "error"
    return _last(_wanted(plan, ["finish_reason", "max_tokens"]), which)


def outcome(plan: Plan) -> dict[str, int]:
    """Number of rows by finish reason, over the units and samples of the job."""
    rows = _wanted(plan, ["finish_reason"])
    redone = _redone(rows)
    first = rows.filter(pl.col("attempt") == 0)
    if len(redone):
        first = first.join(redone.lazy(), on=["unit", "sample_index"], how="anti")
    counts = first.group_by("finish_reason").len().collect(engine="streaming")
    by_reason: dict[str, int] = dict(counts.iter_rows())
    for reason, count in redone["finish_reason"].value_counts().iter_rows():
        by_reason[reason] = by_reason.get(reason, 0) + count
    return by_reason


def errors(plan: Plan) -> list[tuple[str, int]]:
    """Reasons of failure with their counts, the most frequent first."""
    failed = _last(_wanted(plan, ["finish_reason", "error"]), pl.col("finish_reason") == "error")
    # Messages that differ only in numbers (lengths, ports, times) count as one reason.
    reason = pl.col("error").fill_null("no reason given").str.replace_all(r"\d+", "N").alias("kind")
    counts = failed.group_by(reason).agg(pl.col("error").first(), pl.len().alias("count"))
    return list(
        counts.sort("count", "kind", descending=[True, False]).select("error", "count").iter_rows()
    )


def spent(plan: Plan) -> float:
    """Cost of this family's requests so far, including those of unfinished chunks."""
    committed = (
        plan.family.committed(["cost"])
        .select(pl.col("cost").sum())
        .collect(engine="streaming")
        .item()
    )
    return float(committed or 0.0) + sum(
        row.get("cost") or 0.0 for row in replay(plan.family.open_logs())
    )
