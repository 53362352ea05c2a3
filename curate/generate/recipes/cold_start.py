"""Cold start: readable long chains of thought (report, section 2.3.1), from four sources.

A strong model or a later checkpoint (source: model), R1-Zero traces rewritten by a model (source:
rework, see rework.py), and worked solutions of the problems (source: solutions).
"""

from __future__ import annotations

import polars as pl

from curate.generate import Recipe
from curate.prompts.render import worked_completion
from curate.records import Problem


def from_solutions(problems: pl.DataFrame, form: str) -> pl.DataFrame:
    """One trace per problem with a worked solution: the solution in the form, as if sampled."""
    solved = problems.filter(pl.col("solution").is_not_null() & pl.col("reference").is_not_null())
    texts = [worked_completion(Problem(**row), form) for row in solved.iter_rows(named=True)]
    return solved.select("problem_id").with_columns(pl.Series("completion", texts, dtype=pl.String))


RECIPE = Recipe(
    name="cold-start",
    doc="readable long CoT from a strong model, by rewriting harvested traces (source: rework), or "
    "from worked solutions of the problems (source: solutions)",
    defaults={
        "template": "r1",
        "samples": 1,
        "sampling": {"temperature": 1.0, "top_p": 1.0, "max_tokens": 8192},
    },
    # Rewriting follows a text: a low temperature keeps to it. A rewrite that loses the answer is
    # tried again.
    by_source={
        "rework": {
            "samples": 4,
            "adaptive": {"keep": 1, "first": 1},
            "sampling": {"temperature": 0.6},
        }
    },
    rows=from_solutions,
)
