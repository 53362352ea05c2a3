"""Rules over the `annotated` view: which traces are kept, what every rule did, and why one trace
fell.

DuckDB evaluates each predicate once over the narrow columns that it names, a slice of traces at a
time, which gives a frame of booleans; the funnel counts them, and the selection is Polars over a
few numbers of each trace that passed. The rows wait in files. No text is read unless a rule names
a text column.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from curate.errors import CurateError, UsageError
from curate.filter.clauses import columns_in, failed_clauses, show
from curate.filter.columns import (
    BALANCE,
    BAND,
    DIFFICULTY,
    DRAW,
    RANK,
    SCORE,
    SHAPE,
    WITHIN,
    rule_column,
)
from curate.filter.expressions import check_expression, columns_of, reads_other_rows
from curate.filter.funnel import band_of, count_rules, count_steps, funnel_of
from curate.filter.rules import STEPS, RuleSet, Selection
from curate.filter.select import select
from curate.filter.spill import Decisions, numbers_read
from curate.filter.text_steps import drop_by_text
from curate.memory import BASE, megabytes
from curate.warehouse.sql import quote

if TYPE_CHECKING:
    import duckdb

TEXT_BYTES = 1500  # that finding duplicates holds of each text
# Columns that the kept rows carry; those that the view lacks are left out.
CARRIED = (
    "trace_id",
    "attempt",
    "problem_id",
    "source",
    "domain",
    "recipe",
    "difficulty",
    "quality",
)


@dataclass(frozen=True, slots=True)
class FilterResult:
    """The result of a rule set.

    funnel: the columns of schemas/funnel.sql without corpus and corpus_version.
    overlaps: one row per contaminated problem, with the item that it resembles (text_steps.py).
    rows: every trace with its fate, slice by slice; `kept` and `decisions` hold them all at once.
    """

    rules: RuleSet
    funnel: pl.DataFrame
    overlaps: pl.DataFrame
    rows: Decisions

    @property
    def kept(self) -> pl.DataFrame:
        """One row per kept trace, in the columns of `CARRIED`."""
        return pl.concat([self.rows.kept(number) for number in range(self.rows.parts)])

    @property
    def decisions(self) -> pl.DataFrame:
        """One row per trace: trace_id, attempt, dropped_by.

        dropped_by is the rule or selection step that dropped the trace; null if it is kept.
        """
        return pl.concat([self.rows.decided(number) for number in range(self.rows.parts)])

    def counts(self) -> tuple[int, int, int]:
        """Number of traces kept, of traces read, and of problems of the kept ones."""
        kept = self.rows.candidates.filter(pl.col("dropped_by").is_null())
        return kept.height, self.rows.total, kept.get_column("problem_id").n_unique()


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a trace was kept or dropped.

    `rules`: one row per rule with rule, keep, passed, reason, values, and the clauses that failed.
    """

    trace_id: str
    dropped_by: str | None
    rules: pl.DataFrame

    def __str__(self) -> str:
        lines = [
            f"trace {self.trace_id}: "
            + (f"dropped by '{self.dropped_by}'" if self.dropped_by else "kept")
        ]
        for row in self.rules.iter_rows(named=True):
            mark = "passed " if row["passed"] else "FAILED "
            lines.append(f"  {mark} {row['rule']}: {row['keep']}")
            if not row["passed"]:
                lines.append(f"           values: {row['values']}")
                lines += [f"           {clause}" for clause in row["clauses"]]
                lines.append(f"           reason: {row['reason']}")
        if self.dropped_by and self.dropped_by not in set(self.rules["rule"]):
            lines.append(
                f"  it passed every rule, and fell to the selection step '{self.dropped_by}'"
            )
        return "\n".join(lines)


def apply_rules(
    con: duckdb.DuckDBPyConnection,
    rules: RuleSet,
    where: str | None = None,
    view: str = "annotated",
    slices: Iterable[Any] = (),
    folder: Path | None = None,
    memory: str | None = None,
) -> FilterResult:
    """Decide over every trace of `view`, narrowed to `where` (a SQL expression). A null predicate
    does not pass.

    `slices`: iterating points the view at one slice of the traces after the other (see
    curate/warehouse/slices.py). `folder`: holds the rows as long as the result is used; by default
    the system's folder for temporary files. `memory`: limit of the whole process (`2GB`); by
    default there is none.

    Raises `UsageError` if the SQL of a rule fails (naming the rule, with DuckDB's message) or if
    the selection needs more memory (saying how much), and `CurateError` if nothing is kept (naming
    the rule that dropped most).
    """
    rows, counts, overlaps = _decide(con, rules, where, view, slices, folder, memory)
    if not rows.total:
        raise CurateError(
            f"rule set '{rules.name}' had no trace to look at"
            + (f" where {where}" if where else "")
            + ": generate and annotate some first, or widen the selection"
        )
    result = FilterResult(
        rules, funnel_of([*counts, count_steps(rows.candidates, rules)], rules), overlaps, rows
    )
    if not result.counts()[0]:
        raise _nothing_left(result.funnel, rules)
    return result


