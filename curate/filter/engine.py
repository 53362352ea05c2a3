"""Rules over the `annotated` view: which traces are kept, what every rule did, and why one trace fell.

DuckDB evaluates each predicate once over the narrow columns that it names, which gives a frame of booleans; the funnel
and the selection are Polars over that frame. No text is read unless a rule names a text column.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import polars as pl

from curate.errors import CurateError, UsageError
from curate.filter.funnel import funnel_of
from curate.filter.rules import RuleSet, Selection, check_expression
from curate.filter.select import select
from curate.filter.texts import drop_by_text

if TYPE_CHECKING:
    import duckdb

# Columns that the kept rows carry; those that the view lacks are left out.
CARRIED = ("trace_id", "attempt", "problem_id", "source", "domain", "recipe", "difficulty", "quality")


@dataclass(frozen=True, slots=True)
class FilterResult:
    """What a rule set made of the traces.

    kept: trace_id, attempt, problem_id, source, domain, recipe, difficulty, quality; one row a kept trace.
    funnel: the columns of schemas/funnel.sql without corpus and corpus_version.
    decisions: trace_id, attempt, dropped_by (the rule or selection step a trace fell to; null: kept); one row a trace.
    overlaps: problem_id, tokens, overlap (the words shared with a benchmark); one row a contaminated problem.
    """

    rules: RuleSet
    kept: pl.DataFrame
    funnel: pl.DataFrame
    decisions: pl.DataFrame
    overlaps: pl.DataFrame


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a trace was kept or fell. `rules`: one row a rule with rule, keep, passed, reason and values."""

    trace_id: str
    dropped_by: str | None
    rules: pl.DataFrame

    def __str__(self) -> str:
        lines = [f"trace {self.trace_id}: " + (f"dropped by '{self.dropped_by}'" if self.dropped_by else "kept")]
        for row in self.rules.iter_rows(named=True):
            mark = "passed " if row["passed"] else "FAILED "
            lines.append(f"  {mark} {row['rule']}: {row['keep']}")
            if not row["passed"]:
                lines.append(f"           values: {row['values']}")
                lines.append(f"           reason: {row['reason']}")
        if self.dropped_by and self.dropped_by not in set(self.rules["rule"]):
            lines.append(f"  it passed every rule, and fell to the selection step '{self.dropped_by}'")
        return "\n".join(lines)


def apply_rules(
    con: duckdb.DuckDBPyConnection,
    rules: RuleSet,
    where: str | None = None,
    view: str = "annotated",
    slices: Iterable[Any] = (),
) -> FilterResult:
    """Decide over every trace of `view`, narrowed to `where` (a SQL expression). A null predicate does not pass.

    `slices`: iterating points the view at one slice of the traces after the other (see curate/warehouse/slices.py).

    Raises `UsageError` naming the rule whose SQL fails, with DuckDB's message, and `CurateError` naming the rule
    that dropped most where nothing is kept.
    """
    frame = _evaluate(con, rules, where, view, slices)
    if frame.is_empty():
        raise CurateError(
            f"rule set '{rules.name}' had no trace to look at"
            + (f" where {where}" if where else "")
            + ": generate and annotate some first, or widen the selection"
        )
    frame, overlaps = _decide(con, frame, rules, view)
    funnel = funnel_of(frame, rules)
    kept = frame.filter(pl.col("dropped_by").is_null())
    if kept.is_empty():
        raise _nothing_left(funnel, rules)
    return FilterResult(
        rules=rules,
        kept=kept.select([name for name in CARRIED if name in frame.columns]).cast({pl.Categorical: pl.String}),
        funnel=funnel,
        decisions=frame.select("trace_id", "attempt", "dropped_by"),
        overlaps=overlaps,
    )


def columns_read(rules: RuleSet, where: str | None = None) -> dict[str, str]:
    """Every column that deciding reads, with the rule or the step of the selection that reads it (carried ones: '')."""
    read = dict.fromkeys((*CARRIED, "attempt"), "")
    expressions = rules.predicates() | ({"--where": where} if where else {})
    for name, sql in expressions.items():
        for column in check_expression(sql, name):
            read.setdefault(column, name)
    chosen = rules.select
    if chosen.per_problem.shortest is not None or chosen.per_problem.diverse is not None:
        read |= dict.fromkeys(("characters", "step_count", "reflection_count"), "select.per_problem")
    if chosen.difficulty is not None and chosen.difficulty.model is not None:
        read |= dict.fromkeys(("model", "verdict"), "select.difficulty")
    if chosen.contamination is not None:
        read["question"] = "select.contamination"
    if chosen.duplicates is not None:
        read[chosen.duplicates.over] = "select.duplicates"
    return read


