"""Rewards: weighted sums of components, computed from verdicts and signals and declared in a
config.

    rewards: {accuracy: 1.0, format: 0.2, language: 0.1}
    rewards: {accuracy: 1.0, length: {weight: 0.5, options: {max_tokens: 8192, buffer: 1024}}}
    rewards: {accuracy: 1.0, "my_package.module:function": 0.5}
    rewards: {accuracy: 1.0, preference: {weight: 1.0, options: {model: Qwen/Qwen2.5-32B-Instruct}}}

With `preference` a model judges open questions, which are problems without a verifier: accuracy
does not count there, and preference does not count elsewhere (curate/verify/models/preference.py).

A component is a Polars expression over a frame of traces with their verdict and signals, so that
rewards, filters and evaluation share one definition of correct, well-formed and target language.
Your own component is one of three kinds of function, recognised by the first parameter; options of
the config are further keywords:

    def short(frame):                        # an expression or a series: one value per trace
        return 1.0 - (pl.col("completion_tokens") / 1000).clip(0, 1)

    def exact(completion, reference):        # a number or None for one trace, from columns by name
        return float(completion.strip().endswith(reference))

    def exact(completions, reference, **kwargs):   # a list of them, from lists, as in TRL
        return [float(c.strip().endswith(r)) for c, r in zip(completions, reference)]
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from curate.errors import UsageError
from curate.prompts.forms import well_formed_expr, with_opener_expr
from curate.registry import resolve
from curate.signals import annotate_frame
from curate.verify.models.preference import JudgeEngines, is_open

BUILTIN = {
    "accuracy": "curate.rewards:accuracy",
    "format": "curate.rewards:well_formed",
    "language": "curate.rewards:language",
    "length": "curate.rewards:length",
    "repetition": "curate.rewards:repetition",
    "preference": "curate.verify.models.preference:preference",
}

# Group of signals (curate/signals) that each component reads. `format` reads the form instead.
SIGNALS = {"language": "language", "repetition": "repetition"}


@dataclass(frozen=True)
class Component:
    """A term of the reward: `weight` times the value of `function`."""

    name: str
    weight: float
    function: Callable[..., Any]
    options: Mapping[str, Any]


# Names that a function of texts may use for a column: those of the frame, and TRL's plurals.
PLURALS = {"completions": "completion", "prompts": "prompt"}


def takes_texts(function: Callable[..., Any]) -> bool:
    """Whether a component takes texts instead of a frame: its first parameter is called
    `completion` (one trace) or `completions` (lists).
    """
    names = list(inspect.signature(function).parameters)
    return bool(names) and names[0] in ("completion", "completions")


def of_texts(
    function: Callable[..., Any], frame: pl.DataFrame, options: Mapping[str, Any]
) -> pl.Series:
    """Return the values of a function of texts, one per trace: its parameters name columns of the
    frame. UsageError for a parameter that is neither a column nor an option.
    """
    parameters = inspect.signature(function).parameters
    lists = next(iter(parameters)) == "completions"
    any_column = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    columns = {}
    for name, parameter in parameters.items():
        column = PLURALS.get(name, name)
        if name in options or parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            continue
        if column in frame.columns:
            columns[name] = frame[column].to_list()
        elif parameter.default is parameter.empty:
            raise UsageError(
                f"no column '{column}' for its parameter '{name}'; there are "
                f"{', '.join(frame.columns)}"
            )
    if lists:
        rest = {n: frame[n].to_list() for n in frame.columns if n not in (*columns, *options)}
        values = list(function(**columns, **(rest if any_column else {}), **options))
    else:
        rows = zip(*columns.values(), strict=True)
        values = [function(**dict(zip(columns, row, strict=True)), **options) for row in rows]
    if len(values) != frame.height:
        raise UsageError(f"it gave {len(values)} values for {frame.height} traces")
    return pl.Series([None if v is None else float(v) for v in values], dtype=pl.Float64)


def accuracy(frame: pl.DataFrame) -> pl.Expr:
    """1 for a correct answer, 0 for a wrong one; null, and so is the whole reward, if it is
    unverifiable.
    """
    verdict = pl.col("verdict")
    return pl.when(verdict == "correct").then(1.0).when(verdict == "wrong").then(0.0)


def well_formed(frame: pl.DataFrame) -> pl.Expr:
    """1 if every tag occurs once, in order and closed, with an answer and nothing outside the
    tags; else 0.

    Two answers, an empty one or text after the last tag earn 0. So does a trace that the length
    limit cut off, in any form: in a plain form, the unfinished text would otherwise count as the
    answer.
    """
    prompt = pl.col("prompt") if "prompt" in frame.columns else pl.lit("")
    text = with_opener_expr(pl.col("completion"), prompt, pl.col("form"))
    ended = pl.col("finish_reason") == "stop"
    return (well_formed_expr(text, pl.col("form")).fill_null(False) & ended.fill_null(False)).cast(
        pl.Float64
    )


def language(frame: pl.DataFrame, min_words: float = 0.0) -> pl.Expr:
    """Share of target-language words in the chain of thought (R1 report, section 2.3.2), between 0
    and 1.

    Reasoning with fewer than `min_words` words of any language counts 0: otherwise an empty chain
    of thought would be perfectly consistent. Missing reasoning counts 0 as well.
    """
    share = pl.col("target_language_share").fill_null(0.0)
    present = pl.col("reasoning").fill_null("").str.strip_chars() != ""
    enough = pl.col("words").fill_null(0.0) >= min_words if min_words else pl.lit(True)
    return pl.when(present & enough).then(share).otherwise(0.0)


def length(frame: pl.DataFrame, max_tokens: int = 0, buffer: int = 0) -> pl.Expr:
    """Soft overlong penalty (DAPO, arXiv 2503.14476, eq. 13): 0, then falling to -1 over the last
    `buffer` tokens.

    0 up to max_tokens - buffer; ((max_tokens - buffer) - n) / buffer up to max_tokens; -1 beyond,
    and for a trace that the length limit cut off.
    """
    if max_tokens < 1 or not 0 < buffer <= max_tokens:
        raise UsageError(
            "the reward 'length' needs options max_tokens and buffer, with 0 < buffer <= max_tokens"
        )
    n = pl.col("completion_tokens").cast(pl.Float64)
    slope = ((max_tokens - buffer) - n) / buffer
    cut = (pl.col("finish_reason") == "length").fill_null(False)
    return pl.when(cut).then(-1.0).otherwise(slope.clip(-1.0, 0.0))


def repetition(frame: pl.DataFrame, ngram: int = 5) -> pl.Expr:
    """Minus the share of characters in repeated word n-grams: 0 for no repetition, -1 for nothing
    else.
    """
    if not 5 <= ngram <= 10:
        raise UsageError(f"the reward 'repetition' takes n-grams of 5 to 10 words, not {ngram}")
    return -pl.col(f"duplicate_{ngram}_gram_share").fill_null(0.0)


def reward_name(component: str | Callable[..., Any]) -> str:
    """Return the name of a component in a config, `module:name` for a function. UsageError if the
    function cannot be imported by that name.
    """
    if isinstance(component, str):
        return component
    module, name = component.__module__, component.__qualname__
    if getattr(sys.modules.get(module), name, None) is not component:
        raise UsageError(
            f"rewards: {name} of {module} is not at the top of a module: define it there, so that "
            "other processes and later runs find it"
        )
    return f"{module}:{name}"


def components(spec: Mapping[str, Any]) -> list[Component]:
    """Return the components of a config: a number is a weight, a mapping has weight and options.

    UsageError for an unknown component, or options that it does not take.
    """
    parts = []
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
            _check_options(function, options)
        except TypeError as error:
            raise UsageError(f"rewards: {name}: {error}") from error
        parts.append(Component(name, weight, function, options))
    if not parts:
        raise UsageError("rewards: name at least one component, such as accuracy: 1.0")
    return parts


def _check_options(function: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """Raise TypeError for unknown or missing options of a component."""
    signature = inspect.signature(function)
    if not takes_texts(function):
        signature.bind(None, **options)
        return
    kinds = [p.kind for p in signature.parameters.values()]
    unknown = [name for name in options if name not in signature.parameters]
    if unknown and inspect.Parameter.VAR_KEYWORD not in kinds:
        raise TypeError(f"got an unexpected keyword argument '{unknown[0]}'")


def score(
    frame: pl.DataFrame, spec: Mapping[str, Any], judges: JudgeEngines | None = None
) -> pl.DataFrame:
    """Return the column `reward` and one unweighted `reward_<component>` each; one row per trace,
    in the frame's order.

    `frame` has the columns `completion, reasoning, form, finish_reason, completion_tokens,
    question, target_language`, `verdict` for accuracy, and `problem_id, verifier, answer` for
    `preference`. Missing signals are measured here. `reward` is null if a component that counts is
    null or the request failed: such a trace gives no gradient. `judges` holds the engines of judges
    that are already open.
    """
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
            value: pl.Expr | pl.Series
            if takes_texts(part.function):
                value = of_texts(part.function, rich, part.options)
            else:
                value = part.function(rich, **part.options, **shared)
            values[f"reward_{part.name}"] = rich.select(
                value.alias("v") if isinstance(value, pl.Expr) else value
            )
        except UsageError as error:
            if part.name in BUILTIN:
                raise
            raise UsageError(f"the reward '{part.name}': {error}") from error
        except Exception as error:
            raise UsageError(
                f"the reward '{part.name}' failed: {type(error).__name__}: {error}"
            ) from error
    scores = pl.DataFrame(
        {name: column.to_series().cast(pl.Float64) for name, column in values.items()}
    )
    if scores.height != frame.height:
        raise UsageError(
            f"a reward must give one value per trace: {frame.height} traces, {scores.height} values"
        )
    # `+` makes the reward null if a term is null; sum_horizontal would skip it.
    total = pl.lit(0.0)
    absent = does_not_count(frame, parts)
    for part in parts:
        value = pl.col(f"reward_{part.name}")
        if part.name in absent:
            value = pl.when(absent[part.name]).then(0.0).otherwise(value)
        total = total + part.weight * value
    failed = (frame["finish_reason"] == "error").fill_null(False)
    return scores.with_columns(failed=failed).select(
        pl.when(~pl.col("failed")).then(total).alias("reward"), *[pl.col(name) for name in values]
    )


def does_not_count(frame: pl.DataFrame, parts: Sequence[Component]) -> dict[str, pl.Series]:
    """Return per component the traces it does not apply to; nulls there do not void the reward."""
    if not any(part.name == "preference" for part in parts):
        return {}
    open_question = frame.select(is_open(pl.col("verifier"))).to_series()
    return {"accuracy": open_question, "preference": ~open_question}