def columns_read(rules: RuleSet, where: str | None = None) -> dict[str, str]:
    """Columns that deciding reads, each with the rule or step that reads it ('' if carried)."""
    read = dict.fromkeys((*CARRIED, "attempt"), "")
    expressions = rules.predicates() | ({"--where": where} if where else {})
    for name, sql in expressions.items():
        for column in columns_of(sql, name):
            read.setdefault(column, name)
    chosen = rules.select
    if chosen.per_problem.shortest is not None or chosen.per_problem.diverse is not None:
        read |= dict.fromkeys(
            ("characters", "step_count", "reflection_count"), "select.per_problem"
        )
    if chosen.difficulty is not None and chosen.difficulty.model is not None:
        read |= dict.fromkeys(("model", "verdict"), "select.difficulty")
    if chosen.contamination is not None:
        read["question"] = "select.contamination"
    if chosen.duplicates is not None:
        read[chosen.duplicates.over] = "select.duplicates"
    return read


def explain(
    con: duckdb.DuckDBPyConnection,
    rules: RuleSet,
    trace_id: str,
    where: str | None = None,
    view: str = "annotated",
) -> Explanation:
    """Which rules a trace passed, with the values of the columns that each rule reads. `trace_id`
    may be shortened.

    Raises `UsageError` where no trace or several begin with `trace_id`.
    """
    ids = _ids(con, trace_id, view)
    if len(ids) != 1:
        how = "no trace has" if not ids else f"{len(ids)} traces have"
        raise UsageError(
            f"{how} an id that begins with '{trace_id}': see `select trace_id from {view}`"
        )
    full = ids[0]
    columns = columns_in(con, view)
    one = f"trace_id = {quote(full)}"
    frame = next(_evaluate(con, rules, one, view))
    # Clauses are read one by one, and the view would repeat its joins for each.
    con.execute(f"CREATE OR REPLACE TEMP TABLE _explained AS SELECT * FROM {view} WHERE {one}")
    rows = []
    for rule in rules.rules:
        read = [name for name in check_expression(rule.keep, rule.name) if name in columns]
        values = con.sql(
            f"SELECT {', '.join(map(_name, read)) or '1'} FROM {view} WHERE {one}"
        ).fetchall()[0]
        rows.append(
            {
                "rule": rule.name,
                "keep": rule.keep,
                "passed": frame[rule_column(rule.name)][0] if frame.height else None,
                "reason": rule.reason,
                "clauses": failed_clauses(con, "_explained", "TRUE", rule.keep)
                if frame.height and not frame[rule_column(rule.name)][0]
                else [],
                "values": ", ".join(f"{n} = {show(v)}" for n, v in zip(read, values, strict=False)),
            }
        )
    return Explanation(
        full, _fate(con, rules, where, view, full), pl.DataFrame(rows, schema=_EXPLAINED)
    )


_EXPLAINED: dict[str, Any] = {
    "rule": pl.String,
    "keep": pl.String,
    "passed": pl.Boolean,
    "reason": pl.String,
    "values": pl.String,
    "clauses": pl.List(pl.String),
}


def _fate(
    con: duckdb.DuckDBPyConnection, rules: RuleSet, where: str | None, view: str, trace_id: str
) -> str | None:
    """The rule or step that dropped a trace; the selection depends on all the others."""
    rows, _, _ = _decide(con, rules, where, view)
    for number in range(rows.parts):
        decided = rows.decided(number).filter(pl.col("trace_id") == trace_id)
        if decided.height:
            fate: str | None = decided["dropped_by"][0]
            return fate
    return "where"


