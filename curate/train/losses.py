"""Losses as pure functions of tensors.

Tokens are flat: `[N]` holds the completion tokens of a micro-batch one after the other, and `row`
(`[N]`) is the completion, of `[B]`, that each belongs to. There is no padding, hence no mask that
could be forgotten.

Every loss is a sum of token terms times a weight per row, and the weights are computed once for the
global batch (`row_weights`). The division of that batch into micro-batches and ranks therefore
cannot change a gradient, as long as gradients are summed and no completion is cut in two.

A new loss or variant goes here, and its key into `LossConfig` (or `DistillConfig`) in config.py.
The callers are grpo.py, sft.py, distill.py and dpo.py.

Papers: DeepSeekMath (arXiv 2402.03300), Dr. GRPO (2503.20783), DAPO (2503.14476), GSPO
(2507.18071), DPO (2305.18290). The KL estimators are Schulman's ("Approximating KL divergence",
2020).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

Normalisation = Literal["grpo", "dr_grpo", "dapo"]
KLKind = Literal["k1", "k2", "k3"]
Objective = Literal["clip", "cispo"]
DivergenceKind = Literal["forward", "reverse"]

# exp(20) is 5e8: a larger ratio means that something is broken, and the finite limit shows that as
# well.
MAX_LOG_RATIO = 20.0


@dataclass
class PolicyTokens:
    """One micro-batch: `[N]` tokens of `[B]` completions, log-probs at the sampling temperature."""

    new: Tensor  # [N] log pi_theta of the sampled tokens, with gradient
    row: Tensor  # [N] int64, the completion each token belongs to
    advantage: Tensor  # [B]
    weight: Tensor  # [B] from `row_weights`; 0 leaves a row out
    # [N] log pi_old; None if the policy has not moved since sampling, so that it is `new`
    old: Tensor | None = None
    ref: Tensor | None = None  # [N] log pi_ref
    sampler: Tensor | None = None  # [N] log-probs that the engine reported
    entropy: Tensor | None = None  # [N] of the next-token distributions, nats, with gradient


@dataclass
class PolicyLoss:
    """`loss` is this micro-batch's part of the global loss; `sums` add up over micro-batches.

    Sums stay tensors on the device: reading one makes the CPU wait for all work before it.
    """

    loss: Tensor  # scalar
    sums: dict[str, Tensor] = field(default_factory=dict)  # scalars without gradient


def row_weights(
    lengths: Tensor,
    kept: Tensor,
    normalisation: Normalisation = "grpo",
    max_length: int | None = None,
) -> Tensor:
    """Return weights `[R]` of the rows of a global batch from their lengths in tokens (`[R]`).

    grpo:    1 / (R |o_i|)      mean over rows of the mean over tokens   (DeepSeekMath, eq. 3)
    dapo:    1 / sum_i |o_i|    mean over all tokens                     (DAPO, eq. 8)
    dr_grpo: 1 / (R L)          L = `max_length`, a constant             (Dr. GRPO, section 3.2)

    R is the number of kept rows; for dr_grpo of all rows, since its divisor is a constant. Rows
    that are not kept have weight 0.
    """
    lengths = lengths.to(torch.float64)
    kept = kept & (lengths > 0)
    rows = kept.sum().clamp(min=1)
    if normalisation == "grpo":
        weights = 1.0 / (rows * lengths.clamp(min=1))
    elif normalisation == "dapo":
        weights = torch.ones_like(lengths) / (lengths * kept).sum().clamp(min=1)
    elif normalisation == "dr_grpo":
        if max_length is None:
            raise ValueError("dr_grpo divides by a constant length: give max_length")
        weights = torch.ones_like(lengths) / (max(len(lengths), 1) * max_length)
    else:
        raise ValueError(f"unknown normalisation '{normalisation}'")
    return torch.where(kept, weights, torch.zeros_like(weights))


def row_mean(values: Tensor, row: Tensor, rows: int) -> Tensor:
    """Return the mean `[rows]` over the tokens of each row (`[N]` values); 0 without tokens."""
    total = torch.zeros(rows, dtype=values.dtype, device=values.device).index_add(0, row, values)
    count = torch.zeros(rows, dtype=values.dtype, device=values.device).index_add(
        0, row, torch.ones_like(values)
    )
    return total / count.clamp(min=1)


def kl_estimate(new: Tensor, ref: Tensor, kind: KLKind = "k3") -> Tensor:
    """Return estimates `[N]` of KL(pi_theta || pi_ref) at tokens sampled from pi_theta.

    k1 = log(pi/ref), k2 = k1^2 / 2, k3 = ref/pi - 1 - log(ref/pi)   (DeepSeekMath, eq. 4)

    The plain gradient of k1 has mean zero, so minimising it has no regularising effect. Here k1
    keeps its value but uses the score-function gradient, k1 * grad log pi: that of a KL penalty
    inside the reward, and the same as that of k2.
    """
    difference = (new - ref).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    if kind == "k1":
        return difference.detach() * torch.exp(new - new.detach())
    if kind == "k2":
        return 0.5 * difference.square()
    if kind == "k3":
        return torch.expm1(-difference) + difference
    raise ValueError(f"unknown KL estimator '{kind}'")


def policy_loss(
    tokens: PolicyTokens,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    ratio: Literal["token", "sequence"] = "token",
    beta: float = 0.0,
    kl: KLKind = "k3",
    sampler_cap: float | None = None,
    objective: Objective = "clip",
    sampler_mask: tuple[float, float] | None = None,
    mask_level: Literal["token", "sequence"] = "token",
    correct_kl: bool = False,
    entropy_bonus: float = 0.0,
) -> PolicyLoss:
    """Return the negated clipped objective with a KL term (DeepSeekMath, eq. 3).

    loss = - sum_i w_i sum_t [ c_t min(r_t A_i, clip(r_t) A_i) - beta KL_t + bonus H_t ]

    clip(r) limits r to [1 - clip_low, 1 + clip_high].

    r_t = pi_theta / pi_old of a token, or with `ratio="sequence"` exp of the mean log-ratio of its
    row (GSPO, eq. 7). `clip_high > clip_low` is DAPO's clip-higher. `sampler_cap` C corrects for
    the difference between the engine's and the trainer's probabilities by the detached c_t =
    min(pi_old / pi_sampler, C), truncated importance sampling; None: c_t = 1. Rows of weight 0 get
    exactly zero gradient, whatever their log-probs.

    `objective="cispo"` replaces the minimum by clip(r_t) A_i log pi_theta with a detached ratio: no
    token loses its gradient (MiniMax-M1, arXiv 2506.13585, eq. 4). `sampler_mask` drops the terms
    of tokens whose pi_old / pi_sampler is outside of [low, high]; at `mask_level="sequence"` the
    geometric mean of the row decides for all its tokens. `correct_kl` weights the KL term by
    r_t, so that samples of an older policy estimate the KL of this one. For k3 the gradient passes
    through r_t, which makes it that of KL(pi_theta || pi_ref) (DeepSeek-V3.2, arXiv 2512.02556);
    k1 and k2 have that gradient with a detached r_t. `entropy_bonus`
    weights the entropies H_t of the policy's next-token distributions (PPO, arXiv 1707.06347, eq.
    9), which must then be given with their gradient.
    """
    weight, advantage = tokens.weight[tokens.row], tokens.advantage[tokens.row]
    live = weight != 0
    # Replaced before use instead of multiplied by 0 afterwards: 0 * inf would be nan.
    new = torch.where(live, tokens.new, torch.zeros_like(tokens.new))

    def given(values: Tensor | None) -> Tensor:
        return (
            new.detach()
            if values is None
            else torch.where(live, values.to(new.dtype), torch.zeros_like(values))
        )

    old = given(tokens.old)
    log_ratio = (new - old).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    if ratio == "sequence":
        log_ratio = row_mean(log_ratio, tokens.row, tokens.weight.shape[0])[tokens.row]
    r = torch.exp(log_ratio)
    unclipped, clipped = r * advantage, r.clamp(1 - clip_low, 1 + clip_high) * advantage
    gain = torch.minimum(unclipped, clipped)
    if objective == "cispo":
        gain = r.clamp(1 - clip_low, 1 + clip_high).detach() * advantage * new

    sampler = given(tokens.sampler) if tokens.sampler is not None else old
    mismatch = (old - sampler).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    if sampler_cap is not None:
        gain = gain * torch.exp(mismatch).clamp(max=sampler_cap)
    if sampler_mask is not None:
        level = mismatch
        if mask_level == "sequence":
            level = row_mean(mismatch, tokens.row, tokens.weight.shape[0])[tokens.row]
        inside = (level.exp() >= sampler_mask[0]) & (level.exp() <= sampler_mask[1])
        gain = torch.where(inside, gain, torch.zeros_like(gain))
    divergence = torch.zeros_like(new)
    if tokens.ref is not None:
        divergence = kl_estimate(new, given(tokens.ref), kl)
        if correct_kl:
            divergence = divergence * (r if kl == "k3" else r.detach())
    if entropy_bonus:
        if tokens.entropy is None:
            raise ValueError("an entropy bonus needs entropies with gradient: give tokens.entropy")
        gain = gain + entropy_bonus * tokens.entropy
    terms = torch.where(live, weight * (beta * divergence - gain), torch.zeros_like(new))
    loss = terms.sum()

    def total(values: Tensor) -> Tensor:
        # Not `values[live].sum()`: the number of live tokens would have to be read first.
        return torch.where(live, values, torch.zeros_like(values)).sum()

    with torch.no_grad():
        cut = clipped < unclipped
        sums = {
            "tokens": live.sum(),
            "kl": total(divergence),
            "clip_low": total(cut & (r < 1)),
            "clip_high": total(cut & (r > 1)),
            "ratio": total(r),
            "mismatch": total(mismatch.abs()),
            "mismatch_kl": total(torch.expm1(mismatch) - mismatch),
            "capped": total(mismatch.exp() > (torch.inf if sampler_cap is None else sampler_cap)),
        }
        return PolicyLoss(loss, sums)


def dpo_loss(chosen: Tensor, rejected: Tensor, beta: float = 0.1) -> Tensor:
    """Return losses `[P]` of direct preference optimisation (Rafailov et al. 2023, eq. 7).

    loss = - log sigmoid(beta [log pi(y_w)/pi_ref(y_w) - log pi(y_l)/pi_ref(y_l)])

    `chosen` and `rejected` `[P]` are the log-ratios of whole completions between the policy and the
    reference: sums over tokens, in nats. The gradient by `chosen` is -beta sigmoid(-margin), where
    margin is the argument of the sigmoid, and that by `rejected` its opposite. (arXiv 2305.18290)
    """
    return -torch.nn.functional.logsigmoid(beta * (chosen - rejected))


def importance_sums(log_ratio: Tensor, row: Tensor, rows: int) -> dict[str, float]:
    """Return sums over `rows` completions from which `effective_share` is computed.

    `log_ratio` (`[N]`) holds log pi_theta - log pi_sampler of the tokens, `row` (`[N]`) their
    completion. A completion weighs the product of its ratios.
    """
    total = torch.zeros(rows, dtype=torch.float64, device=log_ratio.device)
    total = total.index_add(0, row, log_ratio.detach().to(torch.float64))
    weight = total.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    return {
        "weighed": float(rows),
        "weight": float(weight.sum()),
        "weight_squared": float(weight.square().sum()),
    }


def effective_share(sums: Mapping[str, float]) -> float:
    """Return the effective sample size as a share of the completions: (sum w)^2 / (n sum w^2).

    1 if all weigh the same, 1/n if one outweighs the rest (Kong 1992). 1 without completions.
    """
    rows, squares = sums.get("weighed", 0.0), sums.get("weight_squared", 0.0)
    return sums["weight"] ** 2 / (rows * squares) if rows and squares else 1.0


def sft_loss(new: Tensor, weight: Tensor) -> Tensor:
    """Return - sum_t w_t log pi_t for log-probs `[N]` and weights `[N]` of completion tokens.

    The weights are 1 / (completion tokens in the global batch), multiplied by the weight of a row
    in a mixture.
    """
    return -(weight * new).sum()


def divergence(student: Tensor, teacher: Tensor, kind: DivergenceKind = "forward") -> Tensor:
    """Return divergences `[N]` between two next-token distributions from their logits `[N, V]`.

    forward: KL(teacher || student) makes the student cover everything the teacher does. reverse:
    KL(student || teacher) makes it keep to what the teacher finds likely (MiniLLM, arXiv
    2306.08543). Both are exact sums over the vocabulary.
    """
    s, t = torch.log_softmax(student.float(), -1), torch.log_softmax(teacher.float(), -1)
    if kind == "forward":
        return (t.exp() * (t - s)).sum(-1)
    if kind == "reverse":
        return (s.exp() * (s - t)).sum(-1)
    raise ValueError(f"unknown divergence '{kind}': choose forward or reverse")
