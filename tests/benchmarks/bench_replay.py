"""Value of replay and influence, on the small base of the pipeline `findings`.

    python tests/benchmarks/bench_replay.py curves FOLDER      a replay with another reward, and a
                                                               fresh run with it
    python tests/benchmarks/bench_replay.py influence FOLDER   picks by influence, by quality and by
                                                               chance, of equal size
    python tests/benchmarks/bench_replay.py simulated FOLDER   planted wrong references, simulated
                                                               answers

Each begins with the same base and problems, which are made once in FOLDER. Intervals are 95 % of a
paired bootstrap over held-out problems, of means over seeds; they do not hold the chance of
training.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from curate.annotate import job as annotate
from curate.config import validate
from curate.console.query import saved_query, table
from curate.evaluate.stats import bootstrap, paired_difference
from curate.filter import job as filtering
from curate.generate import job as generation
from curate.generate.config import generate_config
from curate.job import Context
from curate.pipeline.config import load_pipeline
from curate.pipeline.runner import Pipeline
from curate.progress import output
from curate.train import influence
from curate.train import job as training
from curate.train.config import InfluenceConfig
from tests.annotate.test_corrections import warehouse as planted_warehouse

FP32 = {"precision": "fp32", "device": "cpu", "micro_batch_tokens": 8192}
ENGINE = {"name": "transformers", "dtype": "float32", "max_model_len": 256, "args": {"rows": 128}}
PROBLEMS = "sums-of-three"
FORM = {"template": "plain", "form": "r1-zero"}
TOKENS = 60


def start(context: Context, overrides: Sequence[str]) -> str:
    """Make the problems and the base of the pipeline `findings`; returns the base's directory."""
    config, stages = load_pipeline("findings", overrides)
    done = Pipeline(config, stages, context).run(["problems", "base"])
    return done["base"].value


# --- a replay with another reward


def curves(context: Context, base: str, rounds: int, seeds: Sequence[int]) -> None:
    """Held-out accuracy of a run without a reward for accuracy, its replay with one, and a fresh
    run with one.
    """
    shared: dict[str, Any] = {
        "model": base,
        "problems": PROBLEMS,
        "engine": ENGINE,
        "compute": FP32,
        **FORM,
        "steps": rounds,
        "prompts": 16,
        "samples": 8,
        "sampling": {"max_tokens": TOKENS},
        "optim": {"lr": 1e-4, "schedule": "constant", "warmup": 0},
        "checkpoint": {"every": 0, "keep_best": False},
        "show_every": 0,
        "held_out_limit": 100,
    }
    evaluation = {"every": 2, "samples": 4, "temperature": 1.0, "top_p": 1.0}
    new = {"accuracy": 1.0, "format": 0.2}
    rows = []
    for seed in seeds:
        common = shared | {"seed": seed, "evaluation": evaluation}
        source = common | {"name": f"form-{seed}", "rewards": {"format": 1.0}}
        first = training.run_grpo(source, context, "source")
        again = {
            "replay": {"run": first.facts["run_id"], "min_ess": 0.0},
            "rewards": {**new},
            "name": f"replay-{seed}",
            "evaluation": evaluation,
            "engine": ENGINE,
        }
        replayed = training.run_grpo(again, context, "replay")
        fresh = training.run_grpo(
            common | {"name": f"fresh-{seed}", "rewards": new}, context, "fresh"
        )
        for name, result in (("form only", first), ("replay", replayed), ("fresh", fresh)):
            metrics = context.warehouse.sql(
                "SELECT step, name, value FROM metrics WHERE run_id = ? AND name IN "
                "('eval_pass@1', 'ess')",
                [result.facts["run_id"]],
            )
            rows += [(seed, name, *row) for row in metrics.iter_rows()]
    frame = pl.DataFrame(rows, schema=["seed", "run", "step", "name", "value"], orient="row")
    accuracy = frame.filter(pl.col("name") == "eval_pass@1")
    shown = accuracy.group_by("step", "run").agg(pl.col("value").mean().round(3))
    worth = frame.filter(pl.col("name") == "ess", pl.col("run") == "replay")
    worth = worth.group_by("step").agg(pl.col("value").mean().round(3).alias("ess of the replay"))
    shown = shown.pivot("run", index="step", values="value").join(worth, on="step", how="left")
    output(
        table(
            shown.select("step", "form only", "replay", "fresh", "ess of the replay").sort("step")
        )
    )


# --- influence


