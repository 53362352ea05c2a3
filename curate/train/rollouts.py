"""Rollouts: sample a round of completions, store it as traces, judge it and assign rewards.

A round is committed in three parts of one name: the traces as soon as they are sampled, then their
verdicts, then rewards and advantages. Training always uses what was committed, so a resumed run
sees the same numbers as an uninterrupted one.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import torch

from curate.atomic import disk_errors, whole_file, write_whole
from curate.engines.base import encode
from curate.errors import CurateError
from curate.prompts.forms import with_opener_expr
from curate.prompts.render import load_template, render
from curate.records import Problem, Request, Sampling, Verdict
from curate.rewards import score
from curate.train.advantages import Scale, group_advantages
from curate.train.config import GRPOConfig
from curate.warehouse import Version, Warehouse
from curate.warehouse.annotations import publish_verdicts
from curate.warehouse.identity import digest, request_seed, rollout_trace_id
from curate.warehouse.names import now
from curate.warehouse.traces import trace_frame, with_parts

EXPIRY = "keep_days"  # file next to private tokens: the number of days they are kept


@dataclass
class Rollouts:
    """Samples, judges and stores the rollouts of one training run."""

    config: GRPOConfig
    wh: Warehouse
    engine: Any
    pool: Any
    run_id: str
    tokenizer: Any
    problems_refs: list[str]
    model: str
    model_hash: str = ""  # of the weights that the engine holds now
    asleep: bool = False
    judges: Any = None  # open engines of reward models
    replayed_refs: list[str] = field(default_factory=list)  # traces of another run that it reads

    def __post_init__(self) -> None:
        self.template = load_template(self.config.template, self.config.form)
        self.form = str(self.template.form)
        facts: dict[str, Any] = {
            "parents": self.problems_refs,
            "config": self.config.model_dump(mode="json"),
            "model_hash": self.model_hash,
            "seed": self.config.seed,
        }
        self.traces = self.wh.version("traces", self.config.name, self.run_id, **facts)
        replay = self.config.replay
        own = [] if replay and not replay.fresh else [self.traces.ref]
        self.parents = [*own, *self.replayed_refs]
        self.rollouts = self.wh.version(
            "rollouts", self.config.name, self.run_id, parents=self.parents
        )
        self.verdict_versions: dict[str, Version] = {}
        self.private = self.wh.root / "checkpoints" / self.run_id / "rounds"

    def round(self, name: str, policy_step: int, problems: Sequence[Problem]) -> pl.DataFrame:
        """Return the rollouts called `name`: read them if committed, else sample and judge them.

        Columns: those of `traces`, the problem's `question`, `reference`, `target_language` and
        `verifier`, `reward`, `advantage`, `group` (number of the problem in the round), and one
        `reward_<component>` per component. Sorted by problem and sample.
        """
        frame = self._read(name)
        if frame is None:
            frame = self._sample(name, policy_step, problems)
        order = pl.DataFrame(
            {
                "problem_id": [p.problem_id for p in problems],
                "group": range(len(problems)),
                "question": [p.question for p in problems],
                "reference": [p.reference for p in problems],
                "target_language": [p.target_language for p in problems],
                "verifier": [p.verifier for p in problems],
            },
            schema={
                **{"problem_id": pl.String, "group": pl.Int64, "question": pl.String},
                **{"reference": pl.String, "target_language": pl.String, "verifier": pl.String},
            },
        )
        frame = frame.join(order, on="problem_id", how="left", maintain_order="left").sort(
            "group", "sample_index"
        )
        return self.judged(name, frame, problems, publish_verdicts=True)

    def judged(
        self,
        name: str,
        frame: pl.DataFrame,
        problems: Sequence[Problem],
        *,
        publish_verdicts: bool = False,
    ) -> pl.DataFrame:
        """Return traces (with `group`) with their rewards and advantages, judged at most once.

        These are committed as the part `name` of `rollouts`. Verdicts are published only about
        traces of this run.
        """
        if not self.rollouts.has(name):
            verdicts = verify_rollouts(frame, problems, self.pool)
            if publish_verdicts:
                self._publish_verdicts(name, frame, problems, verdicts)
            loss = self.config.loss
            scored = score_rollouts(
                frame.with_columns(
                    verdict=pl.Series([v.verdict for v in verdicts], dtype=pl.String)
                ),
                self.config.rewards,
                self.judges,
                scale=loss.advantage,
                ddof=loss.ddof,
            )
            self.rollouts.publish(name, rollout_rows(frame, scored, self.run_id))
        stored = pl.read_parquet(self.rollouts.part(name), glob=False)
        names = list(self.config.rewards)
        values = stored.select(
            "trace_id",
            "reward",
            "advantage",
            *[pl.col("components").map.get(n).alias(f"reward_{n}") for n in names],
        )
        return frame.join(values, on="trace_id", how="left", maintain_order="left")

    # --- an engine that shares the trainer's device

    def rest(self) -> None:
        """Have the engine free its memory while the trainer works."""
        if not self.asleep:
            self.engine.sleep()
            self.asleep = True

    def rouse(self) -> None:
        """Wake the engine if it sleeps."""
        if self.asleep:
            torch.cuda.empty_cache()  # unused blocks of the trainer's allocator; a no-op on a CPU
            self.engine.wake()
            self.asleep = False

    # --- sampling

    def prompt(self, problem: Problem) -> str:
        """Return the problem in the template of the config."""
        return render(self.template, problem.question)

    def _sampled(
        self, name: str, policy_step: int, problems: Sequence[Problem]
    ) -> Iterator[dict[str, Any]]:
        """Sample a round; yield one row per completion, without the columns that all share."""
        config = self.config
        prompts = {p.problem_id: self.prompt(p) for p in problems}
        ids = {p.problem_id: encode(self.tokenizer, prompts[p.problem_id]) for p in problems}
        sampling = Sampling(
            temperature=config.sampling.temperature,
            max_tokens=config.sampling.max_tokens,
            stop=tuple(config.sampling.stop),
            logprobs=True,
        )
        seed = request_seed(config.seed, name, 0)
        keys = {
            f"{p.problem_id}:{i}": (p.problem_id, i)
            for p in problems
            for i in range(config.samples)
        }
        requests = (
            Request(key, prompts[p], request_seed(seed, p, i), sampling, ids[p])
            for key, (p, i) in keys.items()
        )
        for done in self.engine.generate(requests):
            problem_id, sample = keys[done.request_id]
            if done.finish_reason != "error" and done.token_ids is None:
                raise CurateError(
                    f"the engine '{self.engine.name}' returns no token ids, and sampled text must "
                    "not be tokenized again: train with vllm or transformers"
                )
            yield {
                "trace_id": rollout_trace_id(self.run_id, policy_step, problem_id, sample),
                "problem_id": problem_id,
                "sample_index": sample,
                "prompt": prompts[problem_id],
                "prompt_token_ids": ids[problem_id],
                "completion": done.text.encode("utf-8", "replace").decode("utf-8"),
                "completion_token_ids": done.token_ids,
                "logprobs": done.logprobs,
                "finish_reason": done.finish_reason,
                "error": done.error,
                "prompt_tokens": len(ids[problem_id]),
                "completion_tokens": len(done.token_ids or []),
                "seed": request_seed(seed, problem_id, sample),
                "created_at": now(),
            }

    def _sample(self, name: str, policy_step: int, problems: Sequence[Problem]) -> pl.DataFrame:
        """Sample a round and commit its traces, with tokens as `keep_tokens` says."""
        config = self.config
        frame = with_parts(
            trace_frame(list(self._sampled(name, policy_step, problems)))
            .sort("problem_id", "sample_index")
            .with_columns(
                attempt=pl.lit(0, pl.Int32),
                job_id=pl.lit(self.run_id),
                recipe=pl.lit("grpo"),
                form=pl.lit(self.form),
                template=pl.lit(self.template.label()),
                model=pl.lit(self.model),
                model_hash=pl.lit(self.model_hash),
                engine=pl.lit(self.engine.name),
                max_tokens=pl.lit(config.sampling.max_tokens, pl.Int32),
                temperature=pl.lit(config.sampling.temperature),
                top_p=pl.lit(1.0),
                policy_step=pl.lit(policy_step, pl.Int32),
            )
        )
        if config.keep_tokens is not True:
            self._keep_private(name, frame)
            without_tokens = frame.with_columns(
                pl.lit(None, pl.List(pl.Int32)).alias("completion_token_ids"),
                pl.lit(None, pl.List(pl.Int32)).alias("prompt_token_ids"),
                pl.lit(None, pl.List(pl.Float32)).alias("logprobs"),
            )
            self.traces.publish(name, without_tokens)
        else:
            self.traces.publish(name, frame)
        return self._read(name)  # type: ignore[return-value]

    def _read(self, name: str) -> pl.DataFrame | None:
        """Return the committed traces of a round, or None.

        Raises CurateError if their private tokens have expired.
        """
        if not self.traces.has(name):
            return None
        if self.config.keep_tokens is True:
            return pl.read_parquet(self.traces.part(name), glob=False)
        path = self.private / f"{name}.parquet"
        if not path.exists():
            raise CurateError(
                f"the tokens of the rollouts {name} have expired "
                f"(keep_tokens={self.config.keep_tokens}), and the run needs them to resume: start "
                "a new run with another seed"
            )
        return pl.read_parquet(path, glob=False)

    def _keep_private(self, name: str, frame: pl.DataFrame) -> None:
        """Write the frame, with token ids and log-probs, next to the checkpoints."""
        self.private.mkdir(parents=True, exist_ok=True)
        if self.config.keep_tokens and not (self.private / EXPIRY).exists():
            write_whole(self.private / EXPIRY, str(float(self.config.keep_tokens)))
        target = self.private / f"{name}.parquet"
        with disk_errors(target), whole_file(target) as staged:
            frame.write_parquet(staged)

    def forget_tokens(self) -> None:
        """Remove private tokens that a checkpoint covers, unless they are to be kept for longer."""
        if not self.config.keep_tokens:
            for path in self.private.glob("*.parquet"):
                path.unlink(missing_ok=True)

    def expire_tokens(self) -> None:
        """Remove expired private tokens of all runs, except those that a resumed run needs."""
        for limit in (self.wh.root / "checkpoints").glob(f"*/rounds/{EXPIRY}"):
            run, oldest = limit.parents[1], time.time() - float(limit.read_text()) * 86_400
            covered = max(
                (p.name for p in run.glob("step-*") if (p / "trainer.pt").exists()), default=""
            )
            for path in limit.parent.glob("step-*.parquet"):
                covered_or_done = path.name < covered or (run / "result.json").exists()
                if covered_or_done and path.stat().st_mtime < oldest:
                    path.unlink(missing_ok=True)

    # --- judging

    def _publish_verdicts(
        self,
        name: str,
        frame: pl.DataFrame,
        problems: Sequence[Problem],
        verdicts: Sequence[Verdict],
    ) -> None:
        """Store verdicts where `curate annotate` stores them, so that it does not judge them
        again.
        """
        verifiers = {p.problem_id: p.verifier for p in problems}
        rows = pl.DataFrame(
            [
                {
                    "verifier": v.verifier or verifiers[problem_id] or "none",
                    "verifier_version": v.verifier_version,
                    "kind": v.kind,
                    "verdict": v.verdict,
                    "extracted": v.extracted,
                    "detail": v.detail,
                    "seconds": v.seconds,
                }
                for v, problem_id in zip(verdicts, frame["problem_id"], strict=True)
            ],
            schema_overrides={"extracted": pl.String},
        )
        rows = frame.select("trace_id", "attempt").hstack(rows)
        versions = publish_verdicts(self.wh, self.traces, name, rows)
        self.verdict_versions |= {version.ref: version for version in versions}

    def seal(self) -> None:
        """Seal all versions of the run. A run that sampled nothing has no traces."""
        sampled = [self.traces] if self.traces.parts() else []
        for version in (*sampled, self.rollouts, *self.verdict_versions.values()):
            version.seal()


def verify_rollouts(frame: pl.DataFrame, problems: Sequence[Problem], pool: Any) -> list[Verdict]:
    """Return the verdicts of the problems' verifiers about traces, in order."""
    by_id = {p.problem_id: p for p in problems}
    text = with_opener_expr(pl.col("completion"), pl.col("prompt"), pl.col("form"))
    verdicts: list[Verdict] = pool.verify_batch(
        [by_id[p] for p in frame["problem_id"]],
        frame.select(text).to_series().to_list(),
        forms=frame["form"].to_list(),
    )
    return verdicts


