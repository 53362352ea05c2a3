"""Preference pairs of an exported corpus: each trace, and a wrong trace of the same problem.

The rejected one is a complete trace, of the versions behind the corpus, that a rule called wrong,
written in the form of the chosen one. The chosen traces of a problem take its wrong ones in turn,
in an order that depends on their ids alone. `curate train dpo` chooses both traces by rules
(curate/train/pairs.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import polars as pl

from curate.errors import CurateError
from curate.prompts.forms import Form, compose_expr, with_opener_expr
from curate.warehouse.sql import connect

if TYPE_CHECKING:
    from curate.warehouse import Version, Warehouse

# Pairing reads the traces without their texts.
_WRONG = """
SELECT t.trace_id, t.attempt, t.problem_id, t.form
FROM last_traces t JOIN last_verdicts v ON v.trace_id = t.trace_id AND v.attempt = t.attempt
WHERE v.verdict = 'wrong' AND t.finish_reason = 'stop'
  AND list_contains(?, 'traces/' || t.dataset || '/' || t.version)
ORDER BY md5(t.trace_id)
"""
_TEXTS = """
SELECT t.trace_id AS rejected_trace_id, t.form AS rejected_form, t.prompt AS rejected_prompt,
       t.completion AS rejected_completion, t.reasoning, t.answer
FROM last_traces t JOIN _wanted w ON t.trace_id = w.trace_id
"""


def pairs(warehouse: Warehouse, version: Version) -> Iterator[pl.DataFrame]:
    """Rows of the corpus with `rejected_trace_id` and `rejected` (its text), part by part.

    A row without a wrong trace is left out. CurateError if that leaves nothing.
    """
    total = 0
    with connect(warehouse.root) as connection:
        parents = [ref for ref in version.manifest.get("parents", []) if ref.startswith("traces/")]
        wrong = connection.sql(_WRONG, params=[parents]).pl()
        partners = _partners(version, wrong)
        for path in version.parts():
            rows = pl.read_parquet(path, glob=False).join(
                partners, on="trace_id", how="inner", maintain_order="left"
            )
            ids = rows.select(trace_id=pl.col("rejected_trace_id")).unique()
            connection.register("_wanted", ids.to_arrow())
            texts = connection.sql(_TEXTS).pl()
            connection.unregister("_wanted")
            joined = rows.join(texts, on="rejected_trace_id", how="inner", maintain_order="left")
            paired = joined.with_columns(rejected=_in_form_of_chosen(joined)).drop_nulls("rejected")
            total += len(paired)
            yield paired.drop("rejected_form", "rejected_prompt", "rejected_completion")
    if not total:
        raise CurateError(
            f"no pairs in {version.ref}: none of its problems has a complete trace that a rule "
            "called wrong. Sample more traces of them, or annotate those that are there"
        )


def _partners(version: Version, wrong: pl.DataFrame) -> pl.DataFrame:
    """trace_id of each chosen trace, and rejected_trace_id: the wrong ones of its problem in
    turn.
    """
    chosen = version.read(["trace_id", "problem_id"]).collect().drop_nulls()
    chosen = chosen.sort("problem_id", "trace_id").with_columns(
        turn=pl.int_range(pl.len()).over("problem_id")
    )
    listed = wrong.group_by("problem_id", maintain_order=True).agg(rejected="trace_id")
    return chosen.join(listed, on="problem_id", how="inner").select(
        "trace_id",
        rejected_trace_id=pl.col("rejected").list.get(
            pl.col("turn") % pl.col("rejected").list.len()
        ),
    )


def _in_form_of_chosen(rows: pl.DataFrame) -> pl.Series:
    """Rejected completions: unchanged if they have the form of the chosen one, else composed
    from their parts; null without parts.
    """
    text: Any = with_opener_expr(
        pl.col("rejected_completion"), pl.col("rejected_prompt"), pl.col("rejected_form")
    )
    same = pl.col("rejected_form") == pl.col("form")
    value: Any = pl.when(same).then(text)
    for name in rows["form"].drop_nulls().unique().sort():
        form = Form.of(name)
        reasoning = pl.lit("") if form.name == "plain" else pl.col("reasoning")
        composed = compose_expr(reasoning, pl.col("answer"), form)
        complete = pl.col("answer").is_not_null()
        value = value.when(~same & (pl.col("form") == name) & complete).then(composed)
    return rows.select(value.otherwise(None).str.strip_chars()).to_series()
