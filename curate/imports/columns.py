"""Find the column of a foreign table that holds a field: by its name, or by the user's mapping."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from curate.errors import UsageError
from curate.files import column_expr, column_names

# our field: names of the columns that hold it elsewhere, likeliest first
NAMES: dict[str, tuple[str, ...]] = {
    "question": (
        *("question", "problem", "prompt", "instruction", "query", "task", "quiz", "input"),
        *("user_prompt", "doc.question", "doc.problem"),
    ),
    "completion": (
        *("completion", "completions", "generations", "responses", "response", "generation"),
        *("generated_text", "model_output", "model_response", "trace", "output", "outputs", "code"),
        *("generated_solution", "generated_solutions", "model_solution", "assistant_response"),
        *("llm_response", "raw_output", "raw_response", "full_response", "reply"),
        *("resps", "samples", "candidates"),
    ),
    "chosen": ("chosen",),
    "rejected": ("rejected",),
    "turns": ("messages", "conversations", "conversation", "dialog", "dialogue", "contents"),
    "history": ("history",),
    "system": ("system", "system_prompt"),
    "tools": ("tools", "functions"),
    "reasoning": (
        *("reasoning", "deepseek_reasoning", "thinking", "reasoning_content", "message_thinking"),
        *("deepseek_thinking_trajectory", "thinking_trajectory", "thinking_trajectories", "cot"),
        *("thought", "thoughts", "chain_of_thought"),
    ),
    "summary": (
        *("summary", "deepseek_solution", "deepseek_attempt", "attempt", "final_response"),
        *("message_content", "prediction", "predicted_answer", "model_answer"),
    ),
    "reference": (
        *("reference", "ground_truth", "gold", "expected_answer", "final_answer", "answer"),
        *("target", "gt", "gtruth_answer", "gold_answer", "correct_answer", "standard_answer"),
        *("actual_answer", "actual_answer_label", "label_answer", "reward_model.ground_truth"),
        *("gts", "ground_truth_answer", "reference_answer", "ref_answer", "doc.answer"),
    ),
    "solution": (
        *("solution", "ground_truth_solution", "worked_solution", "gt_cot", "analysis"),
        *("explanation", "rationale"),
    ),
    "finish_reason": ("finish_reason", "finish_reasons"),
    "complete": ("is_reasoning_complete",),
    "completion_tokens": ("completion_tokens", "generated_token_count", "num_tokens"),
    "model": ("model", "generator", "model_name", "teacher"),
    "source": ("source", "dataset", "data_source"),
    "domain": ("domain", "subject", "problem_type", "category", "ability"),
    "difficulty": ("difficulty",),
    "verifier": ("verifier", "extra_info.verifier"),
    "split": ("split", "extra_info.split"),
    "target_language": ("target_language", "language", "lang"),
}
# labels and scores by others: kept as `labels`, which rules can read
LABELS = (
    *("correct", "is_correct", "correctness", "correctness_math_verify", "correctness_llama"),
    *("label", "labels", "score", "scores", "rating", "reward", "rewards", "accuracy", "passed"),
    *("grade", "quality_score", "is_right", "acc"),
)
# columns that have a meaning only together
_TOGETHER = (
    {"question": "user", "completion": "assistant"},
    {"reasoning": "reasoning_content", "summary": "content"},
)
# fields of a struct that hold a whole completion, if each model has its own column
_INNER_TEXTS = ("solution", "completion", "response", "output", "text", "content", "generation")


def find_columns(schema: pl.Schema, given: Mapping[str, str], where: str) -> dict[str, str]:
    """Map our fields to columns: as `given`, else by name. `UsageError` for absent
    names.
    """
    for ours, theirs in given.items():
        if ours not in NAMES:
            raise UsageError(f"columns.{ours}: no such field; there are {', '.join(NAMES)}")
        if column_expr(schema, theirs) is None:
            raise UsageError(
                f"columns.{ours}: {where} has no column '{theirs}'; "
                f"it has {', '.join(column_names(schema))}"
            )
    taken = set(given.values())
    columns = dict(given)
    for field, names in NAMES.items():
        if field in columns:
            continue
        for name in names:
            if name not in taken and column_expr(schema, name) is not None:
                columns[field] = name
                taken.add(name)
                break
    for pair in _TOGETHER:
        free = not {"completion", "summary"} & set(columns)
        if free and all(columns.get(f, n) == n and n in schema for f, n in pair.items()):
            columns |= pair
    return columns


def find_labels(
    schema: pl.Schema, given: Mapping[str, str], taken: Sequence[str], where: str
) -> dict[str, str]:
    """Names of labels to their columns: as `given`, else the columns that usually hold labels."""
    for name, theirs in given.items():
        if column_expr(schema, theirs) is None:
            raise UsageError(
                f"labels.{name}: {where} has no column '{theirs}'; "
                f"it has {', '.join(column_names(schema))}"
            )
    usual = {
        name: name
        for name in LABELS
        if name in schema and name not in taken and name not in given.values()
    }
    return dict(given) | usual


def model_columns(schema: pl.Schema) -> dict[str, str]:
    """Struct columns of one type that each hold the completion of a model: column to its text
    field.
    """
    structs = {name: kind for name, kind in schema.items() if isinstance(kind, pl.Struct)}
    for kind in structs.values():
        same = [name for name, other in structs.items() if other == kind]
        fields = {field.name: field.dtype for field in kind.fields}
        text = next((name for name in _INNER_TEXTS if fields.get(name) == pl.String), None)
        if len(same) > 1 and text is not None:
            return dict.fromkeys(same, text)
    return {}


class Table:
    """One part of a foreign table: its columns as text, or as the original values of the file.

    JSON values that Polars converted to text, because their types differ, are parsed from their
    line (the column `json:NAME`, see `curate.files.Reading.exact`).
    """

    def __init__(self, frame: pl.DataFrame) -> None:
        self.frame = frame
        self.schema = pl.Schema(
            {n: t for n, t in frame.schema.items() if not n.startswith("json:")}
        )

    def is_text(self, name: str) -> bool:
        """Whether a column holds text or numbers, and nothing nested."""
        return self._exact(name) is None and not self._type(name).is_nested()

    def text(self, name: str) -> pl.Series:
        """A column of text or numbers as text; whole numbers without a decimal point."""
        column = column_expr(self.schema, name)
        assert column is not None, name
        value, kind = column
        if kind.is_float():
            whole = (value == value.round()) & (value.abs() < 1e15)
            value = (
                pl.when(whole)
                .then(value.cast(pl.Int64, strict=False).cast(pl.String))
                .otherwise(value.cast(pl.String))
            )
        elif kind != pl.String:
            value = value.cast(pl.String, strict=False)
        return self.frame.select(value.alias(name)).to_series()

    def values(self, name: str) -> list[Any]:
        """The values of a column as Python objects."""
        exact = self._exact(name)
        if exact is not None:
            column, path = exact
            return [
                _inside(None if text is None else json.loads(text), path)
                for text in self.frame.get_column(column)
            ]
        column_or_field = column_expr(self.schema, name)
        assert column_or_field is not None, name
        return self.frame.select(column_or_field[0].alias(name)).to_series().to_list()

    def _exact(self, name: str) -> tuple[str, list[str]] | None:
        parts = name.split(".")
        for count in range(len(parts), 0, -1):
            column = "json:" + ".".join(parts[:count])
            if column in self.frame.columns:
                return column, parts[count:]
        return None

    def _type(self, name: str) -> pl.DataType:
        column = column_expr(self.schema, name)
        assert column is not None, name
        return column[1]

    def mean_length(self, name: str) -> float:
        """Characters per value of a text column."""
        return float(self.text(name).str.len_chars().mean() or 0)  # type: ignore[arg-type]


def _inside(value: Any, path: Sequence[str]) -> Any:
    for name in path:
        if isinstance(value, str) and re.match(r"\s*[\[{]", value):
            try:
                value = json.loads(value)
            except (ValueError, RecursionError):
                return None
        if isinstance(value, list):
            return [_inside(item, path[path.index(name) :]) for item in value]
        value = value.get(name) if isinstance(value, Mapping) else None
    return value
