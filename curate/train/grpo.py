"""Group-relative policy optimisation (DeepSeekMath, arXiv 2402.03300; the R1 report), in one loop.

    problems -> rollouts (engine) -> verdicts, rewards, advantages -> loss -> AdamW -> push weights

Departs from the textbook where the result is the same and cheaper:
- completions of one prompt share its computation, and prompts share their common beginning
  (`model/layout.py`);
- a completion with advantage 0 has no gradient, so without a KL term it is not computed;
- with one update per round, the policy that samples is the policy that learns: the ratio is 1, and
  old log-probs need no separate pass.
"""

from __future__ import annotations

import contextlib
import math
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import polars as pl
import torch
from torch import Tensor

from curate.engines.models import weights_hash
from curate.errors import UsageError
from curate.records import Problem
from curate.train.checkpoints import Checkpoints
from curate.train.config import GRPOConfig
from curate.train.evals import Evaluator
from curate.train.losses import (
    PolicyTokens,
    effective_share,
    importance_sums,
    policy_loss,
    row_weights,
)
from curate.train.metrics import MetricsLog, round_metrics, speeds
from curate.train.model.layout import Layout, PromptCompletion
from curate.train.model.loading import write_model
from curate.train.model.policy import Policy
from curate.train.optim import learning_rate, optimizer_step
from curate.train.push import proof_of, push_directory, push_weights, shares_gpu
from curate.train.ranks import Ranks, join_ranks
from curate.train.reference import drop_references, load_reference, new_reference
from curate.train.replay import Replay, StoredRun, numbered
from curate.train.result import TrainResult
from curate.train.rollouts import Rollouts, problem_stream
from curate.train.runs import (
    ProgressCallback,
    TrainingRun,
    check_finite,
    config_identity,
    memory_errors,
    start_run,
)
from curate.train.trend import falling, round_level, trend
from curate.warehouse import Warehouse
from curate.warehouse.identity import digest

# Increased when the same config would train a different model; part of the run's id.
TRAINER_VERSION = 1


@dataclass
class RolloutRow:
    """One completion of a round as the loss needs it."""

    tokens: PromptCompletion
    trace_id: str
    group: int
    advantage: float
    kept: bool  # counts towards the normalisation
    sampler: list[float] | None  # log-probs that the engine reported
    replayed: bool = False  # sampled by a policy that may be another than this one
    old: Any = None  # [n] log-probs of the policy that sampled; None if it is the one that learns
    ref: Any = None  # [n] log-probs of the reference
    bonus: bool = False  # whether the loss has a term that needs no advantage

    @property
    def computed(self) -> bool:
        return self.kept and (self.advantage != 0 or self.ref is not None or self.bonus)


@dataclass
class RunState:
    """State that a killed run resumes from, besides weights and optimizer: in every checkpoint."""

    round: int = 0  # rounds trained on
    position: int = 0  # problems taken from the stream
    best: float = -1.0
    best_step: int = 0
    since_best: int = 0  # evaluations since the best
    stopped: bool = False
    reference_step: int = 0
    # Accuracy of each round with its standard error, and the warning given when it fell.
    levels: list[tuple[float, float]] = field(default_factory=list)
    warning: str = ""
    empty_rounds: int = 0  # in which no group had rewards that differ
    metrics: dict[str, float] = field(default_factory=dict)
    # For a replay: whether this policy sampled the next round, and why the run ended early.
    on_trajectory: bool = True
    ended: str = ""
    steps_of_round: int = 0  # optimizer steps made in the round in which it ended


