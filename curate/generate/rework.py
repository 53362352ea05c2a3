"""Rewriting traces for the cold start: readable R1-Zero output to a readable CoT with a summary (report, 2.3.1).

The report refined its R1-Zero samples by hand. Here a model rewrites them: the best correct and readable trace of a
problem goes into a prompt, with the language of the question to write in; the rewrite is verified like any trace and
asked again where it lost the answer (`adaptive.keep: 1`). `parent_trace_id` says which trace a rewrite was made from.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from curate.errors import UsageError
from curate.generate.config import ReworkConfig
from curate.prompts.forms import Form

if TYPE_CHECKING:
    import polars as pl

    from curate.job import Context

LANGUAGES = {
    "en": "English", "zh": "Chinese", "ja": "Japanese", "ko": "Korean", "ru": "Russian", "ar": "Arabic", "de": "German",
    "fr": "French", "es": "Spanish", "pt": "Portuguese", "it": "Italian", "nl": "Dutch", "sv": "Swedish",
    "tr": "Turkish", "vi": "Vietnamese", "hi": "Hindi",
}  # fmt: skip


def parents(
    config: ReworkConfig, context: Context, split: str | None, where: str | None
) -> pl.DataFrame:
    """The traces to rewrite: unit (trace_id), notes, answer, language, and the columns of their problems.

    Raises UsageError where the traces are not there or not annotated, or where none passes.
    """
    import polars as pl

    from curate.filter.rules import check_expression
    from curate.generate.background import predicate

    known = context.warehouse.sql(
        "SELECT count(*) AS n, count(verdict) AS judged FROM annotated WHERE list_contains(?, dataset)",
        [config.traces],
    ).row(0, named=True)
    names = ", ".join(config.traces)
    if not known["n"]:
        raise UsageError(
            f"rework.traces: there are no traces called {names}; see `select distinct dataset from traces`"
        )
    if not known["judged"]:
        raise UsageError(
            f"rework: the traces {names} have no verdicts yet: run `curate annotate` first"
        )
    for key, condition in (("rework.where", config.where), ("where", where)):
        if condition:
            check_expression(condition, key)
    conditions = ["list_contains(?, dataset)", predicate(config.rules), "completion IS NOT NULL"]
    conditions += [f"({config.where}\n)"] if config.where else []
    conditions += [f"({where}\n)"] if where else []
    found = context.warehouse.sql(
        "SELECT trace_id AS unit, problem_id, coalesce(reasoning, completion) AS notes, "
        "coalesce(extracted, answer) AS answer, coalesce(target_language, question_language) AS language "
        f"FROM annotated WHERE {' AND '.join(conditions)} QUALIFY row_number() OVER "
        "(PARTITION BY problem_id ORDER BY quality DESC, trace_id) <= ? ORDER BY problem_id, quality DESC, trace_id",
        [config.traces, config.per_problem],
    )
    problems = context.warehouse.sql("SELECT * FROM problems")
    if split:
        problems = problems.filter(pl.col("split") == split)
    found = found.join(problems, on="problem_id", how="inner", maintain_order="left")
    if found.is_empty():
        raise UsageError(
            f"rework: none of the {known['n']} traces of {names} passes the rules '{config.rules}'"
            + (f" and {config.where}" if config.where else "")
            + f"; `curate filter {config.rules or 'unfiltered'} traces=[{names}]` tells why"
        )
    return found


def fetch(context: Context, trace_id: str) -> dict[str, Any]:
    """One trace to rewrite that another job chose, in the columns of `parents`."""
    import polars as pl

    found = context.warehouse.sql(
        "SELECT trace_id AS unit, problem_id, coalesce(reasoning, completion) AS notes, "
        "coalesce(extracted, answer) AS answer, coalesce(target_language, question_language) AS language "
        "FROM annotated WHERE trace_id = ?",
        [trace_id],
    )
    problem = context.warehouse.sql(
        "SELECT * FROM problems WHERE problem_id = ?", [found["problem_id"][0]]
    )
    return pl.concat([found, problem.drop("problem_id")], how="horizontal").row(0, named=True)


def prompt(row: Mapping[str, Any], form: Form) -> str:
    """What the model is asked for one trace (a row of `parents`)."""
    language = str(row["language"] or "en")
    values = {
        "question": str(row["question"]).strip(),
        "reasoning": str(row["notes"]).strip(),
        "answer": str(row["answer"] or row["reference"]).strip(),
        "language": LANGUAGES.get(language, f"the language '{language}'"),
        "open": form.open,
        "close": form.close,
    }
    # in one pass: what is put in may hold braces itself
    return re.sub(r"\{(\w+)\}", lambda found: values.get(found[1], found[0]), _text(language))


def label() -> str:
    """Hash of the texts that ask for a rewrite."""
    texts = [_text(language) for language in ("en", "zh")]
    return "rework@" + hashlib.blake2b("\x1f".join(texts).encode(), digest_size=6).hexdigest()


@cache
def _text(language: str) -> str:
    folder = files("curate.generate") / "templates"
    own = folder / f"rework-{language}.txt"
    return (own if own.is_file() else folder / "rework.txt").read_text("utf-8").rstrip("\n")
