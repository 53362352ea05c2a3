"""Parts that trainers share: set-up, the loop over batches, and the finish of a run."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol, TypeVar

import torch

from curate.errors import CurateError
from curate.train.checkpoints import Checkpoints
from curate.train.config import DPOConfig, GRPOConfig, SFTConfig
from curate.train.metrics import MetricsLog, record_model
from curate.train.model.devices import is_out_of_memory
from curate.train.model.loading import load_policy, stored_dtype, weights, write_model
from curate.train.model.policy import Policy
from curate.train.model.sharding import shard
from curate.train.optim import learning_rate, make_optimizer, optimizer_step
from curate.train.ranks import Ranks
from curate.train.result import TrainResult
from curate.warehouse import Warehouse

# Called with (step, all steps, metrics) after each step.
ProgressCallback = Callable[[int, int, dict[str, float]], None]


class Traced(Protocol):
    """An item of a batch, named by its trace in error messages."""

    trace_id: str


Item = TypeVar("Item", bound=Traced)


@dataclass
class TrainingRun:
    """One run of a trainer: a policy and its optimizer, as of the last checkpoint."""

    config: SFTConfig | DPOConfig | GRPOConfig
    wh: Warehouse
    ranks: Ranks
    checkpoints: Checkpoints
    policy: Policy
    tokenizer: Any
    optimizer: Any
    start: int  # steps in the checkpoint that this process started from
    saved: dict[str, Any] = field(default_factory=dict)  # the trainer's own state in it

    @property
    def export_dtype(self) -> str:
        """The dtype of the finished model and of the weights that engines get."""
        dtype = self.config.checkpoint.dtype
        return stored_dtype(self.config.model) if dtype == "auto" else dtype

    def finish(
        self,
        result: TrainResult,
        kind: str,
        parent: str,
        inputs: dict[str, Any],
        before_record: Callable[[], None] = lambda: None,
    ) -> TrainResult:
        """Write the finished model and its row in `models`. Every rank must call this.

        `before_record` runs between the two: the model has its final place by then.
        """
        state = weights(self.policy)
        if self.ranks.first:
            settings = self.config.model_dump(mode="json")

            def record() -> None:
                before_record()
                record_model(self.wh, result, self.config.name, kind, parent, inputs, settings)
                if result.best_path and result.best_step and result.best_step != result.steps:
                    best = replace(result, model_path=result.best_path, steps=result.best_step)
                    record_model(self.wh, best, self.config.name, kind, parent, inputs, settings)

            write = partial(
                write_model, self.policy, self.tokenizer, dtype=self.export_dtype, state=state
            )
            self.checkpoints.finish(write, result, record)
        self.ranks.barrier()
        return result


def start_run(
    config: SFTConfig | DPOConfig | GRPOConfig,
    wh: Warehouse,
    checkpoints: Checkpoints,
    ranks: Ranks,
    say: Callable[[str], None] = lambda text: None,
) -> TrainingRun:
    """Load the model, from the last checkpoint if there is one, shard it and make the optimizer."""
    torch.manual_seed(config.seed)  # the adapters' first weights, and dropout
    start = checkpoints.steps()[-1] if checkpoints.steps() else 0
    # Adapters are in the optimizer's part of a checkpoint; its model has them merged.
    resumed = start and not config.compute.lora
    path = checkpoints.directory(start) / "model" if resumed else config.model
    # SFT may use the model's dropout; the others compare log-probs and must not.
    dropout = isinstance(config, SFTConfig)
    with memory_errors("while the model was loaded"):
        policy, tokenizer = load_policy(path, config.compute, dropout=dropout)
    if ranks.first:
        say(f"the model is computed as {policy.describe()}")
    shard(policy, ranks, config.compute)
    optimizer = make_optimizer(policy, config.optim)
    saved = checkpoints.load(start, policy, optimizer, ranks) if start else {}
    return TrainingRun(config, wh, ranks, checkpoints, policy, tokenizer, optimizer, start, saved)


def train_batches(
    run: TrainingRun,
    log: MetricsLog,
    items: Sequence[Item],
    batches: Sequence[Sequence[int]],
    gradients: Callable[[list[Item]], dict[str, float]],
    progress: ProgressCallback | None = None,
) -> dict[str, float]:
    """Make one optimizer step per batch, a list of indices of `items`; return the last metrics.

    `gradients` computes the gradients of a batch and returns its metrics: `loss`, `tokens` and any
    others. Raises CurateError for a loss or gradient that is not finite.
    """
    config, total = run.config, len(batches)
    metrics: dict[str, float] = {}
    for step in range(run.start, total):
        began = time.perf_counter()
        batch = [items[i] for i in batches[step]]
        traces = [item.trace_id for item in batch]
        with memory_errors(f"at step {step + 1}"):
            metrics = gradients(batch)
            check_finite(metrics["loss"], "loss", step + 1, traces)
            lr = learning_rate(step, total, config.optim)
            norm = optimizer_step(run.policy, run.optimizer, lr, config.optim.max_grad_norm)
            check_finite(norm, "gradient", step + 1, traces)
        rate = metrics["tokens"] / (time.perf_counter() - began)
        metrics |= {"grad_norm": norm, "lr": lr, "tokens_per_second": rate}
        log.add(step + 1, metrics)
        if progress and run.ranks.first:
            progress(step + 1, total, metrics)
        every = config.checkpoint.every
        if every and (step + 1) % every == 0 and step + 1 < total:
            # Metrics are published first, so that steps before a checkpoint are not recorded twice.
            log.publish()
            run.checkpoints.save(step + 1, run.policy, run.tokenizer, run.optimizer, run.ranks)
    log.publish()
    log.seal()
    return metrics


def config_identity(config: SFTConfig | DPOConfig | GRPOConfig) -> dict[str, Any]:
    """Return the part of a config that determines the trained weights.

    Models, corpora and data enter a run's id by hash, not by path.
    """
    aside = {"name", "model", "teacher", "corpus", "checkpoint", "trackers", "show_every"}
    if isinstance(config, DPOConfig):
        aside |= {"reference", "traces", "pairs"}
    # Absent unless used, so that runs of versions without it keep their ids.
    if getattr(config, "replay", None) is None:
        aside.add("replay")
    return config.model_dump(mode="json", exclude=aside)


def check_finite(value: float, what: str, step: int, trace_ids: Sequence[str]) -> None:
    """Raise CurateError for nan or infinity, naming the step and its traces."""
    if math.isfinite(value):
        return
    traces = ", ".join(trace_ids[:8]) + " ..." * (len(trace_ids) > 8)
    raise CurateError(
        f"the {what} of step {step} is not finite; its traces: {traces}. No step was made and the "
        "last checkpoint is intact: lower optim.lr, or try compute.precision=fp32"
    )


@contextlib.contextmanager
def memory_errors(when: str) -> Iterator[None]:
    """Turn running out of memory into one message that names the settings to lower.

    `when` completes the message, such as "at step 3".
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise CurateError(
            f"out of memory {when}: lower compute.micro_batch_tokens (then "
            "compute.logprob_chunk), or set compute.gradient_checkpointing=true; the last "
            "checkpoint is intact"
        ) from error
