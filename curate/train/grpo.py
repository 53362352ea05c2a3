"""Group-relative policy optimisation (DeepSeekMath, arXiv 2402.03300; the R1 report), in one loop.

    problems -> rollouts (engine) -> verdicts, rewards, advantages -> loss -> AdamW -> new weights into the engine

Departs from the textbook where that is the same and cheaper:
- the completions of one prompt share its computation, and prompts share their common beginning (layout.py);
- a completion whose advantage is 0 has no gradient, so without a KL term it is not computed;
- with one update a round, the policy that samples is the policy that learns: the ratio is 1, and no pass over the old
  log-probs is needed.
"""

from __future__ import annotations

import contextlib
import math
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from curate.errors import CurateError, UsageError
from curate.records import Problem
from curate.train.checkpoints import Checkpoints, TrainResult, write_whole
from curate.train.config import GRPOConfig
from curate.train.distill import check_same_tokens
from curate.train.evals import Evaluator
from curate.train.losses import PolicyTokens, policy_loss, row_weights
from curate.train.metrics import MetricsLog, record_model, round_metrics, speeds
from curate.train.model.layout import Layout, Sequence_
from curate.train.model.policy import (
    Policy,
    load_policy,
    memory_errors,
    seed_everything,
    untied,
    weights,
    write_model,
)
from curate.train.model.slabs import give_back
from curate.train.optim import learning_rate, make_optimizer, optimizer_step
from curate.train.ranks import World, join_world, shard
from curate.train.rollouts import Rollouts, problem_stream, push_directory
from curate.train.sft import final_dtype, identity
from curate.train.trend import falling, round_level, trend

if TYPE_CHECKING:
    import polars as pl

    from curate.warehouse import Warehouse

Progress = Callable[[int, int, dict[str, float]], None]

# Raised when the same config would train another model: it is part of the run's id.
TRAINER_VERSION = 1


@dataclass
class Row:
    """One completion of a round as the loss needs it."""

    tokens: Sequence_
    trace_id: str
    group: int
    advantage: float
    kept: bool  # counts in the normalisation
    sampler: list[float] | None
    old: Any = None  # [n] log-probs of the policy that sampled, where it is not the one that learns
    ref: Any = None  # [n] log-probs of the reference

    @property
    def computed(self) -> bool:
        return self.kept and (self.advantage != 0 or self.ref is not None)


@dataclass
class Run:
    """What a training run goes on from: everything here is in a checkpoint."""

    round: int = 0  # rounds that were trained on
    position: int = 0  # problems taken from the stream
    best: float = -1.0
    best_step: int = 0
    since_best: int = 0
    stopped: bool = False
    reference_step: int = 0
    # accuracy of each round with its standard error, and whether its fall was reported
    levels: list[tuple[float, float]] = field(default_factory=list)
    warning: str = ""
    metrics: dict[str, float] = field(default_factory=dict)