def train_grpo(
    config: GRPOConfig,
    wh: Warehouse,
    engine: Any,
    pool: Any,
    problems: Sequence[Problem],
    progress: ProgressCallback | None = None,
    *,
    held_out: Sequence[Problem] = (),
    problems_refs: Sequence[str] = (),
    model_name: str = "",
    kind: str = "grpo",
    say: Callable[[str], None] = lambda text: None,
    judges: Any = None,
    source: StoredRun | None = None,
) -> TrainResult:
    """Train `config.model` on `problems`; returns at once if the same run has finished.

    `engine` holds a model of the same architecture; it receives the policy's weights and ends with
    the last ones. `held_out` problems are sampled every `evaluation.every` steps. `source` is the
    run whose rollouts `config.replay` names. Under `torchrun` only the first rank needs engine and
    pool. Raises UsageError for wrong settings, CurateError for a non-finite loss or gradient.
    """
    if not problems:
        raise UsageError("grpo: no problems to train on: check the problems' name and split")
    parent = weights_hash(config.model)
    ids = digest(sorted(p.problem_id for p in problems), sorted(p.problem_id for p in held_out))
    reference_hash = weights_hash(config.loss.reference) if config.loss.reference else ""
    engine_label = getattr(engine, "label", getattr(engine, "name", ""))
    identity = (config_identity(config), parent, reference_hash, ids, engine_label)
    ranks = join_ranks()
    # Only the first rank has an engine, whose name is part of the id.
    run_id = ranks.broadcast(digest("grpo", TRAINER_VERSION, *identity)[:16])
    checkpoints = Checkpoints(wh.root, run_id, config.checkpoint.keep_last)
    if finished := checkpoints.finished():
        return finished

    run = start_run(config, wh, checkpoints, ranks, say)
    policy, tokenizer = run.policy, run.tokenizer
    state = RunState(**run.saved["run"]) if run.saved else RunState()
    reference = load_reference(config, checkpoints, state.reference_step)
    name = model_name or config.model
    rollouts = Rollouts(
        config, wh, engine, pool, run_id, tokenizer, list(problems_refs), name, parent,
        judges=judges, replayed_refs=source.refs if source else [],
    )  # fmt: skip
    replay = Replay(config, source, rollouts, parent) if config.replay else None
    if replay:
        replay.check(tokenizer, policy.vocabulary)
    rounds = rounds_to_train(config, replay, say)
    facts = {"parents": rollouts.parents, "config": config.model_dump(mode="json")}
    log = MetricsLog(wh, config.name, run_id, ranks, config.trackers, **facts)
    evaluator = Evaluator(config, engine, pool, held_out, rollouts.prompt, tokenizer, rollouts.form)
    updates = config.mini_batches * config.epochs  # per round
    weights = push_weights(rollouts, run)
    if ranks.first and (text := proof_of(engine)):
        say(text)
    if config.evaluation.every and held_out and state.round == 0:
        state.metrics = ranks.broadcast(evaluator.run(0) if ranks.first else None)
        judge_progress(state, 0, config)
        if config.checkpoint.keep_best and ranks.first:  # training may not improve on the start
            write = partial(write_model, policy, tokenizer, dtype=run.export_dtype)
            checkpoints.save_best(partial(write, state=weights))
        log.add(0, state.metrics)
        log.publish()

    while state.round < rounds and not state.stopped:
        began, step = time.perf_counter(), state.round * updates
        # 1. Roll out, judge, reward. Other ranks wait for the rows of the first.
        rows_of_round = partial(collect, rollouts, state, problems, step, replay)
        frame = ranks.broadcast(rows_of_round() if ranks.first else None)
        if ranks.first and shares_gpu(policy.device, engine):
            rollouts.rest()
        sampled = time.perf_counter()

        # 2. Fixed log-probs of this round, then the updates.
        rows = loss_rows(frame, config)
        with memory_errors(f"at step {step + 1}"):
            fix_logprobs(rows, policy, reference, config, ranks)
            sums, lr = update_policy(run, config, rows, step)
        trained = time.perf_counter()
        if "refused" in sums:  # a step that this policy's own completions would not have made
            end_replay(state, sums, config, step)
            log.add(step + state.steps_of_round + 1, {"ess": sums["ess"]})
            break
        state.round += 1
        step = state.round * updates

        # 3. Push the new weights to the engine, which proves that they arrived.
        weights = push_weights(rollouts, run)
        if reference_is_due(state, config):
            state.reference_step = state.round
            reference = new_reference(run, config, state.round)

        # 4. Measure and evaluate.
        state.metrics = round_metrics(frame, sums, config, updates=updates) | {"lr": lr}
        state.metrics |= replay_metrics(frame, sums, step - updates) if replay else {}
        state.metrics |= speeds(
            state.metrics, sampled - began, trained - sampled, time.perf_counter() - began
        )
        for text in (watch(state, frame, config), watch_signal(state, frame, config)):
            if text and ranks.first:
                say(text)
        if held_out and evaluation_is_due(state, config, rounds):
            state.metrics |= ranks.broadcast(evaluator.run(step) if ranks.first else None)
            judge_progress(state, step, config)
            if state.best_step == step and config.checkpoint.keep_best and ranks.first:
                write = partial(write_model, policy, tokenizer, dtype=run.export_dtype)
                checkpoints.save_best(partial(write, state=weights))
        log.add(step, state.metrics)
        log.publish()
        if ranks.first:
            if config.show_every and state.round % config.show_every == 0:
                say(samples_shown(frame, step))
            if progress:
                progress(state.round, rounds, state.metrics)

        # 5. Save the state that a killed run resumes from.
        last = state.round == rounds or state.stopped
        if config.checkpoint.every and state.round % config.checkpoint.every == 0 and not last:
            checkpoints.save(step, policy, tokenizer, run.optimizer, ranks, run=asdict(state))
            if ranks.first:
                drop_references(checkpoints, state.reference_step)
            rollouts.forget_tokens()
        if ranks.first:
            rollouts.expire_tokens()

    log.publish()
    log.seal()
    if ranks.first:
        rollouts.seal()
    result = finished_result(run, state, updates)

    def settle_engine() -> None:
        # A restarted engine reads its weights again, so they must stay where they are.
        engine.update_weights(result.model_path)
        shutil.rmtree(push_directory(wh.root, run_id), ignore_errors=True)

    inputs = {"model": parent, "problems": list(problems_refs)}
    if source:
        inputs["traces"] = source.refs
    return run.finish(result, kind, parent, inputs, before_record=settle_engine)


