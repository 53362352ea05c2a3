"""Worked examples shown before the question: of solved problems, of stored traces, or of a file."""

from __future__ import annotations

import json
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import polars as pl

from curate.errors import UsageError
from curate.generate.config import ExamplesConfig
from curate.job import Context
from curate.problems.store import ProblemStore
from curate.prompts.forms import Form
from curate.prompts.render import Example, worked_completion
from curate.records import Problem


def load_examples(
    config: ExamplesConfig, form: Form, context: Context, problems: ProblemStore
) -> tuple[Example, ...]:
    """The examples, in the output form of the job. UsageError if there are too few."""
    if config.file is not None:
        examples = _of_file(config.file, form)
    elif config.traces is not None:
        examples = _of_traces(config, form, context)
    else:
        examples = _of_solutions(config, form, problems)
    if len(examples) < config.count:
        raise UsageError(f"examples.count is {config.count}, and there are {len(examples)}")
    return tuple(examples[: config.count])


def _of_solutions(config: ExamplesConfig, form: Form, problems: ProblemStore) -> list[Example]:
    assert config.problems is not None  # the config checks it
    shown = (
        problems.load(config.problems)
        .frame.filter(
            pl.col("solution").is_not_null(),
            pl.col("reference").is_not_null(),
            pl.col("split") == "train",
        )
        .sort("problem_id")
        .head(config.count)
    )
    return [
        Example(row["question"], worked_completion(Problem(**row), form))
        for row in shown.iter_rows(named=True)
    ]


def _of_traces(config: ExamplesConfig, form: Form, context: Context) -> list[Example]:
    """The best traces by quality, one per training problem, that are correct and well-formed."""
    rows = context.warehouse.sql(
        "SELECT question, any_value(reasoning ORDER BY quality DESC, trace_id) AS reasoning, "
        "any_value(answer ORDER BY quality DESC, trace_id) AS answer, max(quality) AS best "
        "FROM annotated WHERE list_contains(?, dataset) AND verdict = 'correct' AND well_formed "
        "AND split = 'train' AND reasoning IS NOT NULL "
        "GROUP BY question ORDER BY best DESC, question LIMIT ?",
        [config.traces, config.count],
    )
    return [
        Example(row["question"], form.compose(row["reasoning"], row["answer"]))
        for row in rows.to_dicts()
    ]


def find_file(name: str) -> Path | Traversable:
    """Find a file of worked examples, by path or shipped name. UsageError if none exists."""
    folder = files("curate.generate") / "examples"
    shipped = folder / f"{name}.jsonl"
    if Path(name).is_file():
        return Path(name)
    if shipped.is_file():
        return shipped
    names = sorted(file.name.removesuffix(".jsonl") for file in folder.iterdir())
    raise UsageError(
        f"examples.file: no file '{name}'; give JSON Lines, or one that ships: {', '.join(names)}"
    )


def _of_file(name: str, form: Form) -> list[Example]:
    """Examples from JSON Lines, with `question` and `completion`, or with `question`, `reasoning`
    and `summary` (or `answer`).
    """
    text = find_file(name).read_text("utf-8")
    return [
        _example(line, f"{name}:{number}", form)
        for number, line in enumerate(text.splitlines(), 1)
        if line.strip()
    ]


def _example(line: str, where: str, form: Form) -> Example:
    try:
        row: dict[str, Any] = json.loads(line)
        if row.get("completion"):
            return Example(str(row["question"]), str(row["completion"]))
        answer = (
            row["answer"]
            if form.name == "r1-zero" and "answer" in row
            else row.get("summary") or row["answer"]
        )
        return Example(
            str(row["question"]), form.compose(str(row["reasoning"]).strip(), str(answer).strip())
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            f"{where}: a worked example is a JSON object with `question` and `completion`, or with "
            "`question`, `reasoning` and `summary`"
        ) from error
