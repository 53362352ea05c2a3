"""Verdicts for traces while the job runs: which are good, by verdict and by a rule set if one is
named.

Annotation and filters use the same definition of good: the same verifiers, the same signals, the
same SQL. A separate thread does the work, so that the engine is fed in the meantime.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

import duckdb
import polars as pl

from curate.annotate import job as annotate
from curate.annotate.verdicts import NO_VERIFIER, Judging, verdict_rows
from curate.errors import UsageError
from curate.filter.rules import RuleSet, load_rules
from curate.job import Context
from curate.problems.base import SCHEMA
from curate.records import Problem
from curate.signals import annotate_frame
from curate.signals.macros import with_macros
from curate.warehouse.sql import connect
from curate.warehouse.traces import trace_frame, with_parts

Row = dict[str, Any]
CORRECT = "(verdict = 'correct') IS TRUE"


def predicate(rules: str | RuleSet | None) -> str:
    """SQL over a row of `annotated`: whether the rule set keeps it; without a rule set, whether it
    is correct.
    """
    if rules is None:
        return CORRECT
    rule_set = load_rules(rules) if isinstance(rules, str) else rules
    parts = [rule.keep for rule in rule_set.rules] + ([rule_set.where] if rule_set.where else [])
    return " AND ".join(f"(({sql}\n) IS TRUE)" for sql in parts) or "TRUE"


def good_sql(rules: str | RuleSet | None) -> str:
    """SQL over a row of `annotated`: whether a trace counts towards `adaptive.keep`."""
    return CORRECT if rules is None else f"{CORRECT} AND {predicate(rules)}"


class BackgroundVerifier:
    """Verifies rows of traces in a thread.

    `submit` and `poll` are for the one thread that feeds the engine.
    """

    def __init__(self, context: Context, rules: RuleSet | None = None) -> None:
        self.context, self.rules = context, rules
        self.columns = self._columns()
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="curate-verify")
        self._waiting: list[tuple[Hashable, list[tuple[Row, Problem]]]] = []
        self._running: tuple[list[tuple[Hashable, int]], Future[pl.DataFrame]] | None = None

    def _columns(self) -> dict[str, str]:
        """Columns that a rule may read, with their types.

        Raises UsageError for a rule that DuckDB refuses.
        """
        if self.rules is None:
            return {}
        self.context.warehouse.create()
        with connect(self.context.warehouse.root) as connection:
            try:
                connection.sql(f"SELECT {good_sql(self.rules)} FROM annotated LIMIT 0").fetchall()
            except duckdb.Error as error:
                raise UsageError(
                    f"adaptive.rules: '{self.rules.name}' cannot be evaluated: {error}"
                ) from error
            described = connection.sql("DESCRIBE annotated").fetchall()
        return {str(row[0]): str(row[1]) for row in described}

    @property
    def busy(self) -> bool:
        return bool(self._waiting or self._running)

    def submit(self, key: Hashable, rows: list[tuple[Row, Problem]]) -> None:
        """Verify these rows together; `poll` returns their verdicts under the key."""
        self._waiting.append((key, rows))
        self._begin()

    def poll(self) -> list[tuple[Hashable, pl.DataFrame]]:
        """Results verified since the last call: the key, and the frame of `assess`."""
        if self._running is None or not self._running[1].done():
            return []
        keys, future = self._running
        self._running = None
        frame, verified, at = future.result(), [], 0
        for key, count in keys:
            verified.append((key, frame.slice(at, count)))
            at += count
        self._begin()
        return verified

    def wait(self, seconds: float) -> None:
        """Wait until something is verified, or the time has passed."""
        if self._running is not None:
            wait([self._running[1]], timeout=seconds)

    def _begin(self) -> None:
        # All waiting rows form one batch: the longer verdicts take, the larger the batches get, so
        # the thread keeps up with the engine.
        if self._running is None and self._waiting:
            batch, self._waiting = self._waiting, []
            pairs = [pair for _, rows in batch for pair in rows]
            future = self._executor.submit(self.assess, pairs)
            self._running = [(key, len(rows)) for key, rows in batch], future

    def assess(self, pairs: Sequence[tuple[Row, Problem]]) -> pl.DataFrame:
        """One row per trace, in order: trace_id, attempt, columns of its verdict, and `good`."""
        traces = with_parts(trace_frame(row for row, _ in pairs))
        by_id = {problem.problem_id: problem for _, problem in pairs}
        records = [{name: getattr(p, name) for name in SCHEMA} for p in by_id.values()]
        # the rows hold the references, corrected or not
        problems = pl.DataFrame(records, schema=SCHEMA).with_columns(
            pl.col("verifier").fill_null(NO_VERIFIER), correction=pl.lit(0)
        )
        judgings = [Judging(name) for name in problems["verifier"].unique().sort()]
        by_verifier = verdict_rows(traces, problems, self.context, judgings)
        verdicts = traces.select("trace_id", "attempt").join(
            pl.concat(by_verifier.values(), how="vertical_relaxed"),
            on=["trace_id", "attempt"],
            how="left",
            maintain_order="left",
        )
        if self.rules:
            good = self._passes_rules(traces, problems, verdicts)
        else:
            good = verdicts["verdict"] == "correct"
        return verdicts.with_columns(good.alias("good"))

    def _passes_rules(
        self, traces: pl.DataFrame, problems: pl.DataFrame, verdicts: pl.DataFrame
    ) -> pl.Series:
        """`good_sql` over the rows as the view `annotated` would show them."""
        of_problems = problems.select(
            c for c in problems.columns if c == "problem_id" or c not in traces.columns
        )
        frame = traces.join(of_problems, on="problem_id", how="left", maintain_order="left")
        frame = with_macros(annotate_frame(frame)).with_columns(
            verdicts["verdict"], verified_by=verdicts["verifier"]
        )
        # Columns of the view that a trace does not have yet, such as scores of a judge, are null.
        absent = [
            f'CAST(NULL AS {kind}) AS "{c}"'
            for c, kind in self.columns.items()
            if c not in frame.columns
        ]
        with duckdb.connect() as connection:
            connection.execute("SET enable_progress_bar = false")
            connection.register("fresh", frame.with_row_index("_row").to_arrow())
            query = f"SELECT {', '.join(['*', *absent])} FROM fresh"
            rows = connection.sql(
                f"SELECT {good_sql(self.rules)} FROM ({query}) ORDER BY _row"
            ).fetchall()
        return pl.Series([bool(row[0]) for row in rows], dtype=pl.Boolean)

    def close(self) -> None:
        self._executor.shutdown(wait=True, cancel_futures=True)


def committed_progress(
    context: Context, family: str, samples: int, rules: RuleSet | None
) -> Mapping[str, tuple[int, int, int]]:
    """Count the samples, good samples and verified samples of each unit with committed traces.

    First verifies and measures traces that no earlier run did, with the current verifiers.
    """
    if not context.warehouse.exists() or not context.warehouse.versions("traces", family):
        return {}
    groups: list[str] | None = None if rules else []
    config = annotate.AnnotateConfig(traces=[family], signals=groups, label="verify what is there")
    annotate.run(config, context)
    counts = context.warehouse.sql(
        "SELECT coalesce(parent_trace_id, problem_id) AS unit, max(sample_index) + 1 AS samples, "
        f"count(*) FILTER ({good_sql(rules)}) AS good, "
        "count(*) FILTER (verdict IN ('correct', 'wrong')) AS verified "
        "FROM annotated WHERE dataset = ? AND sample_index < ? GROUP BY ALL",
        [family, samples],
    )
    return {unit: (count, good, verified) for unit, count, good, verified in counts.iter_rows()}
