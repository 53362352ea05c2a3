"""Turn judged samples into rows of `schemas/evaluations.sql` and into readable tables.

How samples and problems count:
- A sample without a verdict (its request failed) is left out.
- `unverifiable` is not correct. A problem is left out of pass@1, pass@k and cons@k only if no
  sample of any model could be judged; the metric `unverifiable` counts such problems.
- A difference covers the problems that both models answered.
- A model trained with several seeds has one `run` per seed. Its level is their mean, and intervals
  cover seeds and problems.
- `per answer` is pass@1 divided by the share of samples with an answer. It does not change if a
  model only learns to answer in the right form.
- `voting` is cons@k - pass@1 of the same model: the gain from a majority vote.
- `greedy` is the accuracy at temperature 0, without the noise of sampling.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from io import StringIO
from typing import Any

import numpy as np
import polars as pl
from rich import box
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from curate.errors import CurateError
from curate.evaluate.stats import (
    RESAMPLES,
    Estimate,
    Level,
    compare_levels,
    cons_at_k,
    pass_at_1,
    pass_at_k,
)
from curate.progress import counted
from curate.visible import one_line

KEYS = ["model", "run", "problem_id"]  # key of one row of estimates
NEEDED = ("model", "problem_id", "sample_index", "verdict")
OPTIONAL: dict[str, pl.DataType] = {
    "run": pl.Int64(),
    "cluster": pl.Int64(),
    "answered": pl.Boolean(),
    "well_formed": pl.Boolean(),
    "target_language_share": pl.Float64(),
    "completion_tokens": pl.Float64(),
    "truncated": pl.Boolean(),
    "source": pl.String(),
    "difficulty": pl.Float64(),
    "model_hash": pl.String(),
}
SCHEMA: dict[str, pl.DataType | type[pl.DataType]] = {
    "evaluation_id": pl.String,
    "model": pl.String,
    "model_hash": pl.String,
    "baseline": pl.String,
    "problems": pl.String,
    "slice": pl.String,
    "metric": pl.String,
    "k": pl.Int32,
    "seeds": pl.Int32,
    "value": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "problem_count": pl.Int32,
    "temperature": pl.Float64,
    "top_p": pl.Float64,
    "created_at": pl.Datetime("us", "UTC"),
}
ALL = "all"
Row = dict[str, str | int | float | None]


def evaluation_rows(
    samples: pl.DataFrame,
    compare: Iterable[tuple[str, str]] = (),
    k: int | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
    greedy: pl.DataFrame | None = None,
) -> pl.DataFrame:
    """Levels of each model and paired differences of each (model, baseline), overall and per slice.

    `samples` has one row per sample: model, problem_id, sample_index, verdict, and if available run
    (number of the training seed), cluster (equivalence class of the answer within its problem; null
    without an answer), answered, well_formed, target_language_share, completion_tokens, truncated,
    source, difficulty, model_hash. `greedy` has the same columns, of one sample at temperature 0.
    `k` is the number of samples per problem, by default the largest that occurs. Slices are sources
    and fifths of difficulty, if there are several. Columns that name the evaluation (id, problems,
    sampling, time) are null, for the caller to fill.
    """
    samples = _checked(samples)
    sizes = samples.group_by("model", "problem_id").len()["len"]
    k = k or int(sizes.max() or 1)  # type: ignore[arg-type]
    problems = _per_problem(samples, k)
    if greedy is not None:
        problems = problems.join(
            _per_problem(_checked(greedy), 1).select(*KEYS, pl.col("pass@1").alias("greedy")),
            on=KEYS,
            how="left",
            maintain_order="left",
        )
    models = samples["model"].unique(maintain_order=True).to_list()
    pairs = list(compare)
    if unknown := sorted({name for pair in pairs for name in pair} - set(models)):
        raise CurateError(
            f"cannot compare '{unknown[0]}': it has no samples. There are {', '.join(models)}"
        )
    hashes = dict(
        samples.group_by("model").agg(pl.col("model_hash").drop_nulls().first()).iter_rows()
    )
    rows: list[Row] = []
    for name, part in _slices(problems):
        rows += _slice_rows(name, part, models, pairs, k, resamples, seed)
    frame = pl.DataFrame(rows, schema={n: SCHEMA[n] for n in _ROW})
    frame = frame.with_columns(
        pl.col("model")
        .replace_strict(hashes, default=None, return_dtype=pl.String)
        .alias("model_hash")
    )
    return frame.select(
        (pl.col(n) if n in frame.columns else pl.lit(None, dtype=t).alias(n))
        for n, t in SCHEMA.items()
    )


_ROW = (
    "model",
    "baseline",
    "slice",
    "metric",
    "k",
    "seeds",
    "value",
    "low",
    "high",
    "problem_count",
)


def _checked(samples: pl.DataFrame) -> pl.DataFrame:
    if missing := [name for name in NEEDED if name not in samples.columns]:
        raise ValueError(f"samples lack the columns {', '.join(missing)}")
    samples = samples.with_columns(
        (pl.col(name).cast(dtype) if name in samples.columns else pl.lit(None, dtype=dtype)).alias(
            name
        )
        for name, dtype in OPTIONAL.items()
    ).filter(pl.col("verdict").is_not_null())
    samples = samples.with_columns(pl.col("run").fill_null(0))
    if samples.is_empty():
        raise CurateError(
            "nothing to evaluate: no sample has a verdict. Did every request fail, or was nothing "
            "judged?"
        )
    if samples.select(pl.struct(*KEYS, "sample_index").is_duplicated().any()).item():
        raise ValueError(
            "a sample occurs twice (same model, problem and sample_index): give one attempt of each"
        )
    return samples


def _per_problem(samples: pl.DataFrame, k: int) -> pl.DataFrame:
    """One row per model, run and problem, one column per metric; NaN for a missing value."""
    right = pl.col("verdict") == "correct"
    judged = (pl.col("verdict") != "unverifiable").any().over("problem_id")
    samples = samples.with_columns(
        right=right, judged=judged, group=pl.struct(*KEYS).rank("dense") - 1
    )
    table = samples.group_by("group", maintain_order=False).agg(
        pl.col(*KEYS, "source", "difficulty", "judged").first(),
        pl.len().alias("n"),
        pl.col("right").sum().alias("c"),
        pl.when(pl.col("answered").is_not_null())
        .then(pl.col("answered") | pl.col("right"))
        .mean()
        .alias("answered"),
        pl.col("well_formed").mean().alias("format"),
        pl.col("target_language_share").mean().alias("language"),
        pl.col("completion_tokens").mean().alias("length"),
        pl.col("truncated").mean(),
    )
    table = table.sort("group")
    n, c = table["n"].to_numpy(), table["c"].to_numpy()
    votes = samples["cluster"].fill_null(-1)
    cons = cons_at_k(samples["group"], votes, samples["right"], problems=table.height)
    if samples["cluster"].null_count() == samples.height and samples["right"].any():
        cons = np.full(table.height, np.nan)  # nothing was clustered
    metrics = {"pass@1": pass_at_1(n, c), "cons@k": cons}
    metrics["voting"] = metrics["cons@k"] - metrics["pass@1"]
    metrics["per answer"] = metrics["pass@1"]  # divided by `answered` when problems are summed up
    metrics |= {f"pass@k {size}": pass_at_k(n, c, size) for size in _sizes(k)}
    unjudged = ~table["judged"].to_numpy()
    return table.with_columns(
        *(pl.Series(name, np.where(unjudged, np.nan, values)) for name, values in metrics.items()),
        pl.Series("unverifiable", unjudged.astype(np.float64)),
    )


def _level(rows: pl.DataFrame, ids: pl.DataFrame, metrics: Sequence[str]) -> Level:
    """Values of one model on the problems `ids`, with one entry per run."""
    runs = []
    columns = [*metrics, "answered"]
    for run in sorted(rows["run"].unique()):
        table = ids.join(
            rows.filter(pl.col("run") == run), on="problem_id", how="left", maintain_order="left"
        )
        runs.append(table.select(pl.col(columns).cast(pl.Float64).fill_null(np.nan)).to_numpy())
    values = np.stack(runs)
    level = Level.of_means(values[:, :, :-1])
    ratio, answered = metrics.index("per answer"), values[:, :, -1]
    missing = np.isnan(level.numerator[:, :, ratio]) | np.isnan(answered)
    level.numerator[:, :, ratio][missing] = np.nan
    level.denominator[:, :, ratio] = np.where(missing, np.nan, answered)
    return level


def _sizes(k: int) -> list[int]:
    """Values of k for which pass@k is reported: powers of two, and the number of samples itself."""
    return [*(2**i for i in range(1, 12) if 2**i < k), *([k] if k > 1 else [])]


def _slices(problems: pl.DataFrame) -> list[tuple[str, pl.DataFrame]]:
    slices = [(ALL, problems)]
    fifth = (pl.col("difficulty").clip(0, 1) * 5).floor().clip(0, 4)
    band = pl.format("{}-{}", (fifth / 5).round(1), (fifth / 5 + 0.2).round(1))
    for name, by in (("source", pl.col("source")), ("difficulty", band)):
        groups = problems.with_columns(by.fill_null("unknown").alias("by"))
        names = sorted(groups["by"].unique())
        if len(names) > 1:
            slices += [(f"{name}={value}", groups.filter(pl.col("by") == value)) for value in names]
    return slices


def _slice_rows(
    name: str,
    part: pl.DataFrame,
    models: Sequence[str],
    pairs: Sequence[tuple[str, str]],
    k: int,
    resamples: int,
    seed: int,
) -> list[Row]:
    """All levels and differences of one slice, from one set of bootstrap draws."""
    metrics = ["pass@1", *(f"pass@k {size}" for size in _sizes(k)), "cons@k", "voting"]
    metrics.append("per answer")
    metrics += ["greedy"] if "greedy" in part.columns else []
    metrics += ["format", "language", "length", "truncated", "unverifiable"]
    ids = part.select(pl.col("problem_id").unique().sort())
    levels = [_level(part.filter(pl.col("model") == model), ids, metrics) for model in models]
    numbers = [(models.index(model), models.index(baseline)) for model, baseline in pairs]
    estimates = [
        estimate for block in compare_levels(levels, numbers, resamples, seed) for estimate in block
    ]
    columns = [(model, None) for model in models] + [(m, b) for m, b in pairs]
    keys = [(model, baseline, metric) for model, baseline in columns for metric in metrics]
    return [
        _row(name, model, baseline, metric, k, estimate)
        for (model, baseline, metric), estimate in zip(keys, estimates, strict=True)
        if estimate.count and not (baseline and metric == "unverifiable")
    ]


def _row(
    name: str, model: str, baseline: str | None, metric: str, k: int, estimate: Estimate
) -> Row:
    size = metric.removeprefix("pass@k ") if metric.startswith("pass@k ") else ""
    values = dict(
        zip(
            ("value", "low", "high"),
            map(_none, (estimate.value, estimate.low, estimate.high)),
            strict=True,
        )
    )
    own: Row = {
        "model": model,
        "baseline": baseline,
        "slice": name,
        "metric": "pass@k" if size else metric,
        "k": int(size or k),
        "seeds": estimate.seeds,
    }
    return own | values | {"problem_count": estimate.count}


def _none(value: float) -> float | None:
    return None if np.isnan(value) else value


# --- readable tables

_SHOWN = (
    *("pass@1", "greedy", "per answer", "cons@k", "pass@k"),
    *("format", "language", "length", "truncated"),
)
_PERFECT = {"language": 1.0, "truncated": 0.0}


def format_table(rows: pl.DataFrame, slice: str = ALL, width: int = 200) -> str:
    """Format the comparison as plain text: one level per model, then the paired differences."""
    text = StringIO()
    console = Console(file=text, width=width, color_system=None, legacy_windows=False)
    for table in tables(rows, slice):
        console.print(table)
    return "\n".join(line.rstrip() for line in text.getvalue().rstrip().splitlines())


def tables(rows: pl.DataFrame, slice: str = ALL) -> list[RenderableType]:
    """Format the comparison for a rich console: levels, differences (if models were compared), and
    problems left out.
    """
    part = rows.filter(pl.col("slice") == slice)
    levels, differences = (
        part.filter(pl.col("baseline").is_null()),
        part.filter(pl.col("baseline").is_not_null()),
    )
    if levels.is_empty():
        raise CurateError(
            f"the evaluation has no slice '{slice}': it has "
            f"{', '.join(rows['slice'].unique().sort())}"
        )
    k = int(levels["k"].max())  # type: ignore[arg-type]
    count = int(levels["problem_count"].max())  # type: ignore[arg-type]
    shown: list[RenderableType] = [
        _table(
            levels,
            f"{counted(count, 'problem')}, {counted(k, 'sample')} each",
            ("model",),
            k,
            signed=False,
        )
    ]
    if differences.height:
        shown.append(
            _table(differences, "paired differences", ("model", "baseline"), k, signed=True)
        )
    left_out = levels.filter((pl.col("metric") == "unverifiable") & (pl.col("value") > 0))
    if left_out.height:
        problems = round(left_out["value"][0] * left_out["problem_count"][0])
        count_in = "counts" if problems == 1 else "count"
        shown.append(
            f"{counted(problems, 'problem')} could not be judged and {count_in} in none of pass@1, "
            "pass@k and cons@k"
        )
    seeds = int(levels["seeds"].fill_null(1).max())  # type: ignore[arg-type]
    over = f"problems and the up to {seeds} training seeds" if seeds > 1 else "problems"
    shown.append(f"In brackets: 95 % bootstrap interval over {over}.")
    return shown


def _table(part: pl.DataFrame, title: str, names: tuple[str, ...], k: int, signed: bool) -> Table:
    own = (pl.col("metric") != "pass@k") | (pl.col("k") == k)
    # Omit a column in which every model is perfect: no truncated sample, no word of another
    # language.
    values = {metric: part.filter(own, pl.col("metric") == metric)["value"] for metric in _SHOWN}
    dull = {
        m: bool(((v - (0.0 if signed else _PERFECT.get(m, np.inf))).abs() < 5e-4).all())
        for m, v in values.items()
    }
    shown = [m for m in _SHOWN if len(values[m]) and not (m in _PERFECT and dull[m])]
    table = Table(
        title=Text(one_line(title)),
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    table.add_column(" - ".join(names), no_wrap=True)
    for metric in shown:
        name = f"{metric[:-1]}{k}" if metric.endswith("@k") else metric
        table.add_column(name, justify="right", no_wrap=True)
    for rows in part.filter(own).partition_by(*names, maintain_order=True):
        cells = {row["metric"]: _cell(row, signed) for row in rows.iter_rows(named=True)}
        table.add_row(
            Text(one_line(" - ".join(rows[name][0] for name in names))),
            *(cells.get(metric, "") for metric in shown),
        )
    return table


def _cell(row: dict[str, Any], signed: bool) -> str:
    """Format an estimate with its interval below; of levels, only the main metrics have one."""
    tokens = row["metric"] == "length"
    value = f"{row['value']:{'+' if signed else ''}z.{1 if tokens else 3}f}"
    with_interval = ("pass@1", "cons@k", "voting", "pass@k")
    if row["low"] is None or not (signed or row["metric"] in with_interval):
        return value
    sign, digits = "+" if signed else "", 1 if tokens else 2
    return f"{value}\n[{row['low']:{sign}z.{digits}f}, {row['high']:{sign}z.{digits}f}]"
