"""Which traces are good, while they are being made: by the verdict, and by a rule set where one is named.

It is the one definition of good that annotation and filters use: the same verifiers, the same signals, the same SQL.
The judging runs in a thread of its own, so that the engine is fed meanwhile.
"""

from __future__ import annotations

import time
from collections.abc import Hashable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from curate.errors import UsageError
from curate.records import Problem

if TYPE_CHECKING:
    import polars as pl

    from curate.job import Context

Row = dict[str, Any]
CORRECT = "(verdict = 'correct') IS TRUE"
# A sample of the traces is judged for the eye: at most one a second, and so that it takes no more than a fiftieth of
# the time of one core.
LIVE_SECONDS, LIVE_SHARE = 1.0, 0.02


def predicate(rules: str | None) -> str:
    """SQL over a row of `annotated`: whether the rule set keeps it (without one: whether it is correct)."""
    from curate.filter.rules import load_rules

    if rules is None:
        return CORRECT
    found = load_rules(rules)
    parts = [rule.keep for rule in found.rules] + ([found.where] if found.where else [])
    return " AND ".join(f"(({sql}\n) IS TRUE)" for sql in parts) or "TRUE"


def good_sql(rules: str | None) -> str:
    """SQL over a row of `annotated`: whether a trace counts towards `adaptive.keep`."""
    return CORRECT if rules is None else f"{CORRECT} AND {predicate(rules)}"