def explain(
    con: duckdb.DuckDBPyConnection, rules: RuleSet, trace_id: str, where: str | None = None, view: str = "annotated"
) -> Explanation:
    """Which rules a trace passed, with the values of the columns that each rule reads. `trace_id` may be shortened.

    Raises `UsageError` where no trace or several begin with `trace_id`.
    """
    found = _ids(con, trace_id, view)
    if len(found) != 1:
        how = "no trace has" if not found else f"{len(found)} traces have"
        raise UsageError(f"{how} an id that begins with '{trace_id}': see `select trace_id from {view}`")
    full = found[0]
    columns = _columns(con, view)
    one = f"trace_id = {_quote(full)}"
    frame = _evaluate(con, rules, one, view)
    rows = []
    for rule in rules.rules:
        read = [name for name in check_expression(rule.keep, rule.name) if name in columns]
        values = con.sql(f"SELECT {', '.join(map(_name, read)) or '1'} FROM {view} WHERE {one}").fetchall()[0]
        rows.append(
            {
                "rule": rule.name,
                "keep": rule.keep,
                "passed": frame[f"rule:{rule.name}"][0] if frame.height else None,
                "reason": rule.reason,
                "values": ", ".join(f"{n} = {_show(v)}" for n, v in zip(read, values, strict=False)),
            }
        )
    return Explanation(full, _fate(con, rules, where, view, full), pl.DataFrame(rows, schema=_EXPLAINED))


_EXPLAINED = {"rule": pl.String, "keep": pl.String, "passed": pl.Boolean, "reason": pl.String, "values": pl.String}


def _fate(con: duckdb.DuckDBPyConnection, rules: RuleSet, where: str | None, view: str, trace_id: str) -> str | None:
    """What the trace fell to among all the others: selection depends on them."""
    decided, _ = _decide(con, _evaluate(con, rules, where, view), rules, view)
    decided = decided.filter(pl.col("trace_id") == trace_id)
    return decided["dropped_by"][0] if decided.height else "where"


