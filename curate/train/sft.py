"""Supervised fine-tuning on a corpus: the loss is on completions only, and their end token is trained.

    corpus -> token ids -> an order of batches, known in advance -> for each batch: loss, gradient, step

Departs from the textbook where that is faster and the same: examples lie in one row without padding and see only
themselves; a beginning that all prompts of a micro-batch share (the template) is computed once; logits exist for a
chunk of completion positions at a time.
"""

from __future__ import annotations

import math
import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from curate.errors import CurateError, UsageError
from curate.train.checkpoints import Checkpoints, TrainResult
from curate.train.config import Mixture, SFTConfig
from curate.train.losses import sft_loss
from curate.train.metrics import MetricsLog, record_model
from curate.train.model.layout import Layout, Sequence_
from curate.train.model.policy import (
    Policy,
    load_policy,
    memory_errors,
    seed_everything,
    weights,
    write_model,
)
from curate.train.model.slabs import give_back
from curate.train.optim import learning_rate, make_optimizer, optimizer_step
from curate.train.ranks import World, join_world, shard

if TYPE_CHECKING:
    import polars as pl
    from torch import Tensor

    from curate.warehouse import Version, Warehouse

Progress = Callable[[int, int, dict[str, float]], None]

# Raised when the same config would train another model: it is part of the run's id.
TRAINER_VERSION = 1


TAG = r"</?[a-z_]+>"


@dataclass
class Example:
    """One row of a corpus as token ids; `weight` multiplies its loss."""

    tokens: Sequence_
    weight: float
    trace_id: str
    difficulty: float
    tags: int = 0  # how often its completion opens or closes a tag, such as <think>


# From the policy, a laid micro-batch and the weight of each token to this micro-batch's share of the loss.
Objective = Callable[[Policy, Layout, "Tensor"], "Tensor"]