class Judge:
    """Judges rows of traces in the background. `submit` and `poll` are for one caller's thread."""

    def __init__(self, context: Context, rules: str | None = None) -> None:
        self.context, self.rules = context, rules
        self.columns = self._columns()
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="curate-judge")
        self._waiting: list[tuple[Hashable, list[tuple[Row, Problem]]]] = []
        self._running: tuple[list[tuple[Hashable, int]], Future[pl.DataFrame]] | None = None
        self._next_live = 0.0
        self.live = [0, 0]  # correct, judged: of the sample

    def _columns(self) -> dict[str, str]:
        """Columns that a rule may read, with their types. Raises UsageError for a rule that cannot be asked."""
        import duckdb

        from curate.warehouse.sql import connect

        if self.rules is None:
            return {}
        self.context.warehouse.create()
        with connect(self.context.warehouse.root) as connection:
            try:
                connection.sql(f"SELECT {good_sql(self.rules)} FROM annotated LIMIT 0").fetchall()
            except duckdb.Error as error:
                raise UsageError(
                    f"adaptive.rules: '{self.rules}' cannot be asked: {error}"
                ) from error
            return {
                str(row[0]): str(row[1]) for row in connection.sql("DESCRIBE annotated").fetchall()
            }

    @property
    def busy(self) -> bool:
        return bool(self._waiting or self._running)

    def submit(self, key: Hashable, rows: list[tuple[Row, Problem]]) -> None:
        """Have these rows judged together; `poll` gives them back under the key."""
        self._waiting.append((key, rows))
        self._begin()

    def poll(self) -> list[tuple[Hashable, pl.DataFrame]]:
        """What was judged since the last call: key, and the frame of `assess`."""
        if self._running is None or not self._running[1].done():
            return []
        keys, future = self._running
        self._running = None
        frame, found, at = future.result(), [], 0
        for key, count in keys:
            found.append((key, frame.slice(at, count)))
            at += count
        self._begin()
        return found

    def wait(self, seconds: float) -> None:
        """Until something was judged, or the time has passed."""
        from concurrent.futures import wait

        if self._running is not None:
            wait([self._running[1]], timeout=seconds)

    def _begin(self) -> None:
        """Everything that waits goes as one batch, so that judging keeps up whatever it takes."""
        if self._running is None and self._waiting:
            batch, self._waiting = self._waiting, []
            pairs = [pair for _, rows in batch for pair in rows]
            future = self._executor.submit(self.assess, pairs)
            self._running = [(key, len(rows)) for key, rows in batch], future

    def assess(self, pairs: Sequence[tuple[Row, Problem]]) -> pl.DataFrame:
        """One row a trace, in order: trace_id, attempt, the columns of its verdict, and `good`."""
        import polars as pl

        from curate.annotate.rules import NO_VERIFIER, verdict_rows
        from curate.problems.base import SCHEMA
        from curate.warehouse.traces import trace_frame, with_parts

        traces = with_parts(trace_frame(row for row, _ in pairs))
        by_id = {problem.problem_id: problem for _, problem in pairs}
        records = [{name: getattr(p, name) for name in SCHEMA} for p in by_id.values()]
        problems = pl.DataFrame(records, schema=SCHEMA).with_columns(
            pl.col("verifier").fill_null(NO_VERIFIER)
        )
        said = verdict_rows(
            traces, problems, self.context, problems["verifier"].unique().sort().to_list()
        )
        verdicts = traces.select("trace_id", "attempt").join(
            pl.concat(said.values(), how="vertical_relaxed"),
            on=["trace_id", "attempt"],
            how="left",
            maintain_order="left",
        )
        good = (
            self._kept(traces, problems, verdicts)
            if self.rules
            else verdicts["verdict"] == "correct"
        )
        return verdicts.with_columns(good.alias("good"))

    def _kept(
        self, traces: pl.DataFrame, problems: pl.DataFrame, verdicts: pl.DataFrame
    ) -> pl.Series:
        """`good_sql` over the rows as the view `annotated` would show them."""
        import duckdb
        import polars as pl

        from curate.signals import annotate_frame
        from curate.signals.macros import with_macros

        known = problems.select(
            c for c in problems.columns if c == "problem_id" or c not in traces.columns
        )
        frame = traces.join(known, on="problem_id", how="left", maintain_order="left")
        frame = with_macros(annotate_frame(frame)).with_columns(
            verdicts["verdict"], verified_by=verdicts["verifier"]
        )
        absent = [
            f'CAST(NULL AS {kind}) AS "{c}"'
            for c, kind in self.columns.items()
            if c not in frame.columns
        ]
        with duckdb.connect() as connection:
            connection.register("made", frame.with_row_index("_row").to_arrow())
            query = f"SELECT {', '.join(['*', *absent])} FROM made"
            rows = connection.sql(
                f"SELECT {good_sql(self.rules)} FROM ({query}) ORDER BY _row"
            ).fetchall()
        return pl.Series([bool(row[0]) for row in rows], dtype=pl.Boolean)

    # -- for the eye ---------------------------------------------------------------------------------------------

    def due(self, row: Row) -> bool:
        """Whether it is time to judge another trace for the live share of correct ones."""
        return (
            time.monotonic() >= self._next_live
            and not self.busy
            and row["finish_reason"] != "error"
        )

    def glance(self, row: Row, problem: Problem) -> None:
        """Judge this trace for the live share."""
        if problem.verifier:
            self._next_live = float("inf")
            self.submit("live", [(row, problem)])

    def seen(self, frame: pl.DataFrame) -> None:
        """Count what `glance` had judged."""
        for verdict, seconds in frame.select("verdict", "seconds").iter_rows():
            self.live[0] += verdict == "correct"
            self.live[1] += verdict in ("correct", "wrong")
            self._next_live = time.monotonic() + max(LIVE_SECONDS, (seconds or 0.0) / LIVE_SHARE)

    def close(self) -> None:
        self._executor.shutdown(wait=True, cancel_futures=True)


def standing(
    context: Context, family: str, samples: int, rules: str | None
) -> Mapping[str, tuple[int, int, int]]:
    """Of each unit that has committed traces: how many were asked, how many are good, how many could be judged.

    Judges and measures what no earlier run has, with the verifiers of this version.
    """
    from curate.annotate import job as annotate

    if not context.warehouse.exists() or not context.warehouse.versions("traces", family):
        return {}
    groups: list[str] | None = None if rules else []
    annotate.run(
        annotate.AnnotateConfig(traces=[family], signals=groups, label="judge what is there"),
        context,
    )
    found = context.warehouse.sql(
        "SELECT coalesce(parent_trace_id, problem_id) AS unit, max(sample_index) + 1 AS asked, "
        f"count(*) FILTER ({good_sql(rules)}) AS good, count(*) FILTER (verdict IN ('correct', 'wrong')) AS judged "
        "FROM annotated WHERE dataset = ? AND sample_index < ? GROUP BY ALL",
        [family, samples],
    )
    return {unit: (asked, good, judged) for unit, asked, good, judged in found.iter_rows()}
