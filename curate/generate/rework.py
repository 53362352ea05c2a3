"""Rewrite readable R1-Zero traces into a CoT with a summary, for the cold start (report, 2.3.1).

The report refined its R1-Zero samples by hand. Here a model rewrites them: the best correct and
readable trace of a problem goes into a prompt, with the language of the question to write in. The
rewrite is verified like any trace and requested again if it lost the answer (`adaptive.keep: 1`).
`parent_trace_id` is the rewritten trace.
"""

from __future__ import annotations

import hashlib
import re
from functools import cache
from importlib.resources import files

import polars as pl

from curate.errors import UsageError
from curate.filter.expressions import check_expression
from curate.generate.background import predicate
from curate.generate.config import GenerateConfig, ReworkConfig
from curate.generate.units import Row, Units
from curate.job import Context
from curate.prompts.forms import Form
from curate.prompts.render import Chat, Template

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


class Rewrites(Units):
    """Traces to rewrite: each is the unit of its rewrites."""

    NOUN = "traces to rewrite, of"

    def label(self, chat: bool) -> str:
        return f"{super().label(chat)}+{_label()}"

    def fetch(self, unit: str) -> Row:
        traces = self.context.warehouse.sql(
            f"SELECT {UNIT} FROM annotated WHERE trace_id = ?", [unit]
        )
        problem = self.context.warehouse.sql(
            "SELECT * FROM problems WHERE problem_id = ?", [traces["problem_id"][0]]
        )
        both = pl.concat([traces, problem.drop("problem_id")], how="horizontal")
        return {"simple": False, **both.row(0, named=True)}

    def parent_trace(self, unit: str) -> str:
        return unit

    def template_label(self, row: Row) -> str:
        return f"{self.template.label()}+{_label()}"

    def prompt(self, row: Row, chat: Chat | None) -> str:
        text = _prompt(row, self.template.form)
        return chat([{"role": "user", "content": text}]) if chat else text


def select(config: GenerateConfig, context: Context, template: Template) -> Rewrites:
    """Select the traces to rewrite: the best of each problem that pass the rules.

    Raises UsageError if the traces do not exist, are not annotated, or if none passes.
    """
    rework = config.rework
    assert rework is not None  # the config checks it
    frame = _traces(rework, context, config.split, config.where)
    frame = frame.head(config.limit) if config.limit else frame
    versions = [v.ref for name in rework.traces for v in context.warehouse.versions("traces", name)]
    return Rewrites(
        frame.with_columns(simple=pl.lit(False)),
        f"traces/{'+'.join(rework.traces)}",
        versions,
        context,
        template,
    )


def _traces(
    config: ReworkConfig, context: Context, split: str | None, where: str | None
) -> pl.DataFrame:
    """Return the columns UNIT of each trace to rewrite, and those of its problem."""
    total = _count_traces(config, context)
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
        names = ", ".join(config.traces)
        extra = f" and {config.where}" if config.where else ""
        raise UsageError(
            f"rework: none of the {total} traces of {names} passes the rules "
            f"'{config.rules}'{extra}; `curate filter {config.rules or 'unfiltered'} "
            f"traces=[{names}]` shows why"
        )
    return units


def _count_traces(config: ReworkConfig, context: Context) -> int:
    """Count the traces to choose from. UsageError without traces, or without annotated ones."""
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
    return int(counts["traces"])


def _prompt(row: Row, form: Form) -> str:
    """Ask for a rewrite of one trace in the language of its question."""
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


def _label() -> str:
    """Name and hash of the prompts for rewriting."""
    texts = [_text(language) for language in ("en", "zh")]
    return "rework@" + hashlib.blake2b("\x1f".join(texts).encode(), digest_size=6).hexdigest()


@cache
def _text(language: str) -> str:
    folder = files("curate.generate") / "templates"
    own = folder / f"rework-{language}.txt"
    return (own if own.is_file() else folder / "rework.txt").read_text("utf-8").rstrip("\n")