def train_sft(
    config: SFTConfig,
    wh: Warehouse,
    progress: Progress | None = None,
    *,
    objective: Objective | None = None,
    kind: str = "sft",
    inputs: dict[str, Any] | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> TrainResult:
    """Fine-tune `config.model` on `config.corpus`; returns at once where the same run is finished.

    `say` is given an example with its mask before the first step. `objective` is another loss than that of SFT,
    `inputs` what it depends on beside the config (see distill.py). Raises UsageError for a missing corpus, column or
    model, CurateError for a loss that is not finite.
    """
    from curate.engines.models import weights_hash
    from curate.warehouse.identity import digest

    corpora = [(wh.latest("corpora", part.corpus), part) for part in mixture(config)]
    parent = weights_hash(config.model)
    inputs = {"model": parent, "corpora": [version.ref for version, _ in corpora], **(inputs or {})}
    run_id = digest(kind, TRAINER_VERSION, identity(config), inputs)[:16]
    checkpoints = Checkpoints(wh.root, run_id, config.checkpoint.keep_last)
    if done := checkpoints.finished():
        return done

    world = join_world()
    seed_everything(config.seed)
    start = checkpoints.steps()[-1] if checkpoints.steps() else 0
    path = checkpoints.directory(start) / "model" if start else config.model
    policy, tokenizer = load_policy(config.model if config.compute.lora else path, config.compute)
    examples, counts = load_examples(corpora, config, tokenizer)
    batches = order(examples, config)
    for i in batches[0]:
        check_labels(examples[i], tokenizer)
    if world.first:
        say(
            f"the first example; trained is what stands between the marks:\n{show_example(examples[0], tokenizer)}"
        )
    total = len(batches)
    shard(policy, world, config.compute)
    optimizer = make_optimizer(policy, config.optim)
    if start:
        checkpoints.load(start, policy, optimizer, world)
    facts = {"parents": inputs["corpora"], "config": config.model_dump(mode="json")}
    log = MetricsLog(wh, config.name, run_id, world, config.trackers, **facts)
    metrics: dict[str, float] = {}

    for step in range(start, total):
        began = time.perf_counter()
        with memory_errors(step + 1):
            loss, tokens = sft_step(
                policy, [examples[i] for i in batches[step]], world, objective or likelihood
            )
            check_finite(loss, "loss", step + 1, [examples[i] for i in batches[step]])
            lr = learning_rate(step, total, config.optim)
            norm = optimizer_step(policy, optimizer, lr, config.optim.max_grad_norm)
            check_finite(norm, "gradient", step + 1, [examples[i] for i in batches[step]])
        seconds = time.perf_counter() - began
        metrics = {
            "loss": loss,
            "grad_norm": norm,
            "lr": lr,
            "tokens": tokens,
            "tokens_per_second": tokens / seconds,
        }
        log.add(step + 1, metrics)
        if progress and world.first:
            progress(step + 1, total, metrics)
        if (
            config.checkpoint.every
            and (step + 1) % config.checkpoint.every == 0
            and step + 1 < total
        ):
            log.publish()  # first: steps that a checkpoint covers are not measured again
            checkpoints.save(step + 1, policy, tokenizer, optimizer, world)

    log.publish()
    log.seal()
    result = TrainResult(
        checkpoints.path / "model",
        run_id,
        total,
        resumed_from=start,
        metrics=metrics,
        counts=counts,
    )
    dtype = final_dtype(config.checkpoint.dtype, config.model)
    full = weights(policy)
    if world.first:
        settings = config.model_dump(mode="json")
        record = partial(record_model, wh, result, config.name, kind, parent, inputs, settings)
        checkpoints.finish(
            partial(write_model, policy, tokenizer, dtype=dtype, state=full), result, record
        )
    world.barrier()
    return result


def likelihood(policy: Policy, layout: Layout, weight: Tensor) -> Tensor:
    """The objective of SFT."""
    return sft_loss(policy.logprobs(layout)[0], weight)


def sft_step(
    policy: Policy, examples: list[Example], world: World, objective: Objective
) -> tuple[float, int]:
    """Gradients of one batch: loss over the whole of it, and tokens that went through the model, over all ranks."""
    import torch

    # One number for the whole batch, whatever micro-batches and ranks make of it.
    count = sum(e.weight * len(e.tokens.completion) for e in examples)
    own = world.mine(
        sorted(examples, key=lambda e: -len(e.tokens.prompt) - len(e.tokens.completion))
    )
    loss, tokens = 0.0, 0
    for cut in policy.cut([e.tokens for e in own], world):
        layout = policy.lay([own[i].tokens for i in cut])
        weight = torch.tensor([own[i].weight / count for i in cut], device=policy.device)[
            layout.row
        ]
        part = objective(policy, layout, weight)
        part.backward()
        give_back(policy.device)
        loss += float(part.detach())
        tokens += layout.tokens
    world.reduce_gradients(policy)
    sums = world.add_up({"loss": loss, "tokens": tokens})
    return sums["loss"], int(sums["tokens"])


def mixture(config: SFTConfig) -> list[Mixture]:
    """The corpora of a config as a mixture; one name is a mixture of one."""
    return [Mixture(corpus=config.corpus)] if isinstance(config.corpus, str) else config.corpus


def identity(config: Any) -> dict[str, Any]:
    """What of a config determines the trained weights: paths and what only says where or how often to save do not."""
    aside = {"name", "model", "teacher", "corpus", "checkpoint", "trackers", "show_every"}
    return config.model_dump(mode="json", exclude=aside)


def load_examples(
    corpora: list[tuple[Version, Mixture]], config: SFTConfig, tokenizer: Any
) -> tuple[list[Example], dict[str, int]]:
    """Rows of the corpora as token ids, too long ones truncated, skipped or refused; and what was counted."""
    import polars as pl

    examples: list[Example] = []
    counts = {"examples": 0, "too_long": 0, "tokens": 0}
    for version, part in corpora:
        frame = corpus_rows(version, part, config)
        if frame.is_empty():
            continue
        prompts = encode_all(tokenizer, frame["prompt"].to_list())
        completions = tokenizer(frame["completion"].to_list(), add_special_tokens=False)[
            "input_ids"
        ]
        tags = pl.col("completion").str.count_matches(TAG)
        rows = frame.select("weight", "trace_id", "difficulty", tags).iter_rows()
        for prompt, completion, (weight, trace_id, *rest) in zip(
            prompts, completions, rows, strict=True
        ):
            whole = [*completion, tokenizer.eos_token_id]
            if len(prompt) + len(whole) > config.max_length:
                counts["too_long"] += 1
                if config.too_long == "fail":
                    raise UsageError(
                        f"corpus {part.corpus}: trace {trace_id} has {len(prompt) + len(whole)} tokens, more than "
                        f"max_length={config.max_length}: raise max_length, or set too_long to truncate or skip"
                    )
                whole = whole[: config.max_length - len(prompt)]
                if config.too_long == "skip" or not whole:
                    continue
            examples.append(Example(Sequence_(prompt, whole), weight, trace_id, *rest))
    if not examples:
        raise UsageError(
            f"nothing to train on: all {counts['too_long']} rows are longer than max_length={config.max_length} tokens"
            if counts["too_long"]
            else "the corpus is empty: loosen the rules of the filter that made it (`curate sql` on the table funnel)"
        )
    counts["examples"] = len(examples)
    counts["tokens"] = sum(len(e.tokens.completion) for e in examples)
    return examples, counts


def corpus_rows(version: Version, part: Mixture, config: SFTConfig) -> pl.DataFrame:
    """Columns `prompt, completion, weight, trace_id, difficulty` of a corpus, weighted by mixture and domain."""
    import polars as pl

    columns = {"prompt", "completion", "weight", "trace_id", "difficulty", "domain", "problem_id"}
    frame = version.read().collect()
    if missing := {"prompt", "completion"} - set(frame.columns):
        raise UsageError(
            f"corpus {version.ref} has no column {', '.join(sorted(missing))}: was it made by a filter?"
        )
    frame = frame.select([c for c in frame.columns if c in columns])
    for name in ("prompt", "completion"):
        if nulls := frame[name].null_count():
            raise UsageError(f"corpus {version.ref}: {nulls} rows have no {name}")
    domain = pl.col("domain").replace_strict(
        config.domain_weights, default=1.0, return_dtype=pl.Float64
    )
    weight = (
        pl.col("weight").fill_null(1.0)
        * part.weight
        * (domain.fill_null(1.0) if config.domain_weights else 1.0)
    )
    frame = (
        frame.with_columns(weight=weight)
        .filter(pl.col("weight") > 0)
        .sort("problem_id", "trace_id", "completion")
    )
    if part.share != 1 and len(frame):
        whole, rest = divmod(round(part.share * len(frame)), len(frame))
        some = frame.sample(rest, seed=config.seed) if rest else frame.head(0)
        frame = pl.concat([frame] * whole + [some])
    return frame.with_columns(
        pl.col("difficulty").fill_null(0.5), pl.col("trace_id").fill_null(pl.col("problem_id"))
    )


def encode_all(tokenizer: Any, prompts: list[str]) -> list[list[int]]:
    """Token ids of prompts, as engines make them: special tokens added, but never a second BOS."""
    from curate.engines.base import encode

    cache: dict[str, list[int]] = {}
    return [
        cache.setdefault(p, encode(tokenizer, p)) if p not in cache else cache[p] for p in prompts
    ]


def order(examples: list[Example], config: SFTConfig) -> list[list[int]]:
    """Indices of the examples of every step of all epochs: an own shuffle an epoch, or easy first in the first."""
    wanted = max(1, round(config.epochs * len(examples)))
    indices: list[int] = []
    epoch = 0
    while len(indices) < wanted:
        shuffled = list(range(len(examples)))
        random.Random(f"{config.seed}:{epoch}").shuffle(shuffled)
        if config.order == "difficulty" and epoch == 0:
            shuffled.sort(key=lambda i: examples[i].difficulty)
        indices += shuffled
        epoch += 1
    indices = indices[:wanted]
    return [indices[i : i + config.batch_size] for i in range(0, len(indices), config.batch_size)]


def check_labels(example: Example, tokenizer: Any) -> None:
    """What is trained must be the completion with all its tags (but for what was truncated). Raises CurateError."""
    ids = list(example.tokens.completion)
    text = tokenizer.decode(ids, skip_special_tokens=False)
    if ids and ids[-1] != tokenizer.eos_token_id and len(ids) < 2:
        raise CurateError("the labels of the first example hold no token of the completion")
    written = tokenizer.decode(ids[:-1], skip_special_tokens=False).replace(
        tokenizer.unk_token or "<unk>", ""
    )
    kept = len(re.findall(TAG, written))
    if ids and ids[-1] == tokenizer.eos_token_id and kept < example.tags:
        raise CurateError(
            f"the tokenizer loses {example.tags - kept} of the {example.tags} tags of trace {example.trace_id}: the "
            f"model could not learn to write them. It reads {text[:200]!r}: use another tokenizer, or another form"
        )
    unknown = tokenizer.unk_token_id
    if unknown is not None and ids.count(unknown) > len(ids) // 2:
        raise CurateError(
            f"the tokenizer does not know most of the first completion: it reads {text[:200]!r}"
        )


def show_example(example: Example, tokenizer: Any) -> str:
    """An example with its mask: what is only read, and between the marks what is trained."""
    read = tokenizer.decode(example.tokens.prompt, skip_special_tokens=False)
    trained = tokenizer.decode(example.tokens.completion, skip_special_tokens=False)
    return f"{read}⟦{trained}⟧"


def final_dtype(wanted: str, model: str) -> str:
    from curate.train.model.policy import stored_dtype

    return stored_dtype(model) if wanted == "auto" else wanted


def check_finite(value: float, what: str, step: int, examples: list[Example]) -> None:
    """Raises CurateError for nan or an infinity, with the step and its traces."""
    if math.isfinite(value):
        return
    traces = ", ".join(e.trace_id for e in examples[:8]) + (" ..." if len(examples) > 8 else "")
    raise CurateError(
        f"the {what} of step {step} is not finite; its traces: {traces}. No step was made and the last checkpoint is "
        "intact: lower optim.lr, or try compute.precision=fp32"
    )
