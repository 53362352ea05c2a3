"""Selection among the traces that passed the rules: difficulty band, k of each problem, balance,
the best of all, total budget.

Each step writes its name into `dropped_by` of the rows that it drops. Ties and random choices are
decided by a hash of seed and trace id (DRAW), so the same traces in any order give the same corpus.
"""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from curate.filter.hidden_columns import BALANCE, DIFFICULTY, DRAW, PLACE, RANK, SHAPE, TOP
from curate.filter.rules import Selection

_LEFT = pl.col("dropped_by").is_null()


def select(frame: pl.DataFrame, selection: Selection) -> pl.DataFrame:
    """Return `frame` with `dropped_by` filled in for the rows that the selection drops.

    Reads problem_id, dropped_by, and DRAW, RANK, TOP, DIFFICULTY, BALANCE and SHAPE
    (hidden_columns.py).
    """
    if selection.difficulty is not None:
        inside = (
            pl.col(DIFFICULTY)
            .is_between(selection.difficulty.low, selection.difficulty.high)
            .fill_null(False)
        )
        frame = _drop(frame, "difficulty", ~inside)
    ways = selection.per_problem
    if ways.diverse is not None:
        frame = _drop(frame, "per_problem", ~_spread(frame, ways.diverse.k))
    for chosen in (ways.best, ways.shortest, ways.random):
        if chosen is not None:
            order: list[str | pl.Expr] = [DRAW]
            if ways.random is None:
                order.insert(0, -pl.col(RANK).fill_nan(None))
            frame = _drop(frame, "per_problem", _rank(frame, "problem_id", order) >= chosen.k)
    if selection.balance is not None:
        sizes = frame.filter(_LEFT).group_by(BALANCE).len()["len"]
        if len(sizes):
            most = int(selection.balance.ratio * min(sizes.to_list()))
            frame = _drop(frame, "balance", _rank(frame, BALANCE, [DRAW]) >= most)
    if selection.top is not None:
        # Traces without a value come last, as nothing is known about them.
        first: list[str | pl.Expr] = [-pl.col(TOP).fill_nan(None), DRAW]
        every = frame.with_columns(_all=pl.lit(0))
        frame = _drop(frame, "top", _rank(every, "_all", first) >= selection.top.k)
    if selection.budget is not None:
        frame = _drop(
            frame,
            "budget",
            _rank(frame.with_columns(_all=pl.lit(0)), "_all", [DRAW]) >= selection.budget,
        )
    return frame


def _drop(frame: pl.DataFrame, step: str, falls: pl.Expr | pl.Series) -> pl.DataFrame:
    return frame.with_columns(
        dropped_by=pl.when(_LEFT & falls).then(pl.lit(step)).otherwise(pl.col("dropped_by"))
    )


def _rank(frame: pl.DataFrame, within: str, order: Sequence[str | pl.Expr]) -> pl.Series:
    """Rank each remaining row within its group, from 0; dropped rows get a large number."""
    places = (
        frame.lazy()
        .with_row_index(PLACE)
        .filter(_LEFT)
        .sort(within, *order, nulls_last=True)
        .select(PLACE, pl.int_range(pl.len()).over(within).alias("_place"))
        .collect()
    )
    return pl.repeat(2**62, frame.height, dtype=pl.Int64, eager=True).scatter(
        places[PLACE], places["_place"]
    )


def _spread(frame: pl.DataFrame, k: int) -> pl.Series:
    """Choose rows by farthest-point selection in each problem, starting with the best by `_by`.

    Distance is Euclidean over `_shape` (logarithms of steps, characters and reflections). The loop
    is over k, not rows.
    """
    axes = [f"_x{i}" for i in range(3)]
    rows = (
        frame.with_row_index(PLACE)
        .filter(_LEFT)
        .with_columns(
            **{axis: pl.col(SHAPE).list.get(i) for i, axis in enumerate(axes)},
            _score=pl.col(RANK).fill_nan(None).fill_null(-1e300),
            _far=pl.lit(float("inf")),
            _taken=pl.lit(False),
        )
    )
    for step in range(k):
        order = ["_score"] if step == 0 else ["_far", "_score"]
        free = rows.filter(~pl.col("_taken")).sort(
            *order, DRAW, descending=[True] * len(order) + [False]
        )
        chosen = free.group_by("problem_id", maintain_order=True).first()
        if chosen.is_empty():
            break
        near = chosen.select(
            "problem_id", pl.col(PLACE).alias("_new"), **{f"{axis}c": pl.col(axis) for axis in axes}
        )
        distance = pl.sum_horizontal((pl.col(axis) - pl.col(f"{axis}c")) ** 2 for axis in axes)
        rows = (
            rows.join(near, on="problem_id", how="left", maintain_order="left")
            .with_columns(
                _taken=pl.col("_taken") | (pl.col(PLACE) == pl.col("_new")).fill_null(False),
                _far=pl.min_horizontal("_far", distance),
            )
            .drop("_new", *[f"{axis}c" for axis in axes])
        )
    taken = rows.filter(pl.col("_taken")).get_column(PLACE)
    return pl.int_range(frame.height, dtype=pl.UInt32, eager=True).is_in(taken.implode())