def picks(context: Context, base: str, count: int, seeds: Sequence[int]) -> None:
    """Held-out accuracy after SFT on `count` traces of the base, chosen in three ways."""
    config = {
        "recipe": "r1-zero",
        "model": base,
        "problems": PROBLEMS,
        "samples": 8,
        "limit": 300,
        "sampling": {"max_tokens": TOKENS},
        "engine": ENGINE,
        **FORM,
    }
    harvest = generation.run(generate_config(config), context).facts["family"]
    annotate.run(annotate.AnnotateConfig(traces=[harvest]), context)
    data = {
        "model": base,
        "traces": [harvest],
        "problems": PROBLEMS,
        "targets": 60,
        "compute": FP32,
    }
    measured = influence.run(validate(InfluenceConfig, data | FORM, "influence"), context)
    output(measured.summary)
    pools = {"all traces": "TRUE", "correct traces": "verdict = 'correct'"}
    ways = {"chance": None, "quality": "quality", "influence": "influence"}
    ids = _held_out(context)
    rows, scores = [], {}
    for pool, where in pools.items():
        for way, by in ways.items():
            values = [
                _trained(
                    context,
                    base,
                    harvest,
                    f"{where} AND influence IS NOT NULL",
                    by,
                    count,
                    seed,
                    ids,
                )
                for seed in seeds
            ]
            scores[pool, way] = np.mean(values, axis=0)
    start_level = bootstrap(_solved(context, base, "base", ids)[:, None])[0]
    output(f"base: {start_level.value:.3f} [{start_level.low:.3f}, {start_level.high:.3f}]")
    for pool in pools:
        for way in ways:
            level = bootstrap(scores[pool, way][:, None])[0]
            row = {
                "pool": pool,
                "picked by": way,
                "pass@1": f"{level.value:.3f} [{level.low:.3f}, {level.high:.3f}]",
            }
            for rival in ("chance", "quality"):
                gain = paired_difference(scores[pool, way], scores[pool, rival])
                row[f"less {rival}"] = (
                    "" if rival == way else f"{gain.value:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]"
                )
            rows.append(row)
    output(table(pl.DataFrame(rows)))


def _held_out(context: Context) -> list[str]:
    """Held-out problems that are not targets, which are the last 60."""
    frame = context.warehouse.latest("problems", PROBLEMS).read().collect()
    held = frame.filter(pl.col("split") == "held-out")
    return held.head(held.height - 60)["problem_id"].to_list()


def _trained(
    context: Context,
    base: str,
    harvest: str,
    where: str,
    by: str | None,
    count: int,
    seed: int,
    ids: list[str],
) -> Any:
    """Pass rate of each held-out problem after SFT on one pick."""
    name = f"{by or 'chance'}-{len(where)}-{seed}"
    chosen: dict[str, Any] = {"select.seed": seed, "select.per_problem": {}}
    chosen |= {"select.top": {"k": count, "by": by}} if by else {"select.budget": count}
    filtering.run(
        filtering.FilterConfig(
            rules="unfiltered",
            corpus=name,
            traces=[harvest],
            where=where,
            set=chosen,
            template="plain",
        ),
        context,
    )
    sft = {
        "name": name,
        "model": base,
        "corpus": name,
        "epochs": 3,
        "batch_size": 16,
        "optim": {"lr": 3e-4},
        "compute": FP32,
        "checkpoint": {"every": 0},
        "seed": seed,
    }
    return _solved(context, str(training.run_sft(sft, context, name).model), name, ids)


def _solved(context: Context, model: str, label: str, ids: list[str]) -> Any:
    config = {
        "recipe": "evaluate",
        "model": model,
        "problems": PROBLEMS,
        "split": "held-out",
        "limit": len(ids),
        "samples": 8,
        "sampling": {"temperature": 1.0, "top_p": 1.0, "max_tokens": TOKENS},
        "engine": ENGINE,
        "label": label,
        "live": False,
        **FORM,
    }
    family = generation.run(generate_config(config), context).facts["family"]
    annotate.run(annotate.AnnotateConfig(traces=[family], signals=[]), context)
    rates = context.warehouse.sql(
        "SELECT problem_id, avg((verdict = 'correct')::INT) AS rate FROM annotated "
        "WHERE dataset = ? GROUP BY problem_id",
        [family],
    )
    by_problem = dict(rates.iter_rows())
    return np.array([by_problem[problem] for problem in ids])


# --- wrong references


def simulated(folder: Path, sets: int) -> None:
    """Plant wrong references among 300 problems, with answers of three simulated models."""
    rows = []
    for samples in (4, 8):
        rows += [
            {"samples": samples, "posterior at least": limit, "named": 0, "hits": 0}
            for limit in (0.5, 0.9)
        ]
        for number in range(sets):
            wrong = set(random.Random(100 + number).sample(range(300), 15))
            place = folder / f"{samples}-{number}"
            wh = planted_warehouse(place, 300, samples, wrong, number)
            with Context(wh) as context:
                annotate.run(annotate.AnnotateConfig(signals=[]), context)
            suspects = wh.sql(saved_query(Path("suspicious_references")))
            for row in rows[-2:]:
                likely = suspects.filter(pl.col("posterior") >= row["posterior at least"])
                names = set(likely["problem_id"])
                row["named"] += len(names)
                row["hits"] += len(names & {f"p{i:04d}" for i in wrong})
    frame = pl.DataFrame(rows).with_columns(
        recall=pl.col("hits") / (15 * sets), precision=pl.col("hits") / pl.col("named")
    )
    output(table(frame))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("what", choices=["curves", "influence", "simulated"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--count", type=int, default=256)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--set", nargs="*", default=[], help="overrides of the pipeline")
    arguments = parser.parse_args()
    seeds = range(arguments.seeds)
    if arguments.what == "simulated":
        simulated(arguments.folder, arguments.seeds)
        return
    with Context(arguments.folder) as context:
        base = start(context, arguments.set)
        if arguments.what == "curves":
            curves(context, base, arguments.rounds, seeds)
        else:
            picks(context, base, arguments.count, seeds)


if __name__ == "__main__":
    main()