# --- the parts of a round, in the order of the loop


def collect(
    rollouts: Rollouts,
    state: RunState,
    problems: Sequence[Problem],
    step: int,
    replay: Replay | None = None,
) -> pl.DataFrame:
    """Return the rollouts of one round, and advance `state.position` in the stream of problems.

    With a replay they are stored ones, all or some (`replayed` marks those of another policy).
    """
    config = rollouts.config
    if replay is None or config.replay is None:
        return sample_round(rollouts, state, problems, step, config.prompts)
    if not config.replay.fresh:
        frame, state.on_trajectory = replay.whole_round(state.round, state.on_trajectory)
        return frame
    stored = replay.draw(step, config.prompts - config.replay.fresh)
    count = 0 if stored is None else stored["group"].n_unique()
    fresh = sample_round(rollouts, state, problems, step, config.prompts - count)
    fresh = fresh.with_columns(replayed=pl.lit(False))
    if stored is None:
        return fresh
    shift = pl.col("group") + fresh["group"].n_unique()
    shared = [name for name in fresh.columns if name in stored.columns]
    stored = stored.with_columns(group=shift).select(shared)
    # Columns that only rewards read, such as the reference, are null in stored rows: they have
    # their rewards.
    return pl.concat([fresh, stored], how="diagonal")


def sample_round(
    rollouts: Rollouts, state: RunState, problems: Sequence[Problem], step: int, prompts: int
) -> pl.DataFrame:
    """Return fresh rollouts of `prompts` problems, the next of the stream.

    With dynamic sampling, groups of equal rewards are replaced by fresh ones (DAPO, section 3.2).
    After the last fresh round, groups of equal rewards fill the rest.
    """
    config = rollouts.config
    wanted = min(prompts, len(problems))
    varied: list[pl.DataFrame] = []
    uniform: list[pl.DataFrame] = []
    for extra in range(1 + config.dynamic_sampling):
        drawn = problem_stream(problems, config.seed, state.position, wanted)
        state.position += len(drawn)
        frame = rollouts.round(f"step-{step:06d}" + (f"-{extra}" if extra else ""), step, drawn)
        for _, group in frame.group_by("group", maintain_order=True):
            teaches = config.dynamic_sampling == 0 or group["reward"].drop_nulls().n_unique() > 1
            (varied if teaches else uniform).append(group)
        if len(varied) >= wanted:
            break
    return numbered([*varied, *uniform][:wanted])


def loss_rows(frame: pl.DataFrame, config: GRPOConfig) -> list[RolloutRow]:
    """Return the rows of the loss.

    A failed request, an unknown reward and, with `mask_truncated`, a truncated trace are not kept.
    """
    # Without a weighted component only the KL term teaches, which needs no reward.
    rewarded = any(getattr(part, "weight", part) for part in config.rewards.values())
    kept = (
        (pl.col("reward").is_not_null() | pl.lit(not rewarded))
        & (pl.col("finish_reason") != "error")
        & (pl.col("completion_tokens") > 0)
    )
    if config.loss.mask_truncated:
        kept &= pl.col("finish_reason") != "length"
    columns = frame.select(
        "prompt_token_ids",
        "completion_token_ids",
        "trace_id",
        "group",
        "advantage",
        kept.alias("kept"),
        "logprobs",
        pl.col("replayed") if "replayed" in frame.columns else pl.lit(False).alias("replayed"),
    )
    return [
        RolloutRow(
            PromptCompletion(prompt, completion or []),
            trace_id,
            group,
            advantage or 0.0,
            is_kept,
            sampler,
            replayed,
            bonus=config.loss.entropy_bonus > 0,
        )
        for (
            prompt,
            completion,
            trace_id,
            group,
            advantage,
            is_kept,
            sampler,
            replayed,
        ) in columns.iter_rows()
    ]


