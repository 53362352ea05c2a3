"""Direct preference optimisation on pairs of traces (Rafailov et al. 2023, arXiv 2305.18290).

    traces -> pairs of one prompt (SQL rules) -> per batch: log-ratios, loss, gradient, step

Two passes bound memory without changing the result. The loss of a pair is a function of two sums of
log-probs. The first pass computes the sums without gradient. The derivative of the loss by a sum is
the weight of its sequence in the second pass, where each sequence is independent: the two of a pair
need not be in memory together, and micro-batches and ranks do not change a gradient.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import polars as pl
import torch

from curate.engines.models import weights_hash
from curate.errors import UsageError
from curate.train.checkpoints import Checkpoints
from curate.train.config import DPOConfig
from curate.train.distill import check_same_tokens
from curate.train.losses import dpo_loss
from curate.train.metrics import MetricsLog
from curate.train.model.layout import PromptCompletion
from curate.train.model.loading import load_policy
from curate.train.model.policy import Policy
from curate.train.pairs import preference_pairs
from curate.train.ranks import Ranks, join_ranks
from curate.train.result import TrainResult
from curate.train.runs import ProgressCallback, config_identity, start_run, train_batches
from curate.train.sft import (
    TAG,
    TrainingExample,
    check_labels,
    draw_batches,
    encode_all,
    show_example,
)
from curate.warehouse import Warehouse
from curate.warehouse.identity import digest

# Part of the run's id; raise it if the same config would train another model.
TRAINER_VERSION = 1


@dataclass
class Pair:
    """Two completions of one prompt as token ids."""

    chosen: PromptCompletion
    rejected: PromptCompletion
    trace_id: str  # of the chosen trace
    tags: int = 0  # opening and closing tags in the chosen completion


def train_dpo(
    config: DPOConfig,
    wh: Warehouse,
    progress: ProgressCallback | None = None,
    *,
    say: Callable[[str], None] = lambda text: None,
) -> TrainResult:
    """Train `config.model` to prefer the chosen trace of each pair, unless that was done before.

    The pairs are part of the run's id, so new traces start another run. `say` receives the first
    pair as text. Raises UsageError without pairs, CurateError if the loss is not finite.
    """
    frame = preference_pairs(wh, config.pairs, config.traces, config.seed)
    parent = weights_hash(config.model)
    refs = sorted(set(frame["refs"].explode().to_list()))
    inputs: dict[str, Any] = {"model": parent, "traces": refs}
    if config.reference:
        check_same_tokens(config.reference, config.model)
        inputs["reference"] = weights_hash(config.reference)
    pairs_id = digest(frame.select("chosen_id", "rejected_id").rows())
    run_id = digest("dpo", TRAINER_VERSION, config_identity(config), inputs, pairs_id)[:16]
    checkpoints = Checkpoints(wh.root, run_id, config.checkpoint.keep_last)
    if finished := checkpoints.finished():
        return finished

    ranks = join_ranks()
    run = start_run(config, wh, checkpoints, ranks, say)
    policy, tokenizer = run.policy, run.tokenizer
    pairs, counts = load_pairs(frame, config, tokenizer)
    policy.check_length(max(max(len(p.chosen), len(p.rejected)) for p in pairs))
    batches = draw_batches(len(pairs), config.epochs, config.batch_size, config.seed)
    for i in batches[0]:
        check_labels(_example(pairs[i]), tokenizer)
    if ranks.first:
        say(f"the first chosen completion, between the marks:\n{_shown(pairs[0], tokenizer)}")
    reference = load_reference(config)
    facts = {"parents": refs, "config": config.model_dump(mode="json")}
    log = MetricsLog(wh, config.name, run_id, ranks, config.trackers, **facts)

    def gradients(batch: list[Pair]) -> dict[str, float]:
        return dpo_step(policy, reference, batch, config, ranks)

    metrics = train_batches(run, log, pairs, batches, gradients, progress)
    result = TrainResult(checkpoints.path / "model", run_id, len(batches), resumed_from=run.start)
    result.metrics, result.counts = metrics, counts
    return run.finish(result, "dpo", parent, inputs)


def load_reference(config: DPOConfig) -> Policy | None:
    """Return the frozen reference; None if it is the policy without its adapters."""
    if config.compute.lora and not config.reference:
        return None
    return load_policy(config.reference or config.model, config.compute, frozen=True)[0]


def dpo_step(
    policy: Policy, reference: Policy | None, batch: list[Pair], config: DPOConfig, ranks: Ranks
) -> dict[str, float]:
    """Gradients of one batch, summed over micro-batches and ranks; returns its metrics.

    If `reference` is None, it is the policy without its adapters.
    """
    sequences = [sequence for pair in batch for sequence in (pair.chosen, pair.rejected)]
    with policy.without_adapters() if reference is None else contextlib.nullcontext():
        fixed = totals((reference or policy).all_logprobs(sequences, ranks=ranks))
    now = totals(policy.all_logprobs(sequences, ranks=ranks)).requires_grad_()
    ratios = (now - fixed).view(-1, 2)  # of each pair: chosen, rejected
    loss = dpo_loss(ratios[:, 0], ratios[:, 1], config.beta).mean()
    if config.nll:  # a mean over the tokens of the chosen completions
        tokens = sum(len(pair.chosen.completion) for pair in batch)
        loss = loss - config.nll * now.view(-1, 2)[:, 0].sum() / tokens
    (by_sequence,) = torch.autograd.grad(loss, now)

    weighted = list(zip(sequences, by_sequence.tolist(), strict=True))
    own = ranks.deal(weighted, sequences)
    computed = 0
    for cut in policy.micro_batches([sequence for sequence, _ in own], ranks):
        layout = policy.layout([own[i][0] for i in cut])
        new = policy.logprobs(layout)[0]
        weight = torch.tensor([own[i][1] for i in cut], dtype=new.dtype, device=new.device)
        (weight[layout.row] * new).sum().backward()
        policy.release_memory()
        computed += layout.tokens
    ranks.reduce_gradients(policy.parameters())
    margin = config.beta * (ratios[:, 0] - ratios[:, 1]).detach()
    rewards = config.beta * ratios.detach().mean(0)
    return {
        "loss": loss.item(),
        "margin": margin.mean().item(),
        "preferred": (margin > 0).double().mean().item(),
        "reward_chosen": rewards[0].item(),
        "reward_rejected": rewards[1].item(),
        "tokens": ranks.all_reduce_sums({"tokens": float(computed)})["tokens"],
    }


def totals(logprobs: list[torch.Tensor]) -> torch.Tensor:
    """Return the sum `[S]` over each of S sequences, in float64."""
    return torch.stack([values.double().sum() for values in logprobs])


def load_pairs(
    frame: pl.DataFrame, config: DPOConfig, tokenizer: Any
) -> tuple[list[Pair], dict[str, int]]:
    """Return pairs as token ids, and counts. A truncated completion gets no end token.

    Raises UsageError if all of them are too long.
    """
    prompts = encode_all(tokenizer, frame["prompt"].to_list())

    def completions(side: str) -> list[list[int]]:
        ids = tokenizer(frame[side].to_list(), add_special_tokens=False)["input_ids"]
        ends = frame[f"{side}_end"].to_list()
        return [
            row if end == "length" else [*row, tokenizer.eos_token_id]
            for row, end in zip(ids, ends, strict=True)
        ]

    tags = frame["chosen"].str.count_matches(TAG).to_list()
    rows = zip(
        prompts,
        completions("chosen"),
        completions("rejected"),
        frame["chosen_id"],
        tags,
        strict=True,
    )
    pairs = []
    for prompt, chosen, rejected, *rest in rows:
        if len(prompt) + max(len(chosen), len(rejected)) <= config.max_length:
            sides = PromptCompletion(prompt, chosen), PromptCompletion(prompt, rejected)
            pairs.append(Pair(*sides, *rest))
    if not pairs:
        raise UsageError(
            f"nothing to train on: all {len(frame)} pairs have a trace longer than "
            f"max_length={config.max_length} tokens"
        )
    counts = {"pairs": len(pairs), "too_long": len(frame) - len(pairs)}
    return pairs, counts


def _example(pair: Pair) -> TrainingExample:
    return TrainingExample(pair.chosen, 1.0, pair.trace_id, 0.5, pair.tags)


def _shown(pair: Pair, tokenizer: Any) -> str:
    return show_example(_example(pair), tokenizer)
