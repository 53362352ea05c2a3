"""From verdicts and signals to a number: a reward is a weighted sum of components, declared in a config.

    rewards: {accuracy: 1.0, format: 0.2, language: 0.1}
    rewards: {accuracy: 1.0, length: {weight: 0.5, options: {max_tokens: 8192, buffer: 1024}}}
    rewards: {accuracy: 1.0, "my_package.module:function": 0.5}
    rewards: {accuracy: 1.0, preference: {weight: 1.0, options: {model: Qwen/Qwen2.5-32B-Instruct}}}

With `preference` a model judges the open questions, those of problems without a verifier: there accuracy does not
count, and elsewhere preference does not (curate/verify/models/preference.py).

A component is a Polars expression over a frame of traces with their verdict and signals, so that the reward uses the
one definition of correct, well-formed and target language that filters and evaluation use. A user's own is a function
of the frame (and its options as keywords) that returns an expression or a series, one value a trace.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from curate.errors import UsageError
from curate.registry import resolve

if TYPE_CHECKING:
    import polars as pl

    from curate.verify.models.preference import JudgeEngines

BUILTIN = {
    "accuracy": "curate.rewards:accuracy",
    "format": "curate.rewards:well_formed",
    "language": "curate.rewards:language",
    "length": "curate.rewards:length",
    "repetition": "curate.rewards:repetition",
    "preference": "curate.verify.models.preference:preference",
}

# Signals that a component reads, by group (curate/signals); well-formedness comes from the form itself.
SIGNALS = {"language": "language", "repetition": "repetition"}


@dataclass(frozen=True)
class Component:
    """A term of the reward: `weight` times what `function` says."""

    name: str
    weight: float
    function: Callable[..., Any]
    options: Mapping[str, Any]


def accuracy(frame: pl.DataFrame) -> pl.Expr:
    """1 for a correct answer, 0 for a wrong one; null (and with it the whole reward) where it is unverifiable."""
    import polars as pl

    verdict = pl.col("verdict")
    return pl.when(verdict == "correct").then(1.0).when(verdict == "wrong").then(0.0)


def well_formed(frame: pl.DataFrame) -> pl.Expr:
    """1 where every tag stands once, in order, closed, around an answer that is not empty, and nothing outside; else 0.

    Two answers, an empty one or text after the last tag earn nothing. A trace cut off by the length limit earns nothing
    in any form: in a plain form whatever was written would otherwise count as an answer.
    """
    import polars as pl

    from curate.prompts.forms import well_formed_expr, with_opener_expr

    prompt = pl.col("prompt") if "prompt" in frame.columns else pl.lit("")
    text = with_opener_expr(pl.col("completion"), prompt, pl.col("form"))
    ended = pl.col("finish_reason") == "stop"
    return (well_formed_expr(text, pl.col("form")).fill_null(False) & ended.fill_null(False)).cast(
        pl.Float64
    )


def language(frame: pl.DataFrame, min_words: float = 0.0) -> pl.Expr:
    """Share of target-language words in the chain of thought (R1 report, section 2.3.2), between 0 and 1.

    Reasoning with fewer than `min_words` words of any language counts 0: where it is to be written in words, an empty
    chain of thought would otherwise be perfectly consistent. Reasoning that is not there at all counts 0 as well.
    """
    import polars as pl

    share = pl.col("target_language_share").fill_null(0.0)
    present = pl.col("reasoning").fill_null("").str.strip_chars() != ""
    enough = pl.col("words").fill_null(0.0) >= min_words if min_words else pl.lit(True)
    return pl.when(present & enough).then(share).otherwise(0.0)


def length(frame: pl.DataFrame, max_tokens: int = 0, buffer: int = 0) -> pl.Expr:
    """Soft overlong penalty (DAPO, arXiv 2503.14476, eq. 13): 0, then falling to -1 over the last `buffer` tokens.

    0 up to max_tokens - buffer; ((max_tokens - buffer) - n) / buffer up to max_tokens; -1 beyond, and for a trace that
    the length limit cut off.
    """
    import polars as pl

    if max_tokens < 1 or not 0 < buffer <= max_tokens:
        raise UsageError(
            "the reward 'length' needs options max_tokens and buffer, with 0 < buffer <= max_tokens"
        )
    n = pl.col("completion_tokens").cast(pl.Float64)
    slope = ((max_tokens - buffer) - n) / buffer
    cut = (pl.col("finish_reason") == "length").fill_null(False)
    return pl.when(cut).then(-1.0).otherwise(slope.clip(-1.0, 0.0))


def repetition(frame: pl.DataFrame, ngram: int = 5) -> pl.Expr:
    """Minus the share of characters in word n-grams that stood before: 0 for none, -1 for nothing else."""
    import polars as pl

    if not 5 <= ngram <= 10:
        raise UsageError(f"the reward 'repetition' knows n-grams of 5 to 10 words, not {ngram}")
    return -pl.col(f"duplicate_{ngram}_gram_share").fill_null(0.0)


def components(spec: Mapping[str, Any]) -> list[Component]:
    """The components that a config names: a number is a weight; else weight and options. Raises UsageError."""
    found = []
    for name, value in spec.items():
        if isinstance(value, int | float):
            weight, options = float(value), {}
        else:
            given = value if isinstance(value, Mapping) else value.model_dump()
            weight, options = float(given.get("weight", 1.0)), dict(given.get("options", {}))
        function = resolve("reward", name, BUILTIN)
        try:
            if "judges" in options:
                raise TypeError("'judges' is not an option")
            inspect.signature(function).bind(None, **options)
        except TypeError as error:
            raise UsageError(f"rewards: {name}: {error}") from error
        found.append(Component(name, weight, function, options))
    if not found:
        raise UsageError("rewards: name at least one component, such as accuracy: 1.0")
    return found


def score(
    frame: pl.DataFrame, spec: Mapping[str, Any], judges: JudgeEngines | None = None
) -> pl.DataFrame:
    """The columns `reward` and one `reward_<component>` (before weighting), one row a trace, in the frame's order.

    `frame` holds traces with `completion, reasoning, form, finish_reason, completion_tokens`, the columns `verdict`
    (where accuracy is asked for), `question` and `target_language`; for `preference` also `problem_id, verifier` and
    `answer`. Missing signals are measured here. `reward` is null where a component that counts is null or the request
    failed: such a trace gives no gradient.
    """
    import polars as pl

    from curate.signals import annotate_frame

    parts = components(spec)
    groups = {SIGNALS[p.name] for p in parts if p.name in SIGNALS}
    if any(p.name == "language" and p.options.get("min_words") for p in parts):
        groups.add("shape")
    rich = annotate_frame(frame, sorted(groups)) if groups else frame
    values = {}
    for part in parts:
        try:
            shared = (
                {"judges": judges}
                if "judges" in inspect.signature(part.function).parameters
                else {}
            )
            value = part.function(rich, **part.options, **shared)
            values[f"reward_{part.name}"] = rich.select(
                value.alias("v") if isinstance(value, pl.Expr) else value
            )
        except UsageError:
            raise
        except Exception as error:
            raise UsageError(
                f"the reward '{part.name}' failed: {type(error).__name__}: {error}"
            ) from error
    made = pl.DataFrame(
        {name: column.to_series().cast(pl.Float64) for name, column in values.items()}
    )
    if made.height != frame.height:
        raise UsageError(
            f"a reward must give one value a trace: {frame.height} traces, {made.height} values"
        )
    # A sum over columns skips nulls; added one by one they make the whole null.
    total = pl.lit(0.0)
    absent = does_not_count(frame, parts)
    for part in parts:
        value = pl.col(f"reward_{part.name}")
        if part.name in absent:
            value = pl.when(absent[part.name]).then(0.0).otherwise(value)
        total = total + part.weight * value
    failed = (frame["finish_reason"] == "error").fill_null(False)
    return made.with_columns(failed=failed).select(
        pl.when(~pl.col("failed")).then(total).alias("reward"), *[pl.col(name) for name in values]
    )


def does_not_count(frame: pl.DataFrame, parts: Sequence[Component]) -> dict[str, pl.Series]:
    """By component, the traces whose reward it is no part of: its null there does not make the whole null."""
    import polars as pl

    from curate.verify.models.preference import is_open

    if not any(part.name == "preference" for part in parts):
        return {}
    open_question = frame.select(is_open(pl.col("verifier"))).to_series()
    return {"accuracy": open_question, "preference": ~open_question}