def _decide(
    con: duckdb.DuckDBPyConnection, frame: pl.DataFrame, rules: RuleSet, view: str
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Adds `dropped_by`: the first rule that a trace fails, else the selection step that leaves it out, else null.

    The second frame tells the overlaps with benchmarks.
    """
    failed = [pl.when(~pl.col(f"rule:{rule.name}")).then(pl.lit(rule.name)) for rule in rules.rules]
    frame = frame.with_columns(dropped_by=pl.coalesce(*failed, pl.lit(None, dtype=pl.String)))
    frame, overlaps = drop_by_text(con, frame, rules.select, view)
    return select(frame, rules.select), overlaps


def _evaluate(
    con: duckdb.DuckDBPyConnection, rules: RuleSet, where: str | None, view: str, slices: Iterable[Any] = ()
) -> pl.DataFrame:
    """One row a trace: the carried columns, `rule:NAME` booleans, and what the selection reads (names with `_`)."""
    if where is not None:
        check_expression(where, "where")
    columns = _columns(con, view)
    carried = [name for name in CARRIED if name in columns]
    selection = rules.select
    wanted = {f"rule:{rule.name}": f"(({rule.keep}\n) IS TRUE)" for rule in rules.rules}
    wanted["_by"] = f"({_order(rules)}\n)::DOUBLE"
    wanted["_best"] = f"({selection.duplicates.by if selection.duplicates else 'NULL'}\n)::DOUBLE"
    if selection.duplicates and selection.duplicates.within:
        wanted["_within"] = f"({selection.duplicates.within}\n)::VARCHAR"
    wanted["_band"] = f"({_difficulty(rules)}\n)::DOUBLE"
    wanted["_balance"] = f"({selection.balance.by}\n)::VARCHAR" if selection.balance else "NULL::VARCHAR"
    if selection.per_problem.diverse is not None:
        wanted["_shape"] = (
            "[coalesce(ln(1 + step_count), 0), coalesce(ln(1 + characters), 0), coalesce(ln(1 + reflection_count), 0)]"
        )
    within = " AND ".join(f"(({sql}\n) IS TRUE)" for sql in (rules.where, where) if sql is not None) or "TRUE"
    selected = [_name(name) for name in carried] + [f"{sql} AS {_name(name)}" for name, sql in wanted.items()]
    asked = f"SELECT {', '.join(selected)} FROM {view} WHERE {within}"
    asked = f"SELECT *, {_draw(rules)} AS _draw FROM ({asked})"
    # A window looks at other traces, which may lie in other slices.
    windowed = re.search(r"\bover\b", asked, re.IGNORECASE)
    try:
        parts = [_narrow(con.sql(asked).pl()) for _ in (slices if slices and not windowed else (0,))]
        return pl.concat(parts)
    except Exception as error:  # DuckDB's own classes vary; each expression is asked alone to find the one at fault
        _blame(con, rules, where, view, wanted)
        raise UsageError(f"rule set '{rules.name}' could not be asked of {view}: {error}") from error


def _narrow(frame: pl.DataFrame) -> pl.DataFrame:
    """Names that come again and again are kept once each."""
    return frame.with_columns(pl.col(name).cast(pl.Categorical) for name in _NAMES if name in frame.columns)


_NAMES = ("source", "domain", "recipe", "_balance")


def _draw(rules: RuleSet) -> str:
    """A number for each trace that the selection can meet: md5, the same on every machine and in every version."""
    if rules.select == Selection(seed=rules.select.seed):
        return "NULL::UBIGINT"
    passed = " AND ".join(_name(f"rule:{rule.name}") for rule in rules.rules) or "TRUE"
    return f"CASE WHEN {passed} THEN md5_number_lower('{rules.select.seed}:' || trace_id) END"


def _order(rules: RuleSet) -> str:
    """The SQL that ranks traces of one problem, high first."""
    chosen = rules.select.per_problem
    if chosen.best is not None:
        return chosen.best.by
    if chosen.shortest is not None:
        return "-characters"
    return "quality" if chosen.diverse is not None else "0"


def _difficulty(rules: RuleSet) -> str:
    band = rules.select.difficulty
    if band is None:
        return "difficulty"
    if band.model is None:
        return band.by
    solved = "verdict = 'correct'"
    return f"1 - avg(({solved})::INT) FILTER (model = {_quote(band.model)}) OVER (PARTITION BY problem_id)"


def _blame(
    con: duckdb.DuckDBPyConnection, rules: RuleSet, where: str | None, view: str, wanted: dict[str, str]
) -> None:
    """Ask every expression alone, and raise `UsageError` for the first that fails."""
    places = {name.removeprefix("rule:"): sql for name, sql in wanted.items()}
    places |= {f"where: {sql}": f"(({sql}\n) IS TRUE)" for sql in (rules.where, where) if sql is not None}
    named = {rule.name: rule.keep for rule in rules.rules}
    steps = {
        "_best": "select.duplicates",
        "_within": "select.duplicates.within",
        "_by": "select.per_problem",
        "_band": "select.difficulty",
        "_balance": "select.balance",
        "_shape": "diverse",
    }
    for name, sql in places.items():
        try:
            con.sql(f"SELECT count(x) FROM (SELECT {sql} AS x FROM {view})").fetchall()
        except Exception as error:
            shown = named.get(name, sql)
            raise UsageError(
                f"rule '{steps.get(name, name)}' of rule set '{rules.name}' fails: {error}\n  {shown}"
            ) from error


def _nothing_left(funnel: pl.DataFrame, rules: RuleSet) -> CurateError:
    by_rule = funnel.group_by("rule", "position").agg(pl.col("drops_first").sum(), pl.col("drops_alone").sum())
    worst = by_rule.sort("drops_first", "drops_alone", descending=True).row(0, named=True)
    keep = {rule.name: f": {rule.keep}" for rule in rules.rules}.get(worst["rule"], "")
    total = int(funnel.filter(pl.col("position") == 1)["traces"].sum())
    return CurateError(
        f"rule set '{rules.name}' keeps none of {total} traces. Rule '{worst['rule']}' dropped most of them "
        f"({worst['drops_first']} first, {worst['drops_alone']} alone){keep}. "
        "Loosen it, or ask `--explain TRACE_ID` for the values of one trace."
    )


def _ids(con: duckdb.DuckDBPyConnection, prefix: str, view: str) -> list[str]:
    query = f"SELECT DISTINCT trace_id FROM {view} WHERE starts_with(trace_id, {_quote(prefix)}) LIMIT 10"
    found = [str(row[0]) for row in con.sql(query).fetchall()]
    return [prefix] if prefix in found else found


def _columns(con: duckdb.DuckDBPyConnection, view: str) -> set[str]:
    return {str(row[0]) for row in con.sql(f"DESCRIBE {view}").fetchall()}


def _quote(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _name(column: str) -> str:
    return '"' + column.replace('"', '""') + '"'


def _show(value: Any) -> str:
    if value is None:
        return "null"
    text = f"{value:.4g}" if isinstance(value, float) else repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