def train_grpo(
    config: GRPOConfig,
    wh: Warehouse,
    engine: Any,
    pool: Any,
    problems: Sequence[Problem],
    progress: Progress | None = None,
    *,
    held_out: Sequence[Problem] = (),
    problems_refs: Sequence[str] = (),
    model_name: str = "",
    kind: str = "grpo",
    say: Callable[[str], None] = lambda text: None,
) -> TrainResult:
    """Train `config.model` on `problems`; returns at once where the same run is finished.

    `engine` holds a model of the same architecture; it is given the policy's weights here, and keeps the last ones.
    `held_out` problems are sampled every `evaluation.every` steps. Under `torchrun` only the first rank needs engine
    and pool. Raises UsageError for what was asked wrongly, CurateError for a loss or gradient that is not finite.
    """
    from curate.engines.models import weights_hash
    from curate.warehouse.identity import digest

    if not problems:
        raise UsageError("grpo: no problems to train on: check the problems' name and split")
    parent = weights_hash(config.model)
    ids = digest(sorted(p.problem_id for p in problems), sorted(p.problem_id for p in held_out))
    reference_hash = weights_hash(config.loss.reference) if config.loss.reference else ""
    run_id = digest(
        "grpo",
        TRAINER_VERSION,
        identity(config),
        parent,
        reference_hash,
        ids,
        getattr(engine, "label", getattr(engine, "name", "")),
    )
    world = join_world()
    run_id = world.share(run_id[:16])
    checkpoints = Checkpoints(wh.root, run_id, config.checkpoint.keep_last)
    if done := checkpoints.finished():
        return done

    seed_everything(config.seed)
    start = checkpoints.steps()[-1] if checkpoints.steps() else 0
    path = (
        checkpoints.directory(start) / "model"
        if start and not config.compute.lora
        else config.model
    )
    policy, tokenizer = load_policy(path, config.compute)
    shard(policy, world, config.compute)
    optimizer = make_optimizer(policy, config.optim)
    run = Run()
    if start:
        run = Run(**checkpoints.load(start, policy, optimizer, world)["run"])
    reference = load_reference(config, checkpoints, run)
    name = model_name or config.model
    rollouts = Rollouts(
        config, wh, engine, pool, run_id, tokenizer, list(problems_refs), name, parent
    )
    facts = {"parents": [rollouts.traces.ref], "config": config.model_dump(mode="json")}
    log = MetricsLog(wh, config.name, run_id, world, config.trackers, **facts)
    evaluator = Evaluator(config, engine, pool, held_out, rollouts.prompt, tokenizer, rollouts.form)
    per_round = config.mini_batches * config.epochs
    total = config.steps * per_round
    dtype = final_dtype(config.checkpoint.dtype, config.model)
    full = push_weights(rollouts, policy, tokenizer, dtype, world)
    if config.evaluation.every and held_out and run.round == 0:
        run.metrics = world.share(evaluator.run(0) if world.first else None)
        judge_progress(run, 0, config)
        if config.checkpoint.keep_best and world.first:  # training may raise nothing above the start
            checkpoints.save_best(partial(write_model, policy, tokenizer, dtype=dtype, state=full))
        log.add(0, run.metrics)
        log.publish()

    while run.round < config.steps and not run.stopped:
        began, step = time.perf_counter(), run.round * per_round
        # 1. Roll out, judge, reward. Ranks other than the first wait for the rows.
        frame = world.share(collect(rollouts, run, problems, step) if world.first else None)
        if world.first and shares_gpu(policy.device, engine):
            rollouts.rest()
        sampled = time.perf_counter()

        # 2. What the loss needs and does not change while the round is trained on.
        rows = loss_rows(frame, config)
        with memory_errors(step + 1):
            fix_logprobs(rows, policy, reference, config, world)
            # 3. One step of the optimizer for each mini-batch, epoch after epoch.
            sums: dict[str, float] = {}
            for update, batch in enumerate(
                b for _ in range(config.epochs) for b in mini_batches(rows, config)
            ):
                part = grpo_step(policy, batch, config, world, step + update + 1)
                lr = learning_rate(step + update, total, config.optim)
                if part[
                    "computed"
                ]:  # nothing to learn from: momentum alone must not move the policy
                    part["grad_norm"] = optimizer_step(
                        policy, optimizer, lr, config.optim.max_grad_norm
                    )
                    check_finite(part["grad_norm"], "gradient", step + update + 1, batch)
                add(sums, part)
        trained = time.perf_counter()
        run.round += 1
        step = run.round * per_round

        # 4. The new weights go into the engine, which proves that they arrived.
        full = push_weights(rollouts, policy, tokenizer, dtype, world)
        if (
            config.loss.reference_every
            and run.round % config.loss.reference_every == 0
            and config.loss.beta
        ):
            reference = new_reference(policy, tokenizer, checkpoints, run, world, config)

        # 5. Measure, evaluate, keep.
        run.metrics = round_metrics(frame, sums, config, updates=per_round) | {"lr": lr}
        run.metrics |= speeds(
            run.metrics, sampled - began, trained - sampled, time.perf_counter() - began
        )
        if (text := watch(run, frame, config)) and world.first:
            say(text)
        if config.evaluation.every and held_out and run.round % config.evaluation.every == 0:
            run.metrics |= world.share(evaluator.run(step) if world.first else None)
            judge_progress(run, step, config)
            if run.best_step == step and config.checkpoint.keep_best and world.first:
                checkpoints.save_best(
                    partial(write_model, policy, tokenizer, dtype=dtype, state=full)
                )
        log.add(step, run.metrics)
        log.publish()
        if world.first:
            if config.show_every and run.round % config.show_every == 0:
                say(samples_shown(frame, step))
            if progress:
                progress(run.round, config.steps, run.metrics)
        last = run.round == config.steps or run.stopped
        if config.checkpoint.every and run.round % config.checkpoint.every == 0 and not last:
            checkpoints.save(step, policy, tokenizer, optimizer, world, run=asdict(run))
            drop_references(checkpoints, run, world)
            rollouts.forget_tokens()
        if world.first:
            rollouts.expire_tokens()

    log.seal()
    result = TrainResult(
        checkpoints.path / "model",
        run_id,
        run.round * per_round,
        resumed_from=start,
        metrics=run.metrics,
        warning=run.warning,
    )
    result.counts = {
        "rounds": run.round,
        "parameters": sum(p.numel() for p in policy.model.parameters()),
    }
    full = weights(policy)
    if world.first:
        rollouts.seal()
        best = checkpoints.path / "best"
        if best.exists():
            result.best_path, result.best_step = best, run.best_step
        inputs = {"model": parent, "problems": list(problems_refs)}

        def record() -> None:
            # The engine may be asked to start again from where its weights lie: that must be a place that stays.
            engine.update_weights(result.model_path)
            shutil.rmtree(push_directory(wh.root, run_id), ignore_errors=True)
            record_model(
                wh, result, config.name, kind, parent, inputs, config.model_dump(mode="json")
            )
            if result.best_step and result.best_step != result.steps:
                kept = replace(result, model_path=best, steps=result.best_step)
                record_model(
                    wh, kept, config.name, kind, parent, inputs, config.model_dump(mode="json")
                )

        checkpoints.finish(
            partial(write_model, policy, tokenizer, dtype=dtype, state=full), result, record
        )
    world.barrier()
    return result


