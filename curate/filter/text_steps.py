"""The two selection steps that read text: contamination and duplicates. They read only candidates.

Text is read from the view in batches; only ids and a signature (21 numbers) per text stay in
memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import polars as pl

from curate.filter.contamination import Benchmark, contaminated, read_benchmark
from curate.filter.duplicates import duplicates, salted, signatures
from curate.filter.hidden_columns import PLACE, SCORE, SLICE, WITHIN
from curate.filter.rules import Contamination, Duplicates, Selection
from curate.filter.spill import Decisions, problem_key
from curate.warehouse.sql import joined_as_written

if TYPE_CHECKING:
    import duckdb

# The built-in `map`, or one over several machines.
Map = Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]]
_BATCH = 25_000  # texts in memory at once
_LEFT = pl.col("dropped_by").is_null()
_OVERLAPS = {
    "problem_id": pl.String,
    "question": pl.String,
    "item": pl.String,
    "similarity": pl.Float64,
    "tokens": pl.Int64,
    "overlap": pl.String,
}


def drop_by_text(
    con: duckdb.DuckDBPyConnection,
    rows: Decisions,
    selection: Selection,
    view: str,
    slices: Iterable[Any] = (),
    each: Map = map,
) -> pl.DataFrame:
    """Fill in `dropped_by` of `rows.candidates`; return the overlaps with benchmarks.

    `each`: applies a function to batches of texts, in order, here or elsewhere.
    """
    overlaps = pl.DataFrame(schema=_OVERLAPS)
    if selection.contamination is not None:
        overlaps = _contaminated(con, rows, selection.contamination, view, slices, each)
        _drop(rows, "contamination", pl.col("problem_id").is_in(_keys(overlaps)))
    if selection.duplicates is not None:
        falls = _duplicates(con, rows, selection.duplicates, view, slices, each)
        _drop(rows, "duplicates", falls)
    return overlaps


def _keys(problems: pl.DataFrame) -> pl.Series:
    return problems.select(problem_key()).to_series().implode()


def _drop(rows: Decisions, step: str, falls: pl.Expr) -> None:
    rows.candidates = rows.candidates.with_columns(
        dropped_by=pl.when(_LEFT & falls).then(pl.lit(step)).otherwise("dropped_by")
    )


def _contaminated(
    con: duckdb.DuckDBPyConnection,
    rows: Decisions,
    step: Contamination,
    view: str,
    slices: Iterable[Any],
    each: Map,
) -> pl.DataFrame:
    benchmark = read_benchmark(step.benchmarks, step.column, step.n)
    parts: list[pl.DataFrame] = []
    texts = _noting(_texts(con, _units(rows, "question"), "question", view, slices), parts)
    find = partial(_hits, benchmark=benchmark, similarity=step.similarity)
    overlaps = [
        parts[number]
        .select(pl.col("trace_id", "attempt", "problem_id").gather(hits["at"]))
        .hstack(hits.drop("at"))
        for number, hits in enumerate(each(find, texts))
    ]
    if not overlaps:
        return pl.DataFrame(schema=_OVERLAPS)
    return pl.concat(overlaps).sort("trace_id", "attempt").select(list(_OVERLAPS))


def _hits(texts: pl.Series, benchmark: Benchmark, similarity: float) -> pl.DataFrame:
    """The texts that are items of a benchmark: `at` (their index), and columns of `_OVERLAPS`."""
    hits = contaminated(texts, benchmark, similarity)
    return hits.select("at", "similarity", "tokens", "overlap").with_columns(
        texts.gather(hits["at"]).alias("question"),
        benchmark.texts.gather(hits["item"]).alias("item"),
    )


def _noting(
    batches: Iterable[tuple[pl.DataFrame, pl.Series]], parts: list[pl.DataFrame]
) -> Iterator[pl.Series]:
    """The texts of batches; their units are added to `parts`."""
    for part, texts in batches:
        parts.append(part)
        yield texts


def _duplicates(
    con: duckdb.DuckDBPyConnection,
    rows: Decisions,
    step: Duplicates,
    view: str,
    slices: Iterable[Any],
    each: Map,
) -> pl.Expr:
    """Return which rows of `rows.candidates` are duplicates of a better one."""
    facts = step.over == "question" and not step.merge_templates
    units = _units(rows, step.over)
    if units.is_empty():
        return pl.lit(False)
    parts: list[pl.DataFrame] = []
    texts = _noting(_texts(con, units, step.over, view, slices), parts)
    sign = partial(signatures, near=step.near, facts=facts)
    signed = pl.concat(each(sign, texts))
    order = pl.concat(parts).with_row_index("_n").sort("trace_id", "attempt")
    units, marks = order.drop("_n"), signed[order["_n"]]
    if step.within is not None:
        marks = salted(marks, units[WITHIN])

    def fetch(at: pl.Series) -> pl.Series:
        wanted = units.select(pl.all().gather(at))
        return pl.concat([texts for _, texts in _texts(con, wanted, step.over, view)])

    matches = duplicates(marks, fetch, units[SCORE], step.threshold)
    lesser = units.filter(matches["kind"].is_not_null())
    if step.over == "question":
        return pl.col("problem_id").is_in(_keys(lesser))
    return pl.int_range(pl.len(), dtype=pl.UInt32).is_in(lesser[PLACE].implode())


def _units(rows: Decisions, over: str) -> pl.DataFrame:
    """Return the traces to compare: all that remain, or (for questions) one per problem.

    Each has its ids, its slice (`_slice`), its row in `rows.candidates` (`_at`), and the columns
    that the step reads.
    """
    units = []
    for number in range(rows.parts):
        part = rows.passed(number).filter(_LEFT)
        names = [
            n
            for n in ("trace_id", "attempt", "problem_id", SCORE, WITHIN, PLACE)
            if n in part.columns
        ]
        part = part.select(*names, pl.lit(number, dtype=pl.Int32).alias(SLICE))
        units.append(_one_per_problem(part) if over == "question" else part)
    every = pl.concat(units)
    return _one_per_problem(every) if over == "question" else every


def _one_per_problem(traces: pl.DataFrame) -> pl.DataFrame:
    """Return the first trace of each problem, with the highest `_best` of the problem's traces."""
    one = traces.sort("trace_id", "attempt").unique("problem_id", keep="first", maintain_order=True)
    if SCORE not in traces.columns:
        return one
    best = traces.group_by("problem_id").agg(pl.col(SCORE).max())
    return one.drop(SCORE).join(best, on="problem_id", how="left", maintain_order="left")


def _texts(
    con: duckdb.DuckDBPyConnection,
    units: pl.DataFrame,
    column: str,
    view: str,
    slices: Iterable[Any] = (),
) -> Iterator[tuple[pl.DataFrame, pl.Series]]:
    """Yield batches of units with their texts; without slices, in the order of units."""
    for number, _ in enumerate(slices or (0,)):
        mine = units.filter(pl.col(SLICE) == number) if slices else units
        for part in mine.iter_slices(_BATCH):
            con.register(
                "_asked", part.with_row_index("_n").select("_n", "trace_id", "attempt").to_arrow()
            )
            try:
                with joined_as_written(con):
                    rows = con.sql(
                        f'SELECT k._n, a."{column}" AS text FROM {view} a '
                        "JOIN _asked k ON a.trace_id = k.trace_id AND a.attempt = k.attempt ORDER "
                        "BY k._n"
                    ).pl()
            finally:
                con.unregister("_asked")
            yield part, rows.get_column("text")
