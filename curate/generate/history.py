"""What a job has already: asked of the committed rows, lazily, so that memory does not grow with their number."""

from __future__ import annotations

from typing import TYPE_CHECKING

from curate.generate.plan import Plan
from curate.warehouse.chunks import replay, unit_expr

if TYPE_CHECKING:
    import polars as pl


def _wanted(plan: Plan, columns: list[str]) -> pl.LazyFrame:
    """Committed rows of the units and samples that the job wants: unit, sample_index, attempt and `columns`."""
    import polars as pl

    keys = ["problem_id", "parent_trace_id", "sample_index", "attempt"]
    rows = plan.family.committed([*keys, *columns]).filter(
        pl.col("sample_index") < plan.config.samples
    )
    units = plan.units.lazy().select("unit")
    return rows.select(unit_expr(), "sample_index", "attempt", *columns).join(
        units, on="unit", how="semi"
    )


def _redone(rows: pl.LazyFrame) -> pl.DataFrame:
    """The last attempt of each sample that was asked more than once; these are few."""
    import polars as pl

    again = rows.filter(pl.col("attempt") > 0).collect(engine="streaming")
    return again.sort("attempt").unique(["unit", "sample_index"], keep="last", maintain_order=True)


def _last(rows: pl.LazyFrame, which: pl.Expr) -> pl.DataFrame:
    """Last attempts, as far as `which` picks them."""
    import polars as pl

    redone = _redone(rows)
    first = rows.filter(pl.col("attempt") == 0, which).collect(engine="streaming")
    first = first.join(redone, on=["unit", "sample_index"], how="anti")
    return pl.concat([first, redone.filter(which)])


def to_redo(plan: Plan, retry_failed: bool) -> pl.DataFrame:
    """Truncated rows whose limit was lower than the one asked for now; failed ones where that is wanted."""
    import polars as pl

    which = (pl.col("finish_reason") == "length") & (
        pl.col("max_tokens") < plan.config.sampling.max_tokens
    )
    if retry_failed:
        which |= pl.col("finish_reason") == "error"
    return _last(_wanted(plan, ["finish_reason", "max_tokens"]), which)


def outcome(plan: Plan) -> dict[str, int]:
    """How many of the wanted rows ended how."""
    import polars as pl

    rows = _wanted(plan, ["finish_reason"])
    redone = _redone(rows)
    first = rows.filter(pl.col("attempt") == 0)
    if len(redone):
        first = first.join(redone.lazy(), on=["unit", "sample_index"], how="anti")
    counts = first.group_by("finish_reason").len().collect(engine="streaming")
    found: dict[str, int] = dict(counts.iter_rows())
    for reason, count in redone["finish_reason"].value_counts().iter_rows():
        found[reason] = found.get(reason, 0) + count
    return found


def errors(plan: Plan) -> list[tuple[str, int]]:
    """Reasons of failure and how often, the commonest first."""
    import polars as pl

    failed = _last(_wanted(plan, ["finish_reason", "error"]), pl.col("finish_reason") == "error")
    # numbers (lengths, ports, times) do not make another reason
    reason = pl.col("error").fill_null("no reason given").str.replace_all(r"\d+", "N").alias("kind")
    counts = failed.group_by(reason).agg(pl.col("error").first(), pl.len().alias("count"))
    return list(
        counts.sort("count", "kind", descending=[True, False]).select("error", "count").iter_rows()
    )


def spent(plan: Plan) -> float:
    """What the requests of this family have cost so far, those of unfinished chunks included."""
    import polars as pl

    committed = (
        plan.family.committed(["cost"])
        .select(pl.col("cost").sum())
        .collect(engine="streaming")
        .item()
    )
    return float(committed or 0.0) + sum(
        row.get("cost") or 0.0 for row in replay(plan.family.open_logs())
    )