# --- the parts of a round, in the order of the loop


def collect(rollouts: Rollouts, run: Run, problems: Sequence[Problem], step: int) -> pl.DataFrame:
    """The rollouts of one round. With dynamic sampling, groups of equal rewards are replaced by fresh ones (DAPO, 3.2).

    Moves `run.position` on in the stream of problems. When fresh rounds run out, groups of equal rewards fill the rest.
    """
    import polars as pl

    config = rollouts.config
    wanted = min(config.prompts, len(problems))
    good: list[pl.DataFrame] = []
    dull: list[pl.DataFrame] = []
    for extra in range(1 + config.dynamic_sampling):
        drawn = problem_stream(problems, config.seed, run.position, wanted)
        run.position += len(drawn)
        frame = rollouts.round(f"step-{step:06d}" + (f"-{extra}" if extra else ""), step, drawn)
        for _, group in frame.group_by("group", maintain_order=True):
            taught = config.dynamic_sampling == 0 or group["reward"].drop_nulls().n_unique() > 1
            (good if taught else dull).append(group)
        if len(good) >= wanted:
            break
    groups = [*good, *dull][:wanted]
    return pl.concat([g.with_columns(group=pl.lit(i, pl.Int64)) for i, g in enumerate(groups)])


def loss_rows(frame: pl.DataFrame, config: GRPOConfig) -> list[Row]:
    """Rows of the loss; a failed request, an unknown reward and, where asked, a truncated trace are not kept."""
    import polars as pl

    kept = (
        pl.col("reward").is_not_null()
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
    )
    return [
        Row(Sequence_(prompt, completion or []), trace, group, advantage or 0.0, keep, logprobs)
        for prompt, completion, trace, group, advantage, keep, logprobs in columns.iter_rows()
    ]


def fix_logprobs(
    rows: list[Row], policy: Policy, reference: Policy | None, config: GRPOConfig, world: World
) -> None:
    """Log-probs of the reference, and of the policy before the round where it will move within it."""
    temperature = config.sampling.temperature
    kept = [r for r in rows if r.kept]
    if config.loss.beta and kept:
        with policy.without_adapters() if reference is None else contextlib.nullcontext():
            values = (reference or policy).all_logprobs(
                [r.tokens for r in kept], temperature=temperature, world=world
            )
        for row, value in zip(kept, values, strict=True):
            row.ref = value
    live = [r for r in rows if r.computed]
    if config.mini_batches * config.epochs > 1 and live:
        values = policy.all_logprobs([r.tokens for r in live], temperature=temperature, world=world)
        for row, value in zip(live, values, strict=True):
            row.old = value


