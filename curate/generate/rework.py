"""Rewrite readable R1-Zero traces into a CoT with a summary, for the cold start (report, 2.3.1).

The report refined its R1-Zero samples by hand. Here a model rewrites them: the best correct and
readable trace of a problem goes into a prompt, with the language of the question to write in. The
rewrite is verified like any trace and requested again if it lost the answer (`adaptive.keep: 1`).
`parent_trace_id` is the rewritten trace.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any

import polars as pl

from curate.errors import UsageError
from curate.filter.expressions import check_expression
from curate.generate.background import predicate
from curate.generate.config import ReworkConfig
from curate.job import Context
from curate.prompts.forms import Form

LANGUAGES = {
    "en": "English", "zh": "Chinese", "ja": "Japanese", "ko": "Korean", "ru": "Russian",
    "ar": "Arabic", "de": "German", "fr": "French", "es": "Spanish", "pt": "Portuguese",
    "it": "Italian", "nl": "Dutch", "sv": "Swedish", "tr": "Turkish", "vi": "Vietnamese",
    "hi": "Hindi",
}  # fmt: skip

# Columns of a trace that a rewrite needs.
UNIT = (
    "trace_id AS unit, problem_id, coalesce(reasoning, completion) AS notes, "
    "coalesce(extracted, answer) AS answer, "
    "coalesce(target_language, question_language) AS language"
)


def parents(
    config: ReworkConfig, context: Context, split: str | None, where: str | None
) -> pl.DataFrame:
    """The traces to rewrite: unit (trace_id), notes, answer, language, and the columns of their
    problems.

    Raises UsageError if the traces do not exist, are not annotated, or if none passes.
    """
    counts = context.warehouse.sql(
        "SELECT count(*) AS traces, count(verdict) AS verified FROM annotated "
        "WHERE list_contains(?, dataset)",
        [config.traces],
    ).row(0, named=True)
    names = ", ".join(config.traces)
    if not counts["traces"]:
        raise UsageError(
            f"rework.traces: there are no traces called {names}; "
            "see `select distinct dataset from traces`"
        )
    if not counts["verified"]:
        raise UsageError(
            f"rework: the traces {names} have no verdicts yet: run `curate annotate` first"
        )
    for key, condition in (("rework.where", config.where), ("where", where)):
        if condition:
            check_expression(condition, key)
    conditions = ["list_contains(?, dataset)", predicate(config.rules), "completion IS NOT NULL"]
    conditions += [f"({config.where}\n)"] if config.where else []
    conditions += [f"({where}\n)"] if where else []
    units = context.warehouse.sql(
        f"SELECT {UNIT} FROM annotated WHERE {' AND '.join(conditions)} QUALIFY row_number() OVER "
        "(PARTITION BY problem_id ORDER BY quality DESC, trace_id) <= ? "
        "ORDER BY problem_id, quality DESC, trace_id",
        [config.traces, config.per_problem],
    )
    problems = context.warehouse.sql("SELECT * FROM problems")
    if split:
        problems = problems.filter(pl.col("split") == split)
    units = units.join(problems, on="problem_id", how="inner", maintain_order="left")
    if units.is_empty():
        extra = f" and {config.where}" if config.where else ""
        raise UsageError(
            f"rework: none of the {counts['traces']} traces of {names} passes the rules "
            f"'{config.rules}'{extra}; `curate filter {config.rules or 'unfiltered'} "
            f"traces=[{names}]` shows why"
        )
    return units


def fetch(context: Context, trace_id: str) -> dict[str, Any]:
    """One trace to rewrite that another job chose, in the columns of `parents`."""
    unit = context.warehouse.sql(f"SELECT {UNIT} FROM annotated WHERE trace_id = ?", [trace_id])
    problem = context.warehouse.sql(
        "SELECT * FROM problems WHERE problem_id = ?", [unit["problem_id"][0]]
    )
    return pl.concat([unit, problem.drop("problem_id")], how="horizontal").row(0, named=True)


def prompt(row: Mapping[str, Any], form: Form) -> str:
    """The prompt that asks for a rewrite of one trace (a row of `parents`)."""
    language = str(row["language"] or "en")
    values = {
        "question": str(row["question"]).strip(),
        "reasoning": str(row["notes"]).strip(),
        "answer": str(row["answer"] or row["reference"]).strip(),
        "language": LANGUAGES.get(language, f"the language '{language}'"),
        "open": form.open,
        "close": form.close,
    }
    # In one pass, because the values may contain braces themselves.
    return re.sub(r"\{(\w+)\}", lambda match: values.get(match[1], match[0]), _text(language))


def label() -> str:
    """Name and hash of the prompts for rewriting."""
    texts = [_text(language) for language in ("en", "zh")]
    return "rework@" + hashlib.blake2b("\x1f".join(texts).encode(), digest_size=6).hexdigest()


@cache
def _text(language: str) -> str:
    folder = files("curate.generate") / "templates"
    own = folder / f"rework-{language}.txt"
    return (own if own.is_file() else folder / "rework.txt").read_text("utf-8").rstrip("\n")
