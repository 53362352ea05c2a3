"""The funnel: counts of what every rule and selection step dropped, by source and band of
difficulty.
"""

from __future__ import annotations

import polars as pl
from rich.console import Console
from rich.table import Table
from rich.text import Text

from curate.filter.hidden_columns import BAND, rule_column
from curate.filter.rules import STEPS, RuleSet
from curate.progress import counted
from curate.visible import one_line

BANDS = ("0.0-0.2", "0.2-0.4", "0.4-0.6", "0.6-0.8", "0.8-1.0")


def count_rules(frame: pl.DataFrame, rules: RuleSet) -> pl.DataFrame:
    """Count what each rule drops in a slice of traces, by source and band (BAND).

    Columns `first<i>` and `alone<i>`, for the rule at position i: drops_first and drops_alone.
    """
    source = (
        pl.col("source").cast(pl.String)
        if "source" in frame.columns
        else pl.lit(None, dtype=pl.String)
    )
    firsts, alone = [], []
    for i, rule in enumerate(rules.rules):
        firsts.append((pl.col("dropped_by") == rule.name).sum().cast(pl.Int64).alias(f"first{i}"))
        alone.append((~pl.col(rule_column(rule.name))).sum().cast(pl.Int64).alias(f"alone{i}"))
    whole = pl.len().cast(pl.Int64).alias("traces")
    return frame.group_by(source.alias("source"), pl.col(BAND).alias("difficulty")).agg(
        whole, *firsts, *alone
    )


def count_steps(candidates: pl.DataFrame, rules: RuleSet) -> pl.DataFrame:
    """Count the traces that each selection step drops among those that passed the rules."""
    steps = enumerate(_selection(rules), len(rules.rules))
    firsts = [
        (pl.col("dropped_by") == name).sum().cast(pl.Int64).alias(f"first{i}") for i, name in steps
    ]
    return candidates.group_by(pl.col("source").cast(pl.String), "difficulty").agg(firsts)


def funnel_of(counts: list[pl.DataFrame], rules: RuleSet) -> pl.DataFrame:
    """Return the funnel from the counts: the columns of schemas/funnel.sql without corpus and
    corpus_version.

    `drops_alone` of a selection step is null: what it would drop depends on what the rules leave.
    """
    steps = [(rule.name, rule.keep) for rule in rules.rules] + list(_selection(rules).items())
    groups = pl.concat(counts, how="diagonal").group_by("source", "difficulty").agg(pl.all().sum())
    if not steps:
        steps, groups = [("none", "TRUE")], groups.with_columns(first0=pl.lit(0, dtype=pl.Int64))
    rows, fallen = [], pl.lit(0)
    for i, (name, sql) in enumerate(steps):
        fallen = fallen + pl.col(f"first{i}")
        rows.append(
            groups.select(
                rules=pl.lit(rules.name),
                position=pl.lit(i + 1, dtype=pl.Int32),
                rule=pl.lit(name),
                predicate=pl.lit(sql),
                source="source",
                difficulty=pl.col("difficulty").cast(pl.String),
                traces="traces",
                drops_alone=f"alone{i}" if i < len(rules.rules) else pl.lit(None, dtype=pl.Int64),
                drops_first=f"first{i}",
                remaining=(pl.col("traces") - fallen).cast(pl.Int64),
            )
        )
    return pl.concat(rows).sort("position", "source", "difficulty", nulls_last=True)


def band_of(difficulty: str) -> pl.Expr:
    """Return the fifth of the range of difficulty of a trace's problem; `unknown` if it has no
    difficulty.
    """
    fifth = (pl.col(difficulty) * 5).floor().clip(0, 4).cast(pl.Int32)
    named = fifth.replace_strict(
        dict(enumerate(BANDS)), default=None, return_dtype=pl.String
    ).fill_null("unknown")
    return named.cast(pl.Enum([*BANDS, "unknown"]))


def _selection(rules: RuleSet) -> dict[str, str]:
    """Return the selection steps of the rule set, in order, each with a description."""
    chosen = rules.select
    words: dict[str, str] = {}
    if chosen.contamination is not None:
        words["contamination"] = (
            f"no item of {len(chosen.contamination.benchmarks)} benchmark files"
        )
    if chosen.duplicates is not None:
        how = f"or {chosen.duplicates.threshold:g} alike" if chosen.duplicates.near else "exactly"
        words["duplicates"] = (
            f"the best {chosen.duplicates.over} of those the same {how}, by {chosen.duplicates.by}"
        )
    if chosen.difficulty is not None:
        by = (
            f"1 - pass rate of {chosen.difficulty.model}"
            if chosen.difficulty.model
            else chosen.difficulty.by
        )
        words["difficulty"] = f"{by} between {chosen.difficulty.low} and {chosen.difficulty.high}"
    for way in chosen.per_problem.ways():
        pick = getattr(chosen.per_problem, way)
        words["per_problem"] = f"{way} {pick.k} of each problem" + (
            f" by {pick.by}" if way == "best" else ""
        )
    if chosen.balance is not None:
        words["balance"] = (
            f"at most {chosen.balance.ratio:g} times the smallest {chosen.balance.by}"
        )
    if chosen.top is not None:
        words["top"] = f"the best {chosen.top.k} of all by {chosen.top.by}"
    if chosen.budget is not None:
        words["budget"] = f"at most {counted(chosen.budget, 'trace')}"
    return {step: words[step] for step in STEPS if step in words}


def print_funnel(
    funnel: pl.DataFrame, console: Console | None = None, by: str | None = None
) -> None:
    """Print a funnel, summed over sources and difficulties, or by one of them (`source`,
    `difficulty`).
    """
    keys = ["position", "rule", *([by] if by else [])]
    summed = funnel.group_by(keys).agg(
        pl.col("traces").sum(),
        pl.when(pl.col("drops_alone").is_not_null().any())
        .then(pl.col("drops_alone").sum())
        .alias("drops_alone"),
        pl.col("drops_first").sum(),
        pl.col("remaining").sum(),
    )
    # Names are a user's text, not rich's markup.
    title = f"Funnel of {funnel['rules'][0]}" if funnel.height else "Funnel"
    table = Table(title=Text(one_line(title)), title_justify="left")
    for name in keys[1:]:
        table.add_column(name)
    for name in ("traces", "drops alone", "drops first", "remaining"):
        table.add_column(name, justify="right")
    for row in summed.sort(keys, nulls_last=True).iter_rows(named=True):
        numbers = [row["traces"], row["drops_alone"], row["drops_first"], row["remaining"]]
        shown = ["–" if number is None else f"{number:,}" for number in numbers]
        table.add_row(*[Text(one_line(row[name])) for name in keys[1:]], *shown)
    (console or Console()).print(table)
