"""What foreign trace sets look like, and how each becomes one row a trace in our words.

A layout is recognised by its columns:

    openr1        problem, answer, generations: a list of traces, with finish_reasons (OpenR1-Math and its kin)
    openthoughts  problem, deepseek_reasoning, deepseek_solution (the metadata of OpenThoughts)
    sharegpt      conversations or messages: a list of turns (`from` and `value`, or `role` and `content`)
    pairs         one column with the question and one with the completion, or with reasoning and answer apart

Traces come out in our form `r1` (`<think>…</think>` and a summary): thoughts between other delimiters, or in a column
of their own, are put between ours, and a completion whose opening delimiter stood in its prompt gets it back.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import polars as pl

from curate.errors import UsageError
from curate.prompts.forms import CLOSE, OPEN

Layout = Literal["openr1", "openthoughts", "sharegpt", "pairs"]

# Our field to the names that it goes by, the likeliest first.
NAMES: dict[str, tuple[str, ...]] = {
    "question": ("question", "problem", "prompt", "instruction", "query", "input"),
    "completion": ("completion", "response", "output", "generation", "trace", "generated_text"),
    "completions": ("generations", "completions", "responses"),
    "turns": ("conversations", "conversation", "messages"),
    "reasoning": (
        *(
            "reasoning",
            "deepseek_reasoning",
            "thinking",
            "reasoning_content",
            "deepseek_thinking_trajectory",
        ),
        *("thinking_trajectory", "thinking_trajectories", "cot", "thought"),
    ),
    "summary": ("summary", "deepseek_solution", "deepseek_attempt", "attempt", "final_response"),
    "reference": ("reference", "ground_truth", "gold", "expected_answer", "final_answer", "answer"),
    "solution": ("solution", "ground_truth_solution", "worked_solution"),
    "finish_reason": ("finish_reason", "finish_reasons"),
    "complete": ("is_reasoning_complete",),
    "completion_tokens": ("completion_tokens", "generated_token_count", "num_tokens"),
    "model": ("model", "generator", "model_name", "teacher"),
    "source": ("source", "dataset", "data_source"),
    "domain": ("domain", "subject", "problem_type", "category"),
    "difficulty": ("difficulty",),
    "verifier": ("verifier",),
    "target_language": ("target_language", "language", "lang"),
}
ASKING, ANSWERING = ("human", "user", "prompter"), ("gpt", "assistant", "model", "bot", "chatgpt")
TEXTS = (
    "question",
    "reference",
    "solution",
    "model",
    "source",
    "domain",
    "verifier",
    "target_language",
)
_BOXED = r"\\boxed\s*\{((?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*)\}"


def mapping(columns: list[str], given: Mapping[str, str], where: str) -> dict[str, str]:
    """Our field to their column: as given, else by name. UsageError for what is not there."""
    for ours, theirs in given.items():
        if ours not in NAMES:
            raise UsageError(f"columns.{ours}: no such field; there are {', '.join(NAMES)}")
        if theirs not in columns:
            raise UsageError(
                f"columns.{ours}: {where} has no column '{theirs}'; it has {', '.join(columns)}"
            )
    taken = set(given.values())
    found = dict(given)
    for field, names in NAMES.items():
        if field not in found:
            name = next((n for n in names if n in columns and n not in taken), None)
            if name is not None:
                found[field] = name
                taken.add(name)
    return found


def layout_of(
    found: Mapping[str, str], given: Mapping[str, str], columns: list[str], where: str
) -> Layout:
    """Which layout the columns mean; UsageError where they mean none."""
    if "completion" not in given and "reasoning" not in given:
        if "completions" in found and "question" in found:
            return "openr1"
        if "deepseek_reasoning" in columns and "question" in found:
            return "openthoughts"
        if "turns" in found:
            return "sharegpt"
    if "question" in found and ("completion" in found or "reasoning" in found):
        return "pairs"
    missing = "the question" if "question" not in found else "the trace"
    raise UsageError(
        f"{where}: no column is known to hold {missing}; there are {', '.join(columns)}. Say which is which, for "
        "example columns.question=problem columns.completion=text"
    )


def traces_of(table: pl.DataFrame, layout: Layout, found: Mapping[str, str]) -> pl.DataFrame:
    """One row a trace: question, completion, finish_reason, completion_tokens, and what is known of the problem.

    Rows without a question or a completion stay, with null in its place.
    """
    many = layout == "openr1"
    texts = [_text(table, found[field]).alias(field) for field in TEXTS if field in found]
    if layout == "sharegpt":
        texts = [t for t in texts if t.meta.output_name() != "question"]
        texts += [
            _turn(table, found["turns"], ASKING, "question"),
            _turn(table, found["turns"], ANSWERING, "completion"),
        ]
    elif many:
        texts.append(pl.col(found["completions"]).cast(pl.List(pl.String)).alias("completion"))
    elif layout == "pairs" and "completion" in found:
        texts.append(_text(table, found["completion"]).alias("completion"))
    else:
        texts.append(_joined(table, found).alias("completion"))
    lists = {"finish_reason": pl.List(pl.String), "complete": pl.List(pl.Boolean)}
    for field, kind in lists.items():
        if field in found:
            texts.append(
                pl.col(found[field]).cast(kind if many else kind.inner, strict=False).alias(field)
            )
    if "completion_tokens" in found and not many:
        texts.append(
            pl.col(found["completion_tokens"])
            .cast(pl.Int32, strict=False)
            .alias("completion_tokens")
        )
    if "difficulty" in found and table.schema[found["difficulty"]].is_numeric():
        texts.append(pl.col(found["difficulty"]).cast(pl.Float64).alias("difficulty"))
    frame = table.select(texts)
    if many:
        frame = _exploded(frame)
    return _finished(_references(frame))


def _text(table: pl.DataFrame, name: str) -> pl.Expr:
    """A column as text. A list of texts (of a trajectory) gives its first."""
    kind = table.schema[name]
    if kind == pl.String:
        return pl.col(name)
    if isinstance(kind, pl.List):
        return pl.col(name).list.first().cast(pl.String)
    return pl.col(name).cast(pl.String, strict=False)


def _turn(table: pl.DataFrame, name: str, roles: tuple[str, ...], field: str) -> pl.Expr:
    """The first turn of these roles."""
    kind = table.schema[name]
    inner = kind.inner if isinstance(kind, pl.List) else None
    names = [f.name for f in inner.fields] if isinstance(inner, pl.Struct) else []
    role, text = ("from", "value") if "from" in names else ("role", "content")
    if role not in names or text not in names:
        raise UsageError(
            f"the column '{name}' is no list of turns with `from` and `value`, or `role` and `content`"
        )
    turn = pl.element()
    said = turn.struct.field(role).str.to_lowercase().is_in(roles)
    return pl.col(name).list.eval(turn.filter(said).struct.field(text)).list.first().alias(field)


def _joined(table: pl.DataFrame, found: Mapping[str, str]) -> pl.Expr:
    """Reasoning and answer of two columns as one completion."""
    reasoning = _text(table, found["reasoning"]).str.strip_chars()
    answer = next((found[field] for field in ("summary", "reference") if field in found), None)
    summary = _text(table, answer).fill_null("").str.strip_chars() if answer else pl.lit("")
    return pl.concat_str(pl.lit(f"{OPEN}\n"), reasoning, pl.lit(f"\n{CLOSE}\n\n"), summary)


def _exploded(frame: pl.DataFrame) -> pl.DataFrame:
    """One row an element of the lists; lists of another length than the traces tell nothing."""
    count = pl.col("completion").list.len()
    lists = [name for name in ("finish_reason", "complete") if name in frame.columns]
    frame = frame.with_columns(
        pl.when(pl.col(name).list.len() == count)
        .then(pl.col(name))
        .otherwise(pl.lit(None).repeat_by(count))
        .alias(name)
        for name in lists
    )
    return frame.explode("completion", *lists)


def _references(frame: pl.DataFrame) -> pl.DataFrame:
    """A worked solution that ends in a box gives the reference, where there is none."""
    if "solution" not in frame.columns:
        return frame
    boxed = pl.col("solution").str.extract_all(_BOXED).list.last().str.extract(_BOXED, 1)
    own = [pl.col("reference")] if "reference" in frame.columns else []
    return frame.with_columns(pl.coalesce(*own, boxed).alias("reference"))


def _finished(frame: pl.DataFrame) -> pl.DataFrame:
    """Our delimiters, the form that the text has, and how it ended."""
    text = pl.col("completion").str.strip_chars()
    for theirs, ours in (
        ("<|begin_of_thought|>", OPEN),
        ("<|end_of_thought|>", CLOSE),
        ("<|begin_of_solution|>", ""),
        ("<|end_of_solution|>", ""),
    ):
        text = text.str.replace_all(theirs, ours, literal=True)
    text = text.str.strip_chars()
    opened, closed = text.str.contains(OPEN, literal=True), text.str.contains(CLOSE, literal=True)
    text = pl.when(closed & ~opened).then(pl.concat_str(pl.lit(f"{OPEN}\n"), text)).otherwise(text)
    frame = frame.with_columns(completion=pl.when(text != "").then(text))
    answered = pl.col("completion").str.contains("<answer>", literal=True)
    opened, closed = (
        pl.col("completion").str.contains(mark, literal=True) for mark in (OPEN, CLOSE)
    )
    form = (
        pl.when(opened & answered)
        .then(pl.lit("r1-zero"))
        .when(opened)
        .then(pl.lit("r1"))
        .otherwise(pl.lit("plain"))
    )
    cut = opened & ~closed
    if "complete" in frame.columns:
        cut |= ~pl.col("complete").fill_null(True)
    said = (
        pl.col("finish_reason")
        if "finish_reason" in frame.columns
        else pl.lit(None, dtype=pl.String)
    )
    reason = (
        pl.when(said.is_in(["stop", "length"]))
        .then(said)
        .when(cut)
        .then(pl.lit("length"))
        .otherwise(pl.lit("stop"))
    )
    return frame.with_columns(form=form, finish_reason=reason).drop("complete", strict=False)