def mini_batches(rows: list[Row], config: GRPOConfig) -> list[list[Row]]:
    """The round in `mini_batches` equal shares of whole groups."""
    groups = max(r.group for r in rows) + 1
    size = math.ceil(groups / config.mini_batches)
    return [
        [r for r in rows if start <= r.group < start + size] for start in range(0, groups, size)
    ]


def grpo_step(
    policy: Policy, batch: list[Row], config: GRPOConfig, world: World, step: int
) -> dict[str, float]:
    """Gradients of one mini-batch, summed over micro-batches and ranks; returns sums for the metrics."""
    import torch

    lengths = torch.tensor([len(r.tokens.completion) for r in batch])
    kept = torch.tensor([r.kept for r in batch])
    # One weight a row for the whole mini-batch, whatever micro-batches and ranks make of it.
    share = row_weights(
        lengths, kept, config.loss.normalisation, config.sampling.max_tokens
    ).tolist()
    pairs = [(row, weight) for row, weight in zip(batch, share, strict=True) if row.computed]
    own = world.mine(pairs)
    sums: dict[str, float] = {"computed": float(len(own))}
    for cut in policy.cut([row.tokens for row, _ in own], world):
        part = [own[i] for i in cut]
        layout = policy.lay([row.tokens for row, _ in part])
        new, entropy = policy.logprobs(
            layout, temperature=config.sampling.temperature, entropy=True
        )
        tokens = PolicyTokens(
            new=new,
            row=layout.row,
            advantage=torch.tensor(
                [row.advantage for row, _ in part], dtype=new.dtype, device=new.device
            ),
            weight=torch.tensor([weight for _, weight in part], dtype=new.dtype, device=new.device),
            old=_joined([row.old for row, _ in part], layout, new),
            ref=_joined([row.ref for row, _ in part], layout, new),
            sampler=_joined([row.sampler for row, _ in part], layout, new),
        )
        out = policy_loss(
            tokens,
            clip_low=config.loss.clip_low,
            clip_high=config.loss.clip_high,
            ratio=config.loss.ratio,
            beta=config.loss.beta,
            kl=config.loss.kl,
            sampler_cap=config.loss.sampler_cap,
        )
        check_finite(out.loss.item(), "loss", step, [row for row, _ in part])
        out.loss.backward()
        give_back(policy.device)
        measured = {
            "loss": out.loss.item(),
            "entropy": float(entropy.sum()),
            "trained_tokens": float(layout.tokens),
        }
        add(sums, out.sums | measured)
    world.reduce_gradients(policy)
    return world.add_up(sums)


def add(sums: dict[str, float], more: dict[str, float]) -> None:
    """Add numbers by name, in place."""
    for key, value in more.items():
        sums[key] = sums.get(key, 0.0) + value


def _joined(values: list[Any], layout: Layout, like: Any) -> Any:
    """`[N]` values of the rows, in the order in which the layout put their tokens; None where a row has none."""
    import torch

    if not values or any(v is None for v in values):
        return None
    parts = [
        torch.as_tensor(values[i], dtype=like.dtype)
        for i in layout.row.unique_consecutive().tolist()
    ]
    return torch.cat(parts).to(like.device) if parts else like.detach()


def check_finite(value: float, what: str, step: int, rows: list[Row]) -> None:
    """Raises CurateError for nan or an infinity, with the step and its traces."""
    if math.isfinite(value):
        return
    traces = [r.trace_id for r in rows if r.computed]
    raise CurateError(
        f"the {what} of step {step} is not finite; its traces: {', '.join(traces[:8])}{' ...' * (len(traces) > 8)}. No "
        "step was made and the last checkpoint is intact: lower optim.lr, or try compute.precision=fp32"
    )