def fix_logprobs(
    rows: list[RolloutRow],
    policy: Policy,
    reference: Policy | None,
    config: GRPOConfig,
    ranks: Ranks,
) -> None:
    """Set log-probs of the reference, and of the policy that sampled unless it is the one at hand.

    That is the policy before the round if the round has several updates; of replayed rows the
    stored sampler.
    """
    temperature = config.sampling.temperature
    kept = [r for r in rows if r.kept]
    if config.loss.beta and kept:
        with policy.without_adapters() if reference is None else contextlib.nullcontext():
            values = (reference or policy).all_logprobs(
                [r.tokens for r in kept], temperature=temperature, ranks=ranks
            )
        for row, value in zip(kept, values, strict=True):
            row.ref = value
    computed = [r for r in rows if r.computed]
    own = [r for r in computed if not r.replayed]
    # A micro-batch that mixes both kinds needs the log-probs of both.
    if own and (config.mini_batches * config.epochs > 1 or len(own) < len(computed)):
        sequences = [r.tokens for r in own]
        values = policy.all_logprobs(sequences, temperature=temperature, ranks=ranks)
        for row, value in zip(own, values, strict=True):
            row.old = value
    for row in computed:
        if row.replayed:
            row.old = row.sampler


def update_policy(
    run: TrainingRun, config: GRPOConfig, rows: list[RolloutRow], step: int
) -> tuple[dict[str, float], float]:
    """Make one optimizer step per mini-batch and epoch; returns sums for the metrics, and the rate.

    `step` is the number of steps before the round. A replay makes no step whose effective sample
    size is below the limit: `refused` is then the number of steps made before it.
    """
    sums: dict[str, float] = {}
    lr, before = 0.0, step
    total = config.steps * config.mini_batches * config.epochs
    for _ in range(config.epochs):
        for batch in mini_batches(rows, config):
            part = grpo_step(run.policy, batch, config, run.ranks, step + 1)
            lr = learning_rate(step, total, config.optim)
            step += 1
            if config.replay:
                sums["ess"] = min(sums.get("ess", 1.0), effective_share(part))
                # The policy that sampled may move within its round as far as in any run.
                stale = any(row.replayed for row in batch)
                if stale and sums["ess"] < config.replay.min_ess:
                    run.optimizer.zero_grad(set_to_none=True)
                    return sums | {"refused": step - before - 1.0}, lr
            if part["computed"]:  # without a gradient, momentum alone must not move the policy
                norm = optimizer_step(run.policy, run.optimizer, lr, config.optim.max_grad_norm)
                check_finite(norm, "gradient", step, [r.trace_id for r in batch if r.computed])
                part["grad_norm"] = norm
            add(sums, part)
    return sums, lr


def mini_batches(rows: list[RolloutRow], config: GRPOConfig) -> list[list[RolloutRow]]:
    """Return the round in `mini_batches` equal parts of whole groups."""
    groups = max(r.group for r in rows) + 1
    size = math.ceil(groups / config.mini_batches)
    return [
        [r for r in rows if start <= r.group < start + size] for start in range(0, groups, size)
    ]