def score_rollouts(
    frame: pl.DataFrame,
    rewards: Mapping[str, Any],
    judges: Any = None,
    *,
    scale: Scale = "group",
    ddof: int = 1,
) -> pl.DataFrame:
    """Return `reward, advantage, reward_<component>` of traces, in order.

    `frame` holds whole groups: columns of `traces`, `group`, `verdict`, and the problem's
    `question`, `target_language` and `verifier`.
    """
    scored = score(frame, rewards, judges)
    values = torch.tensor(
        [float("nan") if r is None else r for r in scored["reward"].to_list()],
        dtype=torch.float64,
    )
    group = torch.tensor(frame["group"].to_list())
    advantages = group_advantages(values, group, scale=scale, ddof=ddof)
    return scored.with_columns(advantage=pl.Series(advantages.tolist(), dtype=pl.Float64))


def rollout_rows(frame: pl.DataFrame, scored: pl.DataFrame, run_id: str) -> pa.Table:
    """Return the rows of the table `rollouts` for traces and their scores, in order."""
    rows = frame.select(
        "trace_id", "policy_step", "problem_id", "sample_index", run_id=pl.lit(run_id)
    ).hstack(scored.select("reward", "advantage"))
    parts = {
        name.removeprefix("reward_"): scored[name]
        for name in scored.columns
        if name.startswith("reward_")
    }
    return rows.to_arrow().append_column("components", _map_array(parts, len(rows)))


