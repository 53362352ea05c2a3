"""Stored rollouts as the data of a run: alone, without an engine, or next to fresh ones.

    curate train grpo replay=RUN rewards.format=0.5       # RUN's config, with another reward
    curate train grpo -c grpo.yaml replay.run=own replay.fresh=8 replay.staleness=4

A round of a replay has the completions of a stored round, judged and rewarded by this run's config.
As long as the policy is the one that sampled them, the gradient equals that of the original run.
That holds in the first round, and afterwards while all rewards, advantages and settings agree: the
same settings give the same weights. From then on the ratio in the loss is pi_theta / pi_sampler
with the sampler's stored log-probs, and the effective sample size shows how far the two differ.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl
from pydantic import ValidationError

from curate.engines.base import encode
from curate.errors import UsageError
from curate.problems import from_rows
from curate.records import Problem
from curate.train.config import GRPOConfig
from curate.train.rollouts import Rollouts
from curate.train.runs import config_identity
from curate.warehouse import Version, Warehouse
from curate.warehouse.identity import digest
from curate.warehouse.names import part_name
from curate.warehouse.runs import run_named

STORED = "stored-"  # prefix of parts about rollouts of another run
# keys that affect the weights only through rewards and advantages, or not at all
INDIRECT = {"rewards", "replay", "evaluation", "keep_tokens", "template", "form"}
TOKENS = ("prompt_token_ids", "completion_token_ids", "logprobs")


class NoEngine:
    """Stand-in for the engine when nothing is sampled."""

    name = label = "replay"
    transfers = True  # it needs no weight files

    def receive_weights(self, tensors: Any, device: Any) -> str:
        return ""

    def update_weights(self, directory: str | Path) -> str:
        return ""

    def sleep(self) -> None: ...

    def wake(self) -> None: ...


@dataclass
class StoredRun:
    """Rollouts of one training run, read from the tables."""

    wh: Warehouse
    name: str  # dataset of its rollouts
    run_id: str
    config: dict[str, Any]  # config of the run; empty if it has not finished
    parent: str  # hash of the weights it started from
    parents: list[str] = field(default_factory=list)  # versions of problems that it sampled
    _frames: dict[str, pl.DataFrame] = field(default_factory=dict)
    _versions: list[Version] = field(default_factory=list)

    @property
    def versions(self) -> list[Version]:
        """Versions of `traces` with its completions; those of a replay belong to another run."""
        if not self._versions:
            rows = self.wh.sql(
                "SELECT DISTINCT dataset, version FROM traces t JOIN rollouts r USING (trace_id) "
                "WHERE r.run_id = ? ORDER BY ALL",
                [self.run_id],
            )
            self._versions = [Version(self.wh.root, "traces", *row) for row in rows.iter_rows()]
        return self._versions

    @property
    def refs(self) -> list[str]:
        return [version.ref for version in self.versions]

    def steps(self) -> list[int]:
        """Optimizer steps of the sampling policies, in order, one per round."""
        return list(self._order["policy_step"].unique().sort())

    @property
    def _order(self) -> pl.DataFrame:
        """One row per rollout, in the order of training."""
        if "order" not in self._frames:
            own = Version(self.wh.root, "rollouts", self.name, self.run_id)
            versions = [own] if own.parts() else self.wh.versions("rollouts", self.name)
            columns = ["trace_id", "policy_step", "run_id", "problem_id", "reward", "advantage"]
            rows = [
                pl.read_parquet(path, columns=columns, glob=False)
                .filter(pl.col("run_id") == self.run_id)
                .with_columns(stored_part=pl.lit(part_name(path)))
                for version in versions
                for path in sorted(version.parts(), key=_part_order)
            ]
            order = pl.concat(rows).rename(
                {"reward": "stored_reward", "advantage": "stored_advantage"}
            )
            drawn = order["stored_part"].str.starts_with(STORED)
            if drawn.any() and not drawn.all():
                raise UsageError(
                    f"replay: run {self.run_id} mixed stored and fresh rollouts, and which round "
                    "used which is not stored: replay the run that it drew from"
                )
            self._frames["order"] = order
        return self._frames["order"]

    def round(self, step: int) -> pl.DataFrame:
        """Return `traces(step)`. UsageError if their token ids were not kept."""
        frame = self.traces(step)
        kept = pl.all_horizontal(pl.col(name).is_not_null() for name in TOKENS)
        lost = frame.filter(~kept & (pl.col("finish_reason") != "error")).height
        if lost:
            raise UsageError(
                f"replay: {lost} of the {frame.height} rollouts of step {step} of run "
                f"{self.run_id} have no token ids or log-probs: only runs with keep_tokens=true, "
                "and an engine that reports both, can be replayed"
            )
        return frame

    def traces(self, step: int) -> pl.DataFrame:
        """Return the traces that the policy of `step` sampled, with the columns of their problems.

        Also `group`, `stored_reward`, `stored_advantage` and `stored_part`; in the order of
        training.
        """
        order = self._order.filter(pl.col("policy_step") == step)
        order = order.select(
            "trace_id", "problem_id", "stored_reward", "stored_advantage", "stored_part"
        )
        groups = order.select("problem_id").unique(maintain_order=True).with_row_index("group")
        traces = (
            pl.concat([v.read() for v in self.versions])
            .filter(pl.col("policy_step") == step)
            .filter(pl.col("trace_id").is_in(order["trace_id"].implode()))
            .collect()
        )
        frame = order.drop("problem_id").join(
            traces, on="trace_id", how="inner", maintain_order="left"
        )
        frame = frame.join(groups, on="problem_id", how="left", maintain_order="left")
        columns = self._problem_rows().select(
            "problem_id", "question", "target_language", "verifier"
        )
        return frame.with_columns(pl.col("group").cast(pl.Int64)).join(
            columns, on="problem_id", how="left", maintain_order="left"
        )

    def problems(self) -> list[Problem]:
        """Return the problems of its rollouts, with their current references."""
        return from_rows(self._problem_rows())

    def _problem_rows(self) -> pl.DataFrame:
        if "problems" not in self._frames:
            ids = self._order["problem_id"].unique()
            rows = self.wh.sql("SELECT * FROM problems").filter(
                pl.col("problem_id").is_in(ids.implode())
            )
            if rows.height < len(ids):
                raise UsageError(
                    f"replay: {len(ids) - rows.height} problems of run {self.run_id} are not in "
                    f"{self.wh.root}: their rollouts cannot be judged without them"
                )
            self._frames["problems"] = rows.sort("problem_id")
        return self._frames["problems"]


def _part_order(path: Path) -> tuple[str, int]:
    """Sort key: `step-000004` before `step-000004-1`, a round that dynamic sampling added to it."""
    step, _, extra = part_name(path).removeprefix(STORED).removeprefix("step-").partition("-")
    return step, int(extra) if extra.isdigit() else 0


def find_run(wh: Warehouse, name: str, where: str = "replay") -> StoredRun:
    """Return a run by name (see `run_named`). UsageError if no run matches."""
    run = run_named(wh, name, where)
    model = wh.sql(
        "SELECT config, parent_hash, data FROM models WHERE run_id = ? ORDER BY created_at DESC "
        "LIMIT 1",
        [run.run_id],
    )
    config, parent, data = model.row(0) if model.height else ("{}", "", "{}")
    problems = json.loads(data or "{}").get("problems") or []
    return StoredRun(wh, run.dataset, run.run_id, json.loads(config or "{}"), parent, problems)


@dataclass
class Replay:
    """The stored rollouts that a run trains on, judged by its own config."""

    config: GRPOConfig
    source: StoredRun | None  # None: the run's own earlier rounds
    rollouts: Rollouts
    parent: str  # hash of the weights this run starts from
    _scored: dict[int, pl.DataFrame] = field(default_factory=dict)

    def check(self, tokenizer: Any, vocabulary: int) -> None:
        """Raise UsageError if the stored token ids have another meaning for this model."""
        if self.source is None:
            return
        steps = self.source.steps()
        first = self.source.round(steps[0])
        temperature = first["temperature"][0]
        if temperature != self.config.sampling.temperature:
            raise UsageError(
                f"replay: run {self.source.run_id} sampled at temperature {temperature:g}, and "
                f"sampling.temperature is {self.config.sampling.temperature:g}: log-probs of the "
                "two cannot be compared"
            )
        prompt, ids, highest = first.select(
            "prompt", "prompt_token_ids", pl.col("completion_token_ids").list.max().max()
        ).row(0)
        if encode(tokenizer, prompt) != ids or (highest or 0) >= vocabulary:
            raise UsageError(
                f"replay: the tokenizer of {self.config.model} is not that of the model that "
                f"sampled run {self.source.run_id}, so the stored token ids mean other text"
            )
        if self.config.replay and not self.config.replay.fresh:
            self._check_sizes(first)

    def _check_sizes(self, first: pl.DataFrame) -> None:
        """Raise UsageError if a round of the config is larger than the stored rounds."""
        assert self.source is not None
        problems, samples = first.select(
            pl.col("group").n_unique(), pl.col("sample_index").max() + 1
        ).row(0)
        # A run with fewer problems than `prompts` trains on all of them.
        few = self.config.prompts not in (problems, self.source.config.get("prompts"))
        if (few and self.config.prompts > problems) or self.config.samples > samples:
            raise UsageError(
                f"replay: a round of run {self.source.run_id} has {problems} problems with "
                f"{samples} completions, fewer than prompts={self.config.prompts} and "
                f"samples={self.config.samples}: lower those"
            )

    def rounds(self) -> int:
        """Number of rounds that can be replayed without sampling."""
        return len(self.source.steps()) if self.source else 0

    # --- a whole stored round

    def whole_round(self, number: int, on_trajectory: bool) -> tuple[pl.DataFrame, bool]:
        """Return stored round `number` (0, 1, …), and whether the next policy is the sampler's too.

        It is if this one is (`on_trajectory`) and all settings, rewards and advantages agree.
        """
        assert self.source is not None
        stored = self.source.round(self.source.steps()[number])
        stored = stored.filter(pl.col("sample_index") < self.config.samples)
        frame = self._judged(stored)
        same = (
            frame["reward"].equals(frame["stored_reward"], null_equal=True)
            and frame["advantage"].equals(frame["stored_advantage"], null_equal=True)
            and self.same_settings()
        )
        frame = pick_groups(
            frame, self.config.prompts, varied_first=self.config.dynamic_sampling > 0
        )
        first = self.parent == self.source.parent and not self.source.config.get("replay")
        current = on_trajectory if number else first
        return frame.with_columns(replayed=pl.lit(not current)), current and same

    def same_settings(self) -> bool:
        """Whether the source was trained with the same values of all settings that affect weights.

        False for a source that is a replay: it was not trained on its own samples.
        """
        assert self.source is not None
        if self.source.config.get("replay"):
            return False
        try:
            theirs = GRPOConfig.model_validate(self.source.config)
        except ValidationError:
            return False
        return _settings(theirs) == _settings(self.config)

    # --- stored groups next to fresh ones

    def draw(self, step: int, count: int) -> pl.DataFrame | None:
        """Return up to `count` stored groups that may be trained on before `step`, or None.

        Groups with equal rewards give no gradient and are skipped; the others are drawn uniformly,
        by seed and step.
        """
        limit = self.config.replay.staleness if self.config.replay else None
        near = [s for s in self._steps(step) if limit is None or abs(step - s) <= limit]
        self._scored = {s: frame for s, frame in self._scored.items() if s in near}
        groups = []
        for s in near:
            frame = self._scored_round(s)
            groups += [
                group
                for _, group in frame.group_by("group", maintain_order=True)
                if group["reward"].drop_nulls().n_unique() > 1
            ]
        if not groups:
            return None
        dice = random.Random(digest("replay", self.config.seed, step))
        chosen = dice.sample(range(len(groups)), min(count, len(groups)))
        return numbered([groups[i] for i in sorted(chosen)]).with_columns(replayed=pl.lit(True))

    def _steps(self, step: int) -> list[int]:
        if self.source is not None:
            return self.source.steps()
        names = [part_name(path) for path in self.rollouts.traces.parts()]
        return sorted({s for name in names if (s := int(name.split("-")[1])) < step})

    def _scored_round(self, step: int) -> pl.DataFrame:
        if step not in self._scored:
            if self.source is not None:
                self._scored[step] = self._judged(self.source.round(step))
            else:
                self._scored[step] = self._own(step)
        return self._scored[step]

    def _own(self, step: int) -> pl.DataFrame:
        """Return the rounds that this run sampled at `step`, with their rewards of that time."""
        run = StoredRun(self.rollouts.wh, self.config.name, self.rollouts.run_id, {}, self.parent)
        run._versions = [self.rollouts.traces]
        own = run.round(step)
        values = pl.concat(
            pl.read_parquet(path, glob=False)
            for path in sorted(self.rollouts.rollouts.parts(), key=_part_order)
            if part_name(path).startswith(f"step-{step:06d}")
        )
        return own.join(
            values.select(
                "trace_id",
                "reward",
                "advantage",
                *[
                    pl.col("components").map.get(n).alias(f"reward_{n}")
                    for n in self.config.rewards
                ],
            ),
            on="trace_id",
            how="left",
            maintain_order="left",
        )

    def _judged(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Return stored traces with the rewards of this run's config, part by part as sampled."""
        assert self.source is not None
        problems = self.source.problems()
        parts = []
        for number, part in enumerate(frame.partition_by("stored_part", maintain_order=True)):
            name = f"{STORED}step-{part['policy_step'][0]:06d}" + (f"-{number}" if number else "")
            groups = part.with_columns(group=pl.col("group") - pl.col("group").min())
            judged = self.rollouts.judged(name, groups, problems)
            parts.append(judged.with_columns(part["group"]))
        return pl.concat(parts)