def grpo_step(
    policy: Policy, batch: list[RolloutRow], config: GRPOConfig, ranks: Ranks, step: int
) -> dict[str, float]:
    """Compute gradients of one mini-batch, summed over micro-batches and ranks; return sums for
    metrics.

    Raises CurateError if the loss is not finite.
    """
    lengths = torch.tensor([len(r.tokens.completion) for r in batch])
    kept = torch.tensor([r.kept for r in batch])
    # Weights are those of the whole mini-batch, however it is cut into micro-batches and ranks.
    weights = row_weights(lengths, kept, config.loss.normalisation, config.sampling.max_tokens)
    pairs = [(row, w) for row, w in zip(batch, weights.tolist(), strict=True) if row.computed]
    own = ranks.deal(pairs, [row.tokens for row, _ in pairs])
    trained_tokens = 0
    parts: list[dict[str, Tensor]] = []
    importance: dict[str, float] = {}
    cuts = policy.micro_batches([row.tokens for row, _ in own], ranks)
    for cut in cuts:
        rows = [own[i][0] for i in cut]
        layout = policy.layout([row.tokens for row in rows])
        new, entropy = policy.logprobs(
            layout, temperature=config.sampling.temperature, entropy=True
        )
        tokens = policy_tokens(rows, [own[i][1] for i in cut], layout, new, entropy)
        out = policy_loss(
            tokens,
            clip_low=config.loss.clip_low,
            clip_high=config.loss.clip_high,
            ratio=config.loss.ratio,
            beta=config.loss.beta,
            kl=config.loss.kl,
            sampler_cap=config.loss.sampler_cap,
            objective=config.loss.objective,
            sampler_mask=config.loss.sampler_mask,
            mask_level=config.loss.mask_level,
            correct_kl=config.loss.correct_kl,
            entropy_bonus=config.loss.entropy_bonus,
        )
        out.loss.backward()
        policy.release_memory()
        trained_tokens += layout.tokens
        parts.append(out.sums | {"loss": out.loss.detach(), "entropy": entropy.detach().sum()})
        if config.replay and tokens.sampler is not None:
            add(importance, importance_sums(new - tokens.sampler, layout.row, len(rows)))
    sums = {"computed": float(len(own)), "trained_tokens": float(trained_tokens)} | importance
    for cut, part in zip(cuts, read(parts), strict=True):
        check_finite(part["loss"], "loss", step, [own[i][0].trace_id for i in cut])
        add(sums, part)
    ranks.reduce_gradients(policy.parameters())
    return ranks.all_reduce_sums(sums)


def policy_tokens(
    rows: list[RolloutRow], weights: list[float], layout: Layout, new: Tensor, entropy: Tensor
) -> PolicyTokens:
    """Return the input of the loss: values per row `[B]` and per token `[N]` of a micro-batch."""

    def per_row(values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=new.dtype, device=new.device)

    return PolicyTokens(
        new=new,
        row=layout.row,
        advantage=per_row([row.advantage for row in rows]),
        weight=per_row(weights),
        old=_per_token([row.old for row in rows], layout, new),
        ref=_per_token([row.ref for row in rows], layout, new),
        sampler=_per_token([row.sampler for row in rows], layout, new),
        entropy=entropy,
    )


def read(parts: list[dict[str, Tensor]]) -> list[dict[str, float]]:
    """Return numbers from a device, all read at once: each reading makes the CPU wait."""
    if not parts:
        return []
    table = torch.stack([v.to(torch.float64) for part in parts for v in part.values()])
    return [dict(zip(parts[0], row, strict=True)) for row in table.view(len(parts), -1).tolist()]


def add(sums: dict[str, float], more: dict[str, float]) -> None:
    """Add numbers by name, in place."""
    for key, value in more.items():
        sums[key] = sums.get(key, 0.0) + value


def _per_token(values: list[Any], layout: Layout, like: Tensor) -> Tensor | None:
    """Return `[N]` values of the rows in the layout's order of tokens; None if a row has none."""
    if not values or any(v is None for v in values):
        return None
    parts = [torch.as_tensor(values[i], dtype=like.dtype) for i in layout.order]
    return torch.cat(parts).to(like.device) if parts else like.detach()


def rounds_to_train(config: GRPOConfig, replay: Replay | None, say: Callable[[str], None]) -> int:
    """Return the number of rounds: `steps`, or fewer if a replay has no more.

    The schedule of the learning rate stays that of `steps`.
    """
    if replay is None or config.replay is None or config.replay.fresh:
        return config.steps
    stored = replay.rounds()
    if stored < config.steps and join_ranks().first:
        say(f"the replay ends after {stored} of {config.steps} rounds: no more are stored")
    return min(stored, config.steps)


def replay_metrics(frame: pl.DataFrame, sums: dict[str, float], step: int) -> dict[str, float]:
    """Return `ess`, the share of replayed completions, and their mean age in optimizer steps."""
    stored = frame.filter(pl.col("replayed"))
    age = (step - stored["policy_step"]).mean() if stored.height else None
    measured = {"ess": sums.get("ess", 1.0), "replayed": stored.height / frame.height}
    return measured | ({"staleness": float(age)} if age is not None else {})  # type: ignore[arg-type]