def push_weights(
    rollouts: Rollouts, policy: Policy, tokenizer: Any, dtype: str, world: World
) -> dict[str, Any]:
    """The policy's weights into the engine, which returns the fingerprint of what it then holds; the weights."""
    import torch

    full = weights(policy, getattr(torch, dtype))
    if not world.first:
        return full
    rollouts.rouse()
    if getattr(rollouts.engine, "transfers", False):  # from GPU to GPU, without files
        rollouts.model_hash = rollouts.engine.receive_weights(untied(policy, full), policy.device)
        return full
    at = push_directory(rollouts.wh.root, rollouts.run_id)
    at.mkdir(parents=True, exist_ok=True)
    write_model(policy, tokenizer, at, dtype, full)
    rollouts.model_hash = rollouts.engine.update_weights(at)
    return full


def shares_gpu(device: Any, engine: Any) -> bool:
    """Whether the engine must give its memory back while the trainer works on `device`."""
    return (
        device.type == "cuda" and getattr(getattr(engine, "config", None), "devices", None) is None
    )


def load_reference(config: GRPOConfig, checkpoints: Checkpoints, run: Run) -> Policy | None:
    """The frozen policy of the KL term; None without one, or where it is the policy with its adapters switched off."""
    given = config.loss.reference
    if not config.loss.beta or (config.compute.lora and not given and not run.reference_step):
        return None
    path = (
        checkpoints.path / f"reference-{run.reference_step}"
        if run.reference_step
        else given or config.model
    )
    reference, _ = load_policy(
        path, config.compute.model_copy(update={"lora": None, "gradient_checkpointing": False})
    )
    reference.model.requires_grad_(False)
    if given:
        check_same_tokens(given, config.model)
    return reference


def new_reference(
    policy: Policy,
    tokenizer: Any,
    checkpoints: Checkpoints,
    run: Run,
    world: World,
    config: GRPOConfig,
) -> Policy | None:
    """The policy of now becomes the reference (the report: every 400 steps)."""
    full = weights(policy)
    run.reference_step = run.round
    if world.first:
        at = checkpoints.path / f"reference-{run.reference_step}"
        write_whole(at, lambda beside: write_model(policy, tokenizer, beside, "float32", full))
    world.barrier()
    return load_reference(config, checkpoints, run)


def judge_progress(run: Run, step: int, config: GRPOConfig) -> None:
    """Note the best evaluation; stop when pass@1 has not risen for `patience` evaluations.

    Of two equal evaluations the later one is the best: more training went into it.
    """
    value = run.metrics["eval_pass@1"]
    run.since_best = 0 if value > run.best else run.since_best + 1
    if value >= run.best:
        run.best, run.best_step = value, step
    run.stopped = bool(config.evaluation.patience) and run.since_best >= config.evaluation.patience


def watch(run: Run, frame: pl.DataFrame, config: GRPOConfig) -> str:
    """Note the level of a round; a warning, once per run, when the level falls."""
    name = "accuracy" if "accuracy" in config.rewards else "reward"
    level = round_level(frame, "reward_accuracy" if name == "accuracy" else "reward")
    if level is None:
        return ""
    run.levels.append(level)
    if (z := trend(run.levels)) is not None:
        run.metrics["trend"] = z
    if run.warning:
        return ""
    run.warning = falling(run.levels, name) or ""
    return run.warning


def samples_shown(frame: pl.DataFrame, step: int) -> str:
    """The best and the worst completion of a round, with their rewards."""
    ordered = frame.sort("reward", descending=True, nulls_last=True, maintain_order=True)
    some = ordered[[0, -1]].unique("trace_id", maintain_order=True)
    lines = [f"completions of step {step}:"]
    for prompt, text, reward, end in some.select(
        "prompt", "completion", "reward", "finish_reason"
    ).iter_rows():
        value = "none" if reward is None else f"{reward:.3g}"
        lines.append(f"  reward {value} ({end}): ...{prompt[-80:]!r} -> {text[:400]!r}")
    return "\n".join(lines)


def drop_references(checkpoints: Checkpoints, run: Run, world: World) -> None:
    """Remove references that no checkpoint goes on from."""
    for old in checkpoints.path.glob("reference-*") if world.first else ():
        if old.name != f"reference-{run.reference_step}":
            shutil.rmtree(old, ignore_errors=True)