def _decide(
    con: duckdb.DuckDBPyConnection,
    rules: RuleSet,
    where: str | None,
    view: str,
    slices: Iterable[Any] = (),
    folder: Path | None = None,
    memory: str | None = None,
) -> tuple[Decisions, list[pl.DataFrame], pl.DataFrame]:
    """The rows with `dropped_by`: the first rule that a trace fails, else the selection step that
    leaves it out.

    Also the counts of each slice (for the funnel), and the overlaps with benchmarks.
    """
    # A window looks at other traces, which may be in other slices.
    expressions = [*rules.predicates().values(), *([where] if where else [])]
    slices = () if any(map(reads_other_rows, expressions)) else slices
    failed = [
        pl.when(~pl.col(rule_column(rule.name))).then(pl.lit(rule.name)) for rule in rules.rules
    ]
    rows = Decisions(
        [*(rule.name for rule in rules.rules), *STEPS], numbers_read(rules.select), folder
    )
    counts = []
    for frame in _evaluate(con, rules, where, view, slices):
        frame = frame.with_columns(
            pl.coalesce(*failed, pl.lit(None, dtype=pl.String)).alias("dropped_by"),
            band_of(DIFFICULTY).alias(BAND),
        )
        counts.append(count_rules(frame, rules))
        rows.add(frame)
    rows.close()
    if memory is not None:
        _check_memory(rows, rules, megabytes(memory, 200))
    overlaps = drop_by_text(con, rows, rules.select, view, slices)
    rows.candidates = select(rows.candidates, rules.select)
    return rows, counts, overlaps


def _check_memory(rows: Decisions, rules: RuleSet, limit: float) -> None:
    """`UsageError` where choosing among the traces that passed would hold more MB than `limit`
    leaves.

    Sorting a million traces holds their numbers up to five times. `TEXT_BYTES` were measured of
    distinct texts.
    """
    each = TEXT_BYTES if rules.select.duplicates else 0
    need = (rows.candidates.estimated_size() * 5 + rows.candidates.height * each) / 1e6
    # DuckDB takes another quarter: half of its own half, as long as it reads slices.
    if rules.select == Selection() or need <= max(50.0, limit * 0.75 - BASE):
        return
    enough = ceil((need + BASE) / 750)
    raise UsageError(
        f"{rows.candidates.height:,} traces passed the rules of '{rules.name}', and choosing "
        "among them takes about "
        f"{need / 1000:.1f} GB: give memory={enough}GB, narrow them down with where=, or let the "
        "rules drop more"
    )


def _evaluate(
    con: duckdb.DuckDBPyConnection,
    rules: RuleSet,
    where: str | None,
    view: str,
    slices: Iterable[Any] = (),
) -> Iterator[pl.DataFrame]:
    """Yield a frame per slice, one row per trace: the carried columns, one per rule, and what the
    selection reads (with `_`).
    """
    if where is not None:
        check_expression(where, "where")
    there = columns_in(con, view)
    carried = [name for name in CARRIED if name in there]
    wanted = _wanted(rules)
    within = (
        " AND ".join(f"(({sql}\n) IS TRUE)" for sql in (rules.where, where) if sql is not None)
        or "TRUE"
    )
    selected = [_name(name) for name in carried] + [
        f"{sql} AS {_name(name)}" for name, sql in wanted.items()
    ]
    query = f"SELECT {', '.join(selected)} FROM {view} WHERE {within}"
    query = f"SELECT *, {_draw(rules)} AS {DRAW} FROM ({query})"
    try:
        rates = _rates(con, rules, within, view, slices)
        for _ in slices or (0,):
            frame = con.sql(query).pl()
            # Names that come again and again are kept once each.
            frame = frame.with_columns(
                pl.col(name).cast(pl.Categorical) for name in _NAMES if name in frame.columns
            )
            yield (
                frame
                if rates is None
                else frame.join(rates, on="problem_id", how="left", maintain_order="left")
            )
    except Exception as error:  # DuckDB's own classes vary
        # Each expression alone, to find the one at fault.
        _blame(con, rules, where, view, wanted)
        raise UsageError(
            f"rule set '{rules.name}' could not be query of {view}: {error}"
        ) from error


def _wanted(rules: RuleSet) -> dict[str, str]:
    """The SQL of every column that is selected besides the carried ones."""
    chosen = rules.select
    wanted = {rule_column(rule.name): f"(({rule.keep}\n) IS TRUE)" for rule in rules.rules}
    wanted[RANK] = f"({_order(rules)}\n)::DOUBLE"
    if chosen.duplicates:
        wanted[SCORE] = f"({chosen.duplicates.by}\n)::DOUBLE"
        if chosen.duplicates.within:
            wanted[WITHIN] = f"({chosen.duplicates.within}\n)::VARCHAR"
    if chosen.difficulty is None or chosen.difficulty.model is None:
        wanted[DIFFICULTY] = (
            f"({chosen.difficulty.by if chosen.difficulty else 'difficulty'}\n)::DOUBLE"
        )
    if chosen.balance:
        wanted[BALANCE] = f"({chosen.balance.by}\n)::VARCHAR"
    if chosen.per_problem.diverse is not None:
        wanted[SHAPE] = (
            "[coalesce(ln(1 + step_count), 0), coalesce(ln(1 + characters), 0), coalesce(ln(1 + "
            "reflection_count), 0)]"
        )
    return wanted


