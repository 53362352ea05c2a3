"""Metrics of training (parts of the table `metrics`) and trained models (rows of `models`)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from curate.engines.models import weights_hash
from curate.rewards import components, does_not_count
from curate.signals import annotate_frame
from curate.train.advantages import TINY
from curate.train.config import GRPOConfig
from curate.train.ranks import Ranks
from curate.train.result import TrainResult
from curate.train.trackers import Trackers
from curate.warehouse import Warehouse
from curate.warehouse.identity import digest
from curate.warehouse.names import now


class MetricsLog:
    """Metrics of one run, published in parts named by their first step, each at most once."""

    def __init__(
        self,
        wh: Warehouse,
        name: str,
        run_id: str,
        ranks: Ranks,
        trackers: Sequence[str] = (),
        **facts: Any,
    ) -> None:
        self.run_id, self.ranks = run_id, ranks
        self.version = wh.version("metrics", name, run_id, **facts)
        self.rows: list[dict[str, Any]] = []
        names = trackers if ranks.first else ()
        self.trackers = Trackers(
            names, name, run_id, wh.root / "checkpoints" / run_id, facts.get("config") or {}
        )

    def add(self, step: int, metrics: dict[str, float]) -> None:
        """Add the metrics of a step, and send them to the trackers."""
        self.rows += [
            {
                "run_id": self.run_id,
                "step": step,
                "name": name,
                "value": float(value),
                "created_at": now(),
            }
            for name, value in metrics.items()
        ]
        self.trackers.log(step, metrics)

    def publish(self) -> None:
        """Commit the metrics added since the last call, as one part."""
        if self.rows and self.ranks.first and not self.version.sealed:
            self.version.publish(f"step-{self.rows[0]['step']:06d}", self.rows)
        self.rows = []

    def seal(self) -> None:
        """Seal the version and close the trackers."""
        if self.ranks.first:
            self.version.seal()
        self.trackers.close()


def advantage_mass(frame: pl.DataFrame, weights: Mapping[str, float]) -> dict[str, float]:
    """Return shares of the advantage mass, the sum of |advantage| over a round, by cause.

    `mass_<component>`: within a group an advantage is scale * (reward - mean), and the reward is a
    sum of weighted components, so component c contributes scale * weight_c * (c - mean of c). Its
    share is the sum of the absolute values of its contributions over that of all components.
    `mass_equal`: share of |advantage| in groups whose accuracy is the same for all completions.
    They teach form, language and length, but not correctness. Groups without a verdict do not
    count. All are 0 if no completion has an advantage. A null value contributes nothing.
    """

    def apart(column: str) -> pl.Expr:
        return pl.col(column) - pl.col(column).mean().over("group")

    size, spread = pl.col("advantage").abs(), apart("reward").abs().sum().over("group")
    scale = pl.when(spread > 0).then(size.sum().over("group") / spread).otherwise(0.0)
    equal = pl.col("reward_accuracy").drop_nulls().n_unique().over("group") == 1
    carried = frame.select(
        **{
            name: (scale * weight * apart(f"reward_{name}")).abs().fill_null(0.0)
            for name, weight in weights.items()
        }
    ).sum()
    total = max(sum(carried.row(0)), TINY)
    shares = {f"mass_{name}": value / total for name, value in carried.row(0, named=True).items()}
    if "accuracy" in weights:
        mass, within = frame.select(size.sum(), equal=size.filter(equal).sum()).row(0)
        shares["mass_equal"] = (within or 0.0) / max(mass or 0.0, TINY)
    return shares


def round_metrics(
    frame: pl.DataFrame, sums: dict[str, float], config: GRPOConfig, updates: int
) -> dict[str, float]:
    """Return the metrics of one round of rollouts and its updates; units are in docs/train.md."""
    signals = annotate_frame(frame, ["language", "behaviour"])
    spread = pl.col("reward").drop_nulls().n_unique().over("group")
    means_of_rows = signals.select(
        reward=pl.col("reward").mean(),
        **{name: pl.col(f"reward_{name}").mean() for name in config.rewards},
        unverifiable=pl.col("reward").is_null().mean(),
        zero_variance=(spread <= 1).mean(),
        truncated=(pl.col("finish_reason") == "length").mean(),
        failed=(pl.col("finish_reason") == "error").mean(),
        mean_length=pl.col("completion_tokens").mean(),
        language_share=pl.col("target_language_share").mean(),
        reflections=pl.col("reflection_count").mean(),
        reflective_words=pl.col("reflective_words").mean(),
        rollout_tokens=pl.col("completion_tokens").sum(),
    ).row(0, named=True)
    tokens = max(sums.get("tokens", 0.0), 1.0)
    shares = (
        "kl",
        "entropy",
        "clip_low",
        "clip_high",
        "mismatch",
        "mismatch_kl",
        "capped",
        "ratio",
    )
    measured = {name: sums.get(name, 0.0) / tokens for name in shares if name in sums}
    totals = {name: sums.get(name, 0.0) for name in ("computed", "trained_tokens")}
    means = {name: sums.get(name, 0.0) / updates for name in ("loss", "grad_norm")}
    parts = components(config.rewards)
    absent = does_not_count(frame, parts)
    counted = frame.with_columns(
        pl.when(~mask).then(pl.col(f"reward_{name}")).alias(f"reward_{name}")
        for name, mask in absent.items()
    )
    mass = advantage_mass(counted, {part.name: part.weight for part in parts})
    return {
        k: float(v)
        for k, v in {**means_of_rows, **mass, **measured, **totals, **means}.items()
        if v is not None
    }


def speeds(
    metrics: dict[str, float], rollout: float, train: float, whole: float
) -> dict[str, float]:
    """Return the seconds of a round's parts, and tokens per second of sampling and of training.

    The sampling speed of a round that was read back is the speed of reading.
    """
    return {
        "seconds_rollout": rollout,
        "seconds_train": train,
        "seconds": whole,
        "rollout_tokens_per_second": metrics["rollout_tokens"] / max(rollout, 1e-9),
        "tokens_per_second": metrics["trained_tokens"] / max(train, 1e-9),
    }


def record_model(
    wh: Warehouse,
    result: TrainResult,
    name: str,
    kind: str,
    parent: str,
    inputs: dict[str, Any],
    config: dict[str, Any],
) -> None:
    """Write a row of the `models` table."""
    row = {
        "model_hash": weights_hash(result.model_path),
        "name": name,
        "kind": kind,
        "path": str(result.model_path.relative_to(wh.root)),
        "parent_hash": parent,
        "run_id": result.run_id,
        "step": result.steps,
        "data": json.dumps(inputs),
        "config": json.dumps(config),
        "parameters": result.counts.get("parameters"),
        "created_at": now(),
    }
    parents = [ref for table in ("corpora", "problems", "traces") for ref in inputs.get(table, [])]
    wh.write(
        "models",
        name,
        [row],
        key=[result.run_id, result.steps, digest(config)],
        parents=parents,
        model_hash=row["model_hash"],
    )