def end_replay(state: RunState, sums: dict[str, float], config: GRPOConfig, step: int) -> None:
    """Note that a replay ended before a step, and why."""
    assert config.replay is not None
    state.steps_of_round = int(sums["refused"])
    state.stopped = True
    state.ended = (
        f"ended before step {step + state.steps_of_round + 1}: the stored completions are worth "
        f"{sums['ess']:.3f} of their number to this policy, below "
        f"replay.min_ess={config.replay.min_ess:g}"
    )


def reference_is_due(state: RunState, config: GRPOConfig) -> bool:
    """Whether the policy becomes the reference after this round."""
    every = config.loss.reference_every
    return bool(config.loss.beta and every and state.round % every == 0)


def evaluation_is_due(state: RunState, config: GRPOConfig, rounds: int) -> bool:
    """Whether to evaluate: every `evaluation.every` rounds, and after the last, which may be
    the best.
    """
    every = config.evaluation.every
    return bool(every) and (state.round % every == 0 or state.round == rounds)


def judge_progress(state: RunState, step: int, config: GRPOConfig) -> None:
    """Remember the best evaluation, and stop after `patience` evaluations without a better one.

    Of two equal evaluations the later one wins, since it had more training.
    """
    value = state.metrics["eval_pass@1"]
    state.since_best = 0 if value > state.best else state.since_best + 1
    if value >= state.best:
        state.best, state.best_step = value, step
    patience = config.evaluation.patience
    state.stopped = bool(patience) and state.since_best >= patience


def watch(state: RunState, frame: pl.DataFrame, config: GRPOConfig) -> str:
    """Record the accuracy of a round; return a warning, once per run, if accuracy falls."""
    name = "accuracy" if "accuracy" in config.rewards else "reward"
    level = round_level(frame, "reward_accuracy" if name == "accuracy" else "reward")
    if level is None:
        return ""
    state.levels.append(level)
    if (z := trend(state.levels)) is not None:
        state.metrics["trend"] = z
    if state.warning:
        return ""
    state.warning = falling(state.levels, name) or ""
    return state.warning


def watch_signal(state: RunState, frame: pl.DataFrame, config: GRPOConfig) -> str:
    """Count a round in which all rewards of each group are equal: its advantages are 0, and nothing
    is learnt from it. Returns a warning at the first one.
    """
    rewarded = any(getattr(part, "weight", part) for part in config.rewards.values())
    if not rewarded or (frame["advantage"].fill_null(0.0) != 0).any():
        return ""
    state.empty_rounds += 1
    if state.empty_rounds > 1:
        return ""
    rewards = frame["reward"].drop_nulls()
    seen = "no rollout has a reward"
    if len(rewards):
        low, high = min(rewards), max(rewards)
        seen = f"rewards are equal within each group (from {low:.3g} to {high:.3g})"
    return (
        f"warning: round {state.round} has nothing to learn from: {seen}. Take problems that the "
        "model solves now and then (`where`, or other sources), more samples per problem, a higher "
        "temperature, or max_tokens that let answers end; dynamic_sampling replaces such groups"
    )


def samples_shown(frame: pl.DataFrame, step: int) -> str:
    """Return the best and the worst completion of a round, with their rewards, as text."""
    ordered = frame.sort("reward", descending=True, nulls_last=True, maintain_order=True)
    shown = ordered[[0, -1]].unique("trace_id", maintain_order=True)
    lines = [f"completions of step {step}:"]
    for prompt, text, reward, end in shown.select(
        "prompt", "completion", "reward", "finish_reason"
    ).iter_rows():
        value = "none" if reward is None else f"{reward:.3g}"
        lines.append(f"  reward {value} ({end}): ...{prompt[-80:]!r} -> {text[:400]!r}")
    return "\n".join(lines)


def finished_result(run: TrainingRun, state: RunState, updates: int) -> TrainResult:
    """Return the result of a run whose last round is done."""
    best = run.checkpoints.path / "best"
    return TrainResult(
        run.checkpoints.path / "model",
        run.checkpoints.path.name,
        state.round * updates + state.steps_of_round,
        resumed_from=run.start,
        metrics=state.metrics,
        counts={
            "rounds": state.round,
            "parameters": sum(p.numel() for p in run.policy.model.parameters()),
        },
        best_path=best if best.exists() else None,
        best_step=state.best_step if best.exists() else None,
        warning=state.warning,
        ended=state.ended,
        empty_rounds=state.empty_rounds,
    )