def _rates(
    con: duckdb.DuckDBPyConnection, rules: RuleSet, within: str, view: str, slices: Iterable[Any]
) -> pl.DataFrame | None:
    """problem_id and DIFFICULTY: 1 - pass rate of the model that the difficulty band names.

    None if it names none.
    """
    band = rules.select.difficulty
    if band is None or band.model is None:
        return None
    query = (
        "SELECT problem_id, sum((verdict = 'correct')::INT)::BIGINT AS solved, count(verdict) AS "
        "judged "
        f"FROM {view} WHERE {within} AND model = {quote(band.model)} GROUP BY problem_id"
    )
    rates = pl.concat([con.sql(query).pl() for _ in slices or (0,)]).group_by("problem_id").sum()
    judged = pl.when(pl.col("judged") > 0).then("judged")
    return rates.select("problem_id", (1 - pl.col("solved") / judged).alias(DIFFICULTY))


_NAMES = ("source", "domain", "recipe", BALANCE)


def _draw(rules: RuleSet) -> str:
    """A number for each trace that the selection can meet: md5, the same on every machine and in
    every version.
    """
    if rules.select == Selection(seed=rules.select.seed):
        return "NULL::UBIGINT"
    passed = " AND ".join(_name(rule_column(rule.name)) for rule in rules.rules) or "TRUE"
    return f"CASE WHEN {passed} THEN md5_number_lower('{rules.select.seed}:' || trace_id) END"


def _order(rules: RuleSet) -> str:
    """The SQL that ranks traces of one problem, high first."""
    chosen = rules.select.per_problem
    if chosen.best is not None:
        return chosen.best.by
    if chosen.shortest is not None:
        return "-characters"
    return "quality" if chosen.diverse is not None else "0"


def _blame(
    con: duckdb.DuckDBPyConnection,
    rules: RuleSet,
    where: str | None,
    view: str,
    wanted: dict[str, str],
) -> None:
    """Evaluate every expression alone, and raise `UsageError` for the first that fails."""
    names = {rule_column(rule.name): rule.name for rule in rules.rules}
    places = {names.get(name, name): sql for name, sql in wanted.items()}
    places |= {
        f"where: {sql}": f"(({sql}\n) IS TRUE)" for sql in (rules.where, where) if sql is not None
    }
    keeps = {rule.name: rule.keep for rule in rules.rules}
    steps = {
        SCORE: "select.duplicates",
        WITHIN: "select.duplicates.within",
        RANK: "select.per_problem",
        DIFFICULTY: "select.difficulty",
        BALANCE: "select.balance",
        SHAPE: "diverse",
    }
    for name, sql in places.items():
        try:
            con.sql(f"SELECT count(x) FROM (SELECT {sql} AS x FROM {view})").fetchall()
        except Exception as error:
            shown = keeps.get(name, sql)
            raise UsageError(
                f"rule '{steps.get(name, name)}' of rule set '{rules.name}' fails: {error}\n  "
                f"{shown}"
            ) from error


def _nothing_left(funnel: pl.DataFrame, rules: RuleSet) -> CurateError:
    by_rule = funnel.group_by("rule", "position").agg(
        pl.col("drops_first").sum(), pl.col("drops_alone").sum()
    )
    worst = by_rule.sort("drops_first", "drops_alone", descending=True).row(0, named=True)
    keep = {rule.name: f": {rule.keep}" for rule in rules.rules}.get(worst["rule"], "")
    total = int(funnel.filter(pl.col("position") == 1)["traces"].sum())
    return CurateError(
        f"rule set '{rules.name}' keeps none of {total} traces. Rule '{worst['rule']}' dropped "
        "most of them "
        f"({worst['drops_first']} first, {worst['drops_alone']} alone){keep}. "
        "Loosen it, or ask `--explain TRACE_ID` for the values of one trace."
    )


def _ids(con: duckdb.DuckDBPyConnection, prefix: str, view: str) -> list[str]:
    begins = f"starts_with(trace_id, {quote(prefix)})"
    query = f"SELECT DISTINCT trace_id FROM {view} WHERE {begins} LIMIT 10"
    ids = [str(row[0]) for row in con.sql(query).fetchall()]
    return [prefix] if prefix in ids else ids


def _name(column: str) -> str:
    return '"' + column.replace('"', '""') + '"'
