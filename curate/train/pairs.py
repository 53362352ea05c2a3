"""Preference pairs from the warehouse: two traces of a prompt, chosen and rejected by SQL rules.

`curate train dpo` trains on these. An exported corpus has other pairs: its rows are the chosen
traces, and each gets a wrong trace (curate/filter/pairs.py).
"""

from __future__ import annotations

from collections.abc import Sequence

import duckdb
import polars as pl

from curate.errors import UsageError
from curate.filter.expressions import check_expression
from curate.filter.job import traces_condition
from curate.train.config import PairsConfig
from curate.warehouse import Warehouse
from curate.warehouse.sql import connect, quote

# The k-th chosen trace is paired with the k-th rejected one of the same prompt. Without `by` all
# ranks are equal, and the hash of seed and trace decides.
QUERY = """
WITH marked AS (
    SELECT trace_id, attempt, problem_id, prompt, completion, finish_reason, dataset, version,
           coalesce(({chosen}), FALSE) AS is_chosen, coalesce(({rejected}), FALSE) AS is_rejected,
           ({by})::DOUBLE AS number, md5({seed} || trace_id) AS draw
    FROM annotated
    WHERE ({where}) AND ({traces}) AND finish_reason <> 'error'
      AND prompt IS NOT NULL AND completion IS NOT NULL
), texts AS (  -- the same text again would make the same pair
    SELECT * FROM marked WHERE is_chosen OR is_rejected
    QUALIFY row_number() OVER (PARTITION BY prompt, completion, is_chosen ORDER BY draw) = 1
), ranked AS (
    SELECT *, row_number() OVER (
        PARTITION BY prompt, is_chosen
        ORDER BY CASE WHEN is_chosen THEN -number ELSE number END NULLS LAST, draw
    ) AS place
    FROM texts
)
SELECT c.problem_id, c.prompt, c.place,
       c.trace_id AS chosen_id, c.completion AS chosen, c.finish_reason AS chosen_end,
       r.trace_id AS rejected_id, r.completion AS rejected, r.finish_reason AS rejected_end,
       list_distinct(['traces/' || c.dataset || '/' || c.version,
                      'traces/' || r.dataset || '/' || r.version]) AS refs
FROM ranked c JOIN ranked r ON r.prompt = c.prompt AND r.place = c.place
WHERE c.is_chosen AND NOT r.is_chosen AND c.place <= {per_prompt} AND c.completion <> r.completion
ORDER BY c.prompt, c.place
"""


def preference_pairs(
    wh: Warehouse, pairs: PairsConfig, traces: Sequence[str] = (), seed: int = 0
) -> pl.DataFrame:
    """Return pairs of traces with the same prompt, in an order that depends on the traces alone.

    Columns: problem_id, prompt, place; chosen, chosen_id, chosen_end (its finish reason), the same
    of rejected; and refs, the versions of traces of a pair. Raises UsageError if a rule
    is not a SQL expression that only reads, or if there is no pair.
    """
    named = {
        "pairs.where": pairs.where or "TRUE",
        "pairs.chosen": pairs.chosen,
        "pairs.rejected": pairs.rejected,
        "pairs.by": pairs.by or "0",
    }
    for name, sql in named.items():
        check_expression(sql, name)
    with connect(wh.root, views=False) as connection:
        for name, sql in named.items():
            _check(connection, name, sql)
        # the line break ends a comment at the end of an expression
        where, chosen, rejected, by = (f"\n{sql}\n" for sql in named.values())
        frame = connection.sql(
            QUERY.format(
                where=where,
                chosen=chosen,
                rejected=rejected,
                by=by,
                traces=traces_condition(traces, wh) if traces else "TRUE",
                seed=quote(f"{seed}:"),
                per_prompt=pairs.per_prompt,
            )
        ).pl()
        if frame.is_empty():
            raise UsageError(_none(connection, chosen, rejected, where))
    return frame


def _check(connection: duckdb.DuckDBPyConnection, name: str, sql: str) -> None:
    """Raise UsageError, naming the rule, if DuckDB cannot compute it over `annotated`."""
    try:
        connection.sql(f"SELECT (\n{sql}\n) FROM annotated LIMIT 0")
    except duckdb.Error as error:
        raise UsageError(f"rule '{name}' fails: {error}\n  {sql}") from error


def _none(connection: duckdb.DuckDBPyConnection, chosen: str, rejected: str, where: str) -> str:
    """Return the message for the case that no prompt has a chosen and a rejected trace."""
    row = connection.execute(
        f"SELECT count(*) FILTER ({chosen}), count(*) FILTER ({rejected}) "
        f"FROM annotated WHERE ({where})"
    ).fetchone()
    counts = row or (0, 0)
    return (
        f"no pairs: {counts[0]} traces are chosen and {counts[1]} rejected, but no prompt has both "
        "with different texts. Sample several traces per problem and run `curate annotate` before, "
        "or change pairs.chosen and pairs.rejected"
    )