def _settings(config: GRPOConfig) -> dict[str, Any]:
    """Return the settings that affect the weights other than through rewards."""
    settings = {k: v for k, v in config_identity(config).items() if k not in INDIRECT}
    optim = config.optim
    if optim.schedule == "constant" and (optim.warmup >= 1 or not optim.warmup):
        settings.pop("steps")  # then the rate does not depend on it
    return settings | {"reference": config.loss.reference}


def pick_groups(frame: pl.DataFrame, count: int, varied_first: bool) -> pl.DataFrame:
    """Return the first `count` groups; `varied_first` puts those with unequal rewards first."""
    groups = [group for _, group in frame.group_by("group", maintain_order=True)]
    if varied_first:
        groups.sort(key=lambda g: g["reward"].drop_nulls().n_unique() <= 1)
    return numbered(groups[:count])


def numbered(groups: Sequence[pl.DataFrame], first: int = 0) -> pl.DataFrame:
    """Return groups as one frame, numbered from `first` on."""
    return pl.concat(
        [g.with_columns(group=pl.lit(i, pl.Int64)) for i, g in enumerate(groups, first)]
    )


def stored_config(run: StoredRun) -> dict[str, Any]:
    """Return the config of a run as the default of its replay.

    Evaluation is off, since it needs an engine, and the name differs, to distinguish the two in
    tables. Unknown keys, of later or earlier versions, are ignored.
    """
    config = {k: v for k, v in run.config.items() if k in GRPOConfig.model_fields}
    config = json.loads(json.dumps(config))
    config.pop("replay", None)
    evaluation = config.get("evaluation")
    if isinstance(evaluation, dict):
        config["evaluation"] = evaluation | {"every": 0}
    if "name" in config:
        config["name"] = f"{config['name']}-replay"
    return config
