"""Supervised fine-tuning on a corpus: the loss is on completions only, end token included.

    corpus -> token ids -> a predetermined order of batches -> per batch: loss, gradient, step

Departs from the textbook if the result is the same and faster: examples are in one row without
padding and see only themselves; a beginning that all prompts of a micro-batch share (the template)
is computed once; logits exist for a chunk of completion positions at a time.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl
import torch
from torch import Tensor

from curate.engines.base import encode
from curate.engines.models import weights_hash
from curate.errors import CurateError, UsageError
from curate.train.checkpoints import Checkpoints
from curate.train.config import Mixture, SFTConfig
from curate.train.losses import sft_loss
from curate.train.metrics import MetricsLog
from curate.train.model.layout import Layout, PromptCompletion
from curate.train.model.policy import Policy
from curate.train.ranks import Ranks, join_ranks
from curate.train.result import TrainResult
from curate.train.runs import ProgressCallback, config_identity, start_run, train_batches
from curate.warehouse import Version, Warehouse
from curate.warehouse.identity import digest

# Increased when the same config would train a different model; part of the run's id.
TRAINER_VERSION = 1

TAG = r"</?[a-z_]+>"


@dataclass
class TrainingExample:
    """One row of a corpus as token ids; `weight` multiplies its loss."""

    tokens: PromptCompletion
    weight: float
    trace_id: str
    difficulty: float
    tags: int = 0  # opening and closing tags in its completion, such as <think>


# Maps the policy, the layout of a micro-batch and a weight per token to this micro-batch's part of
# the loss.
Objective = Callable[[Policy, Layout, Tensor], Tensor]


def train_sft(
    config: SFTConfig,
    wh: Warehouse,
    progress: ProgressCallback | None = None,
    *,
    objective: Objective | None = None,
    kind: str = "sft",
    inputs: dict[str, Any] | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> TrainResult:
    """Fine-tune `config.model` on `config.corpus`; returns at once if the same run has finished.

    `say` receives an example with its mask before the first step. `objective` replaces the loss of
    SFT; `inputs` holds what it depends on besides the config (see distill.py). Raises UsageError
    for a missing corpus, column or model, CurateError for a loss that is not finite.
    """
    corpora = [(wh.latest("corpora", part.corpus), part) for part in mixture(config)]
    parent = weights_hash(config.model)
    inputs = {"model": parent, "corpora": [version.ref for version, _ in corpora], **(inputs or {})}
    run_id = digest(kind, TRAINER_VERSION, config_identity(config), inputs)[:16]
    checkpoints = Checkpoints(wh.root, run_id, config.checkpoint.keep_last)
    if finished := checkpoints.finished():
        return finished

    ranks = join_ranks()
    run = start_run(config, wh, checkpoints, ranks, say)
    policy, tokenizer = run.policy, run.tokenizer
    examples, counts = load_examples(corpora, config, tokenizer)
    policy.check_length(max(len(e.tokens) for e in examples))
    batches = batch_order(examples, config)
    for i in batches[0]:
        check_labels(examples[i], tokenizer)
    if ranks.first:
        shown = show_example(examples[0], tokenizer)
        say(f"the first example, trained between the marks:\n{shown}")
    facts = {"parents": inputs["corpora"], "config": config.model_dump(mode="json")}
    log = MetricsLog(wh, config.name, run_id, ranks, config.trackers, **facts)

    def gradients(batch: list[TrainingExample]) -> dict[str, float]:
        loss, tokens = sft_step(policy, batch, ranks, objective or likelihood)
        return {"loss": loss, "tokens": tokens}

    metrics = train_batches(run, log, examples, batches, gradients, progress)
    result = TrainResult(checkpoints.path / "model", run_id, len(batches), resumed_from=run.start)
    result.metrics, result.counts = metrics, counts
    return run.finish(result, kind, parent, inputs)


def likelihood(policy: Policy, layout: Layout, weight: Tensor) -> Tensor:
    """The objective of SFT."""
    return sft_loss(policy.logprobs(layout)[0], weight)


def sft_step(
    policy: Policy, examples: list[TrainingExample], ranks: Ranks, objective: Objective
) -> tuple[float, int]:
    """Compute the gradients of one batch; return its loss and the number of tokens computed.

    Both are sums over all ranks.
    """
    # The count of the whole batch, however it is cut into micro-batches and ranks.
    count = sum(e.weight * len(e.tokens.completion) for e in examples)
    examples = sorted(examples, key=lambda e: -len(e.tokens))
    own = ranks.deal(examples, [e.tokens for e in examples])
    losses: list[Tensor] = []
    tokens = 0
    for cut in policy.micro_batches([e.tokens for e in own], ranks):
        layout = policy.layout([own[i].tokens for i in cut])
        weights = torch.tensor([own[i].weight / count for i in cut], device=policy.device)
        part = objective(policy, layout, weights[layout.row])
        part.backward()
        policy.release_memory()
        losses.append(part.detach())
        tokens += layout.tokens
    ranks.reduce_gradients(policy.parameters())
    # Read once per step: each reading makes the CPU wait for a GPU.
    loss = sum(torch.stack(losses).tolist()) if losses else 0.0
    sums = ranks.all_reduce_sums({"loss": loss, "tokens": tokens})
    return sums["loss"], int(sums["tokens"])


def mixture(config: SFTConfig) -> list[Mixture]:
    """Return the corpora of a config as a mixture; one name is a mixture of one."""
    return [Mixture(corpus=config.corpus)] if isinstance(config.corpus, str) else config.corpus


def load_examples(
    corpora: list[tuple[Version, Mixture]], config: SFTConfig, tokenizer: Any
) -> tuple[list[TrainingExample], dict[str, int]]:
    """Return the rows of the corpora as token ids, and counts.

    Rows that are too long are truncated, skipped or refused, as the config asks.
    """
    examples: list[TrainingExample] = []
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
                        f"corpus {part.corpus}: trace {trace_id} has {len(prompt) + len(whole)} "
                        f"tokens, more than max_length={config.max_length}: raise max_length, or "
                        "set too_long to truncate or skip"
                    )
                whole = whole[: config.max_length - len(prompt)]
                if config.too_long == "skip" or not whole:
                    continue
            examples.append(
                TrainingExample(PromptCompletion(prompt, whole), weight, trace_id, *rest)
            )
    if not examples:
        raise UsageError(
            f"nothing to train on: all {counts['too_long']} rows are longer than "
            f"max_length={config.max_length} tokens"
            if counts["too_long"]
            else "the corpus is empty: loosen the rules of the filter that made it (`curate sql` "
            "on the table funnel)"
        )
    counts["examples"] = len(examples)
    counts["tokens"] = sum(len(e.tokens.completion) for e in examples)
    return examples, counts


def corpus_rows(version: Version, part: Mixture, config: SFTConfig) -> pl.DataFrame:
    """Read `prompt, completion, weight, trace_id, difficulty` of a corpus.

    A weight is the product of those of the row, the mixture and the domain.
    """
    columns = {"prompt", "completion", "weight", "trace_id", "difficulty", "domain", "problem_id"}
    frame = version.read().collect()
    if missing := {"prompt", "completion"} - set(frame.columns):
        raise UsageError(
            f"corpus {version.ref} has no column {', '.join(sorted(missing))}: was it made by a "
            "filter?"
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
    """Tokenize prompts as engines do: with special tokens, but never a second BOS."""
    cache: dict[str, list[int]] = {}
    return [
        cache.setdefault(p, encode(tokenizer, p)) if p not in cache else cache[p] for p in prompts
    ]


def batch_order(examples: list[TrainingExample], config: SFTConfig) -> list[list[int]]:
    """Return the indices of the examples of every step, over all epochs.

    With `order: difficulty` the first epoch runs easiest first.
    """
    levels = [e.difficulty for e in examples] if config.order == "difficulty" else None
    return draw_batches(len(examples), config.epochs, config.batch_size, config.seed, levels)


def draw_batches(
    count: int, epochs: float, size: int, seed: int, first: Sequence[float] | None = None
) -> list[list[int]]:
    """Return the indices below `count` of every step, reshuffled every epoch.

    The first epoch is in the order of `first`, if given.
    """
    wanted = max(1, round(epochs * count))
    indices: list[int] = []
    epoch = 0
    while len(indices) < wanted:
        shuffled = list(range(count))
        random.Random(f"{seed}:{epoch}").shuffle(shuffled)
        if first is not None and epoch == 0:
            shuffled.sort(key=first.__getitem__)
        indices += shuffled
        epoch += 1
    indices = indices[:wanted]
    return [indices[i : i + size] for i in range(0, len(indices), size)]


def check_labels(example: TrainingExample, tokenizer: Any) -> None:
    """Raise CurateError if the labels lose tags of the completion, or most of its characters."""
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
            f"the tokenizer loses {example.tags - kept} of the {example.tags} tags of trace "
            f"{example.trace_id}, so the model could not learn to write them. The labels are "
            f"{text[:200]!r}: use another tokenizer, or another form"
        )
    unknown = tokenizer.unk_token_id
    if unknown is not None and ids.count(unknown) > len(ids) // 2:
        raise CurateError(
            "the tokenizer has no tokens for most of the first completion: the labels are "
            f"{text[:200]!r}"
        )


def show_example(example: TrainingExample, tokenizer: Any) -> str:
    """Return an example as text with its mask: the trained part is between the marks."""
    read = tokenizer.decode(example.tokens.prompt, skip_special_tokens=False)
    trained = tokenizer.decode(example.tokens.completion, skip_special_tokens=False)
    return f"{read}⟦{trained}⟧"
