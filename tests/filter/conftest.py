"""A small annotated view: 4 problems with 6 traces each, every column that the shipped rules
read.
"""

from __future__ import annotations

from collections.abc import Iterator

import duckdb
import polars as pl
import pytest

from curate.signals import annotate_frame, with_macros


def traces(problems: int = 4, samples: int = 6) -> pl.DataFrame:
    """Sample 0 is wrong, 1 truncated in a loop, 2 without tags, 3 mixes languages, 4 and 5 are
    right and clean.
    """
    rows = []
    for p in range(problems):
        total = p + 7
        clean = f"<think>{p} + 4 = {p + 4}. {p + 4} + 3 = {total}.</think> <answer>{total}</answer>"
        longer = (
            f"<think>First I add {p} and 4, which gives {p + 4}. Then I add 3 to that. "
            f"So it is {total}.</think> "
            f"<answer>{total}</answer>"
        )
        mixed = (
            f"<think>First I add the two numbers together, "
            f"然后我们再把最后一个数加上去，得到这个结果，"
            f"so the total is {total}.</think> <answer>{total}</answer>"
        )
        texts = [
            (clean.replace(str(total), "99"), "wrong", "stop"),
            ("<think> " + "I add it again. " * 40, "unverifiable", "length"),
            (f"The sum is {total}", "correct", "stop"),
            (mixed, "correct", "stop"),
            (clean, "correct", "stop"),
            (longer, "correct", "stop"),
        ]
        for s in range(samples):
            completion, verdict, finish = texts[s % len(texts)]
            rows.append(
                {
                    "trace_id": f"t{p}{s}",
                    "attempt": 0,
                    "problem_id": f"p{p}",
                    "source": "even" if p % 2 == 0 else "odd",
                    "domain": "math",
                    "recipe": "r1-zero",
                    "model": "small",
                    "form": "r1-zero",
                    "template": "r1-zero@0123",
                    "completion": completion,
                    "finish_reason": finish,
                    "error": None,
                    "question": f"What is {p} + 4 + 3?",
                    "target_language": None,
                    "difficulty": p / max(problems - 1, 1),
                    "verdict": verdict,
                    "judge_verdict": None,
                }
            )
    text = {"error": pl.String, "target_language": pl.String, "judge_verdict": pl.String}
    return pl.DataFrame(rows, schema_overrides=text)


@pytest.fixture
def con() -> Iterator[duckdb.DuckDBPyConnection]:
    from curate.prompts.forms import answer_expr, reasoning_expr

    frame = traces().with_columns(
        reasoning=reasoning_expr(pl.col("completion"), pl.col("form")),
        answer=answer_expr(pl.col("completion"), pl.col("form")),
    )
    with duckdb.connect() as connection:
        connection.register("annotated", with_macros(annotate_frame(frame)).to_arrow())
        yield connection