def _map_array(columns: dict[str, pl.Series], rows: int) -> Any:
    """Combine columns of numbers into one column of maps from name to value."""
    names = pa.array(list(columns) * rows, pa.string())
    values = np.stack([c.to_numpy() for c in columns.values()], axis=1).reshape(-1)
    missing = np.stack([c.is_null().to_numpy() for c in columns.values()], axis=1).reshape(-1)
    offsets = pa.array(range(0, len(names) + 1, len(columns)), pa.int32())
    return pa.MapArray.from_arrays(offsets, names, pa.array(values, pa.float64(), mask=missing))


def problem_stream(problems: Sequence[Problem], seed: int, start: int, count: int) -> list[Problem]:
    """Return `count` problems of an endless stream from position `start` on.

    The stream repeats all problems, shuffled anew each time. A round holds a problem once: if a
    shuffle ends inside a round, problems already in the round are skipped.
    """
    ordered = sorted(problems, key=lambda p: p.problem_id)
    count = min(count, len(ordered))
    taken: dict[str, Problem] = {}
    epoch, position = divmod(start, len(ordered))
    while len(taken) < count:
        deck = list(ordered)
        random.Random(digest("problems", seed, epoch)).shuffle(deck)
        for problem in deck[position:]:
            if len(taken) < count:
                taken.setdefault(problem.problem_id, problem)
        epoch, position = epoch + 1, 0
    return list(taken.values())
