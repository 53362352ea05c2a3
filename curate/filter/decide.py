"""Apply rules to the `annotated` view: which traces are kept, the effect of every rule, and why a
trace was dropped.

DuckDB evaluates each predicate once over the narrow columns that it names, one slice of traces at a
time. The funnel counts the resulting booleans; the selection works in Polars on a few numbers per
trace that passed. Rows wait in files. No text is read unless a rule names a text column.
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
from curate.filter.expressions import check_expression, columns_of, reads_other_rows
from curate.filter.funnel import band_of, count_rules, count_steps, funnel_of
from curate.filter.hidden_columns import (
    BALANCE,
    BAND,
    DIFFICULTY,
    DRAW,
    RANK,
    SCORE,
    SHAPE,
    TOP,
    WITHIN,
    rule_column,
)
from curate.filter.rules import STEPS, RuleSet, Selection
from curate.filter.select import select
from curate.filter.spill import Decisions, numbers_read
from curate.filter.text_steps import Map, drop_by_text
from curate.memory import BASE, megabytes
from curate.warehouse.sql import quote

if TYPE_CHECKING:
    import duckdb

TEXT_BYTES = 1500  # memory per text while duplicates are detected
# Columns of the kept rows; those that the view lacks are left out.
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
        """Return one row per kept trace, in the columns of `CARRIED`."""
        return pl.concat([self.rows.kept(number) for number in range(self.rows.parts)])

    @property
    def decisions(self) -> pl.DataFrame:
        """Return one row per trace: trace_id, attempt, dropped_by.

        dropped_by is the rule or selection step that dropped the trace; null if it is kept.
        """
        return pl.concat([self.rows.decided(number) for number in range(self.rows.parts)])

    def counts(self) -> tuple[int, int, int]:
        """Return the number of traces kept, of traces read, and of problems with a kept trace."""
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
                f"  it passed every rule and was dropped by the selection step '{self.dropped_by}'"
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
    each: Map = map,
) -> FilterResult:
    """Decide on every trace of `view` for which `where` (a SQL expression) is true. A predicate
    that is null does not pass.

    `slices`: iterating over it points the view at one slice of the traces after another (see
    curate/warehouse/slices.py). `folder`: where the rows are kept as long as the result is used; by
    default the system's folder for temporary files. `memory`: limit of the whole process (`2GB`);
    by default none. `each`: applies a function to batches of texts, here or elsewhere.

    Raises `UsageError` if the SQL of a rule fails (naming the rule, with DuckDB's message) or if
    the selection needs more memory (saying how much), and `CurateError` if nothing is kept (naming
    the rule that dropped most).
    """
    rows, counts, overlaps = _decide(con, rules, where, view, slices, folder, memory, each)
    if not rows.total:
        raise CurateError(
            f"rule set '{rules.name}' got no traces"
            + (f" where {where}" if where else "")
            + ": generate and annotate traces first, or select more of them"
        )
    result = FilterResult(
        rules, funnel_of([*counts, count_steps(rows.candidates, rules)], rules), overlaps, rows
    )
    if not result.counts()[0]:
        raise _nothing_left(result.funnel, rules)
    return result


def columns_read(rules: RuleSet, where: str | None = None) -> dict[str, str]:
    """Return the columns that the decision reads, with the rule or step that reads each ('' if
    carried).
    """
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
    """Explain which rules a trace passed, with the values of the columns they read. `trace_id` may
    be shortened.

    Raises `UsageError` if no trace, or more than one, begins with `trace_id`.
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
    """Return the rule or step that dropped a trace. The selection depends on all other traces."""
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
    each: Map = map,
) -> tuple[Decisions, list[pl.DataFrame], pl.DataFrame]:
    """Return the rows with `dropped_by`: the first rule that a trace fails, else the selection step
    that drops it.

    Also returns the counts of each slice, for the funnel, and the overlaps with benchmarks.
    """
    # A window function reads other traces, which may be in other slices.
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
    overlaps = drop_by_text(con, rows, rules.select, view, slices, each)
    rows.candidates = select(rows.candidates, rules.select)
    return rows, counts, overlaps


def _check_memory(rows: Decisions, rules: RuleSet, limit: float) -> None:
    """Raise `UsageError` if choosing among the traces that passed needs more MB than `limit`
    leaves.

    Sorting holds the numbers of each trace up to five times. `TEXT_BYTES` was measured on distinct
    texts.
    """
    each = TEXT_BYTES if rules.select.duplicates else 0
    need = (rows.candidates.estimated_size() * 5 + rows.candidates.height * each) / 1e6
    # DuckDB takes another quarter (half of its half) while it reads slices.
    if rules.select == Selection() or need <= max(50.0, limit * 0.75 - BASE):
        return
    enough = ceil((need + BASE) / 750)
    raise UsageError(
        f"{rows.candidates.height:,} traces passed the rules of '{rules.name}', and choosing "
        "among them takes about "
        f"{need / 1000:.1f} GB: give memory={enough}GB, narrow them down with where=, or let the "
        "rules drop more"
    )


def check_rules(
    con: duckdb.DuckDBPyConnection,
    rules: RuleSet,
    where: str | None = None,
    view: str = "annotated",
) -> None:
    """UsageError, naming the rule, if an expression cannot be evaluated over the view: a column
    that does not exist, or a type that does not fit. Cheap over a view without rows.
    """
    for _ in _evaluate(con, rules, where, view):
        pass


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
            # Repeated names are stored once.
            frame = frame.with_columns(
                pl.col(name).cast(pl.Categorical) for name in _NAMES if name in frame.columns
            )
            yield (
                frame
                if rates is None
                else frame.join(rates, on="problem_id", how="left", maintain_order="left")
            )
    except Exception as error:  # DuckDB's own classes vary
        # Evaluate each expression alone, to find the one at fault.
        _blame(con, rules, where, view, wanted)
        raise UsageError(
            f"rule set '{rules.name}' could not be query of {view}: {error}"
        ) from error


def _wanted(rules: RuleSet) -> dict[str, str]:
    """Return the SQL of every selected column except the carried ones."""
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
    if chosen.top:
        wanted[TOP] = f"({chosen.top.by}\n)::DOUBLE"
    if chosen.per_problem.diverse is not None:
        wanted[SHAPE] = (
            "[coalesce(ln(1 + step_count), 0), coalesce(ln(1 + characters), 0), coalesce(ln(1 + "
            "reflection_count), 0)]"
        )
    return wanted


def _rates(
    con: duckdb.DuckDBPyConnection, rules: RuleSet, within: str, view: str, slices: Iterable[Any]
) -> pl.DataFrame | None:
    """Return problem_id and DIFFICULTY: 1 - pass rate of the model named by the difficulty band.

    None if the band names no model.
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
    """Return SQL of a random number per trace that the selection can reach. It is md5, the same on
    every machine and in every version.
    """
    if rules.select == Selection(seed=rules.select.seed):
        return "NULL::UBIGINT"
    passed = " AND ".join(_name(rule_column(rule.name)) for rule in rules.rules) or "TRUE"
    return f"CASE WHEN {passed} THEN md5_number_lower('{rules.select.seed}:' || trace_id) END"


def _order(rules: RuleSet) -> str:
    """Return the SQL that ranks the traces of a problem, high first."""
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
    """Evaluate every expression alone and raise `UsageError` for the first that fails."""
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
        TOP: "select.top",
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
