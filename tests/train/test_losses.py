"""Losses and gradients by hand: ratio, clip, KL, normalisations, GSPO, weights, distillation."""

from __future__ import annotations

import math
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from curate.train.losses import (
    PolicyTokens,
    divergence,
    kl_estimate,
    policy_loss,
    row_weights,
    sft_loss,
)

F64 = torch.float64


def t(values: list[float]) -> Any:
    return torch.tensor(values, dtype=F64)


def one_token(new: float, old: float, advantage: float, **options: Any) -> tuple[float, float]:
    """Return the loss of a single token of weight 1 and its gradient with respect to `new`."""
    log_prob = t([new]).requires_grad_()
    extra = {k: t([v]) for k, v in options.items() if k in ("ref", "sampler")}
    rest = {k: v for k, v in options.items() if k not in ("ref", "sampler")}
    tokens = PolicyTokens(
        log_prob, torch.tensor([0]), t([advantage]), t([1.0]), old=t([old]), **extra
    )
    loss = policy_loss(tokens, **rest).loss
    loss.backward()
    return loss.item(), log_prob.grad.item()


def test_ratio_inside_the_clip_range() -> None:
    new, old = math.log(0.55), math.log(0.5)  # ratio 1.1
    assert one_token(new, old, 2.0) == pytest.approx((-2.2, -2.2))
    assert one_token(new, old, -2.0) == pytest.approx((2.2, 2.2))


def test_clip_cuts_the_gradient_only_on_the_side_that_would_gain() -> None:
    # ratios 1.5 and 0.5
    high, low = (
        (math.log(0.75), math.log(0.5)),
        (math.log(0.25), math.log(0.5)),
    )
    assert one_token(*high, 1.0) == pytest.approx((-1.2, 0.0))
    assert one_token(*high, -1.0) == pytest.approx((1.5, 1.5))
    assert one_token(*low, -1.0) == pytest.approx((0.8, 0.0))
    assert one_token(*low, 1.0) == pytest.approx((-0.5, -0.5))
    # clip-higher lets it through
    assert one_token(*high, 1.0, clip_high=0.6) == pytest.approx((-1.5, -1.5))
    assert one_token(*high, 1.0, clip_high=0.28) == pytest.approx((-1.28, 0.0))


def test_clip_fractions_are_counted_by_side() -> None:
    new = t([math.log(1.5), math.log(0.5), math.log(1.5), 0.0])
    tokens = PolicyTokens(
        new, torch.tensor([0, 1, 1, 0]), t([1.0, -1.0]), t([0.5, 0.5]), old=t([0.0] * 4)
    )
    sums = policy_loss(tokens).sums
    assert (sums["clip_high"], sums["clip_low"], sums["tokens"]) == (1, 1, 4)


def test_kl_estimators_by_hand() -> None:
    new, ref = t([math.log(0.5)]), t([math.log(0.25)])  # log ratio ln 2
    assert kl_estimate(new, ref, "k1").item() == pytest.approx(math.log(2))
    assert kl_estimate(new, ref, "k2").item() == pytest.approx(math.log(2) ** 2 / 2)
    assert kl_estimate(new, ref, "k3").item() == pytest.approx(0.5 - 1 + math.log(2))
    for kind in ("k1", "k2", "k3"):
        assert kl_estimate(new, new, kind).item() == 0.0  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "gradient"),
    [("k1", math.log(2)), ("k2", math.log(2)), ("k3", 1 - 0.5)],  # k3: 1 - ref/pi
)
def test_kl_gradients(kind: str, gradient: float) -> None:
    loss, grad = one_token(math.log(0.5), math.log(0.5), 0.0, ref=math.log(0.25), beta=0.1, kl=kind)
    assert grad == pytest.approx(0.1 * gradient)
    assert loss == pytest.approx(
        0.1 * kl_estimate(t([math.log(0.5)]), t([math.log(0.25)]), kind).item()
    )  # type: ignore[arg-type]


def test_the_expected_gradient_of_each_estimator_is_that_of_the_kl() -> None:
    """sum_x pi(x) grad k(x) is the gradient of an exact KL: KL(pi||ref), for k3 KL(ref||pi)."""
    logits = t([0.3, -0.2, 0.9]).requires_grad_()
    ref = torch.log_softmax(t([0.1, 0.4, -0.3]), 0)
    log_p = torch.log_softmax(logits, 0)
    (log_p.exp() * (log_p - ref)).sum().backward()
    reverse = logits.grad.clone()
    logits.grad = None
    (ref.exp() * (ref - torch.log_softmax(logits, 0))).sum().backward()
    forward = logits.grad.clone()
    for kind, exact in (("k1", reverse), ("k2", reverse), ("k3", forward)):
        logits.grad = None
        log_p = torch.log_softmax(logits, 0)
        (log_p.detach().exp() * kl_estimate(log_p, ref, kind)).sum().backward()  # type: ignore[arg-type]
        assert torch.allclose(logits.grad, exact, atol=1e-12), kind


def test_normalisations_by_hand() -> None:
    lengths, kept = torch.tensor([2, 6]), torch.tensor([True, True])
    assert row_weights(lengths, kept, "grpo").tolist() == pytest.approx([1 / 4, 1 / 12])
    assert row_weights(lengths, kept, "dapo").tolist() == pytest.approx([1 / 8, 1 / 8])
    assert row_weights(lengths, kept, "dr_grpo", 10).tolist() == pytest.approx([1 / 20, 1 / 20])
    alone = torch.tensor([True, False])
    assert row_weights(lengths, alone, "grpo").tolist() == pytest.approx([1 / 2, 0])
    assert row_weights(lengths, alone, "dapo").tolist() == pytest.approx([1 / 2, 0])
    assert row_weights(lengths, torch.tensor([False, False]), "dapo").tolist() == [0, 0]


def two_rows(new: Any, **options: Any) -> Any:
    """Rows of 2 and 3 tokens, advantages 1 and -1."""
    row, old = torch.tensor([0, 0, 1, 1, 1]), t([-1.0, -2.0, -1.5, -0.5, -1.0])
    weight, ref = options.pop("weight", None), options.pop("ref", None)
    if weight is None:
        weight = row_weights(torch.tensor([2, 3]), torch.tensor([True, True]))
    return policy_loss(PolicyTokens(new, row, t([1.0, -1.0]), weight, old=old, ref=ref), **options)


def test_gradient_at_ratio_one_is_reinforce() -> None:
    new = t([-1.0, -2.0, -1.5, -0.5, -1.0]).requires_grad_()
    two_rows(new).loss.backward()
    # REINFORCE with the same weights: - w_i A_i for each token
    assert new.grad.tolist() == pytest.approx([-1 / 4, -1 / 4, 1 / 6, 1 / 6, 1 / 6])


def test_old_left_out_means_the_policy_has_not_moved() -> None:
    new = t([-1.0, -2.0]).requires_grad_()
    out = policy_loss(PolicyTokens(new, torch.tensor([0, 0]), t([1.0]), t([0.5])))
    out.loss.backward()
    assert float(out.loss) == pytest.approx(-1.0)
    assert new.grad.tolist() == pytest.approx([-0.5, -0.5])


def test_sequence_ratio_by_hand() -> None:
    # row 0: mean log-ratio (0.1 + 0.3) / 2 = 0.2 > log 1.2; row 1: (-0.1 + 0 + 0.1) / 3 = 0
    new = t([-0.9, -1.7, -1.6, -0.5, -0.9]).requires_grad_()
    out = two_rows(new, ratio="sequence", clip_high=0.5)
    out.loss.backward()
    assert float(out.loss) == pytest.approx(-(math.exp(0.2) - 1.0) / 2)
    # d/d new_t of - 1/R s_i A_i = - s_i A_i / (R |o_i|)
    assert new.grad.tolist() == pytest.approx([-math.exp(0.2) / 4] * 2 + [1 / 6] * 3)
    clipped = t([-0.9, -1.7, -1.6, -0.5, -0.9]).requires_grad_()
    two_rows(clipped, ratio="sequence", clip_high=0.2).loss.backward()
    assert clipped.grad[:2].tolist() == [0.0, 0.0]


def test_sampler_correction_is_capped_and_carries_no_gradient() -> None:
    old = math.log(0.5)
    loss, grad = one_token(old, old, 1.0, sampler=math.log(0.4), sampler_cap=2.0)  # weight 1.25
    assert (loss, grad) == pytest.approx((-1.25, -1.25))
    loss, grad = one_token(old, old, 1.0, sampler=math.log(0.1), sampler_cap=2.0)  # 5, capped
    assert (loss, grad) == pytest.approx((-2.0, -2.0))
    # reported, not corrected
    assert one_token(old, old, 1.0, sampler=math.log(0.1)) == pytest.approx((-1.0, -1.0))


@pytest.mark.parametrize("kl", ["k1", "k2", "k3"])
@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_rows_of_weight_zero_get_exactly_zero_gradient(bad: float, kl: Any) -> None:
    new = t([bad, -2.0, -1.5, -0.5, -1.0]).requires_grad_()
    out = two_rows(
        new, weight=t([0.0, 1 / 3]), beta=0.1, kl=kl, ref=t([-1.1, bad, -1.4, -0.6, -1.2])
    )
    out.loss.backward()
    assert math.isfinite(float(out.loss))
    assert new.grad[:2].tolist() == [0.0, 0.0]
    assert all(new.grad[2:] != 0)


def test_all_masked_is_a_finite_zero() -> None:
    new = t([-1.0, -2.0, -1.5, -0.5, -1.0]).requires_grad_()
    out = two_rows(new, weight=row_weights(torch.tensor([2, 3]), torch.tensor([False, False])))
    out.loss.backward()
    assert float(out.loss) == 0.0
    assert new.grad.tolist() == [0.0] * 5


def test_sft_loss_by_hand() -> None:
    new = t([-1.0, -3.0]).requires_grad_()
    loss = sft_loss(new, t([0.25, 0.25]))
    loss.backward()
    assert float(loss) == pytest.approx(1.0)
    assert new.grad.tolist() == pytest.approx([-0.25, -0.25])


def test_divergences_by_hand() -> None:
    student, teacher = t([0.5, 0.5]).log()[None], t([0.25, 0.75]).log()[None]
    forward = 0.25 * math.log(0.5) + 0.75 * math.log(1.5)
    reverse = 0.5 * math.log(2) + 0.5 * math.log(2 / 3)
    assert divergence(student, teacher, "forward").item() == pytest.approx(forward)
    assert divergence(student, teacher, "reverse").item() == pytest.approx(reverse)
    assert divergence(student, student, "forward").item() == pytest.approx(0, abs=1e-7)


def small(sampler: float = 0.5) -> PolicyTokens:
    """Return rows of one and two tokens; the last token was less likely for the sampler."""
    new = torch.log(torch.tensor([0.5, 0.4, 0.2], dtype=torch.float64)).requires_grad_()
    old = torch.log(torch.tensor([0.25, 0.4, 0.4], dtype=torch.float64))
    seen = torch.log(torch.tensor([0.25, 0.4, 0.4 * sampler], dtype=torch.float64))
    weight = torch.tensor([1.0, 0.5], dtype=torch.float64)
    advantage = torch.tensor([1.0, -1.0], dtype=torch.float64)
    row = torch.tensor([0, 1, 1])
    return PolicyTokens(new, row, advantage, weight, old=old, sampler=seen)


def test_cispo_keeps_the_gradient_of_clipped_tokens() -> None:
    clipped, cispo = small(), small()
    policy_loss(clipped).loss.backward()
    policy_loss(cispo, objective="cispo").loss.backward()
    # ratios 2, 1, 0.5 are clipped to 1.2, 1, 0.8; the gradient is - weight * ratio * advantage
    assert clipped.new.grad.tolist() == pytest.approx([0.0, 0.5, 0.0])
    assert cispo.new.grad.tolist() == pytest.approx([-1.2, 0.5, 0.4])


@pytest.mark.parametrize(
    ("level", "kept"), [("token", [-2.0, 0.5, 0.0]), ("sequence", [-2.0, 0, 0])]
)
def test_a_two_sided_mask_drops_tokens_or_whole_completions(level: Any, kept: list[float]) -> None:
    tokens = small(sampler=0.1)  # ratios 1, 1, 10; the mean of the second row is 3.2
    options = {"clip_low": 1.0, "clip_high": 9.0, "sampler_mask": (0.5, 2.0), "mask_level": level}
    policy_loss(tokens, **options).loss.backward()
    assert tokens.new.grad.tolist() == pytest.approx(kept)


def test_kl_of_stale_samples_is_weighted_by_the_ratio() -> None:
    plain, corrected = small(), small()
    plain.ref = corrected.ref = torch.log(torch.tensor([0.4, 0.4, 0.4], dtype=torch.float64))
    values = [
        policy_loss(tokens, beta=1.0, correct_kl=correct).sums["kl"]
        for tokens, correct in ((plain, False), (corrected, True))
    ]
    k3 = [0.4 / p - 1 - math.log(0.4 / p) for p in (0.5, 0.4, 0.2)]
    assert values == pytest.approx([sum(k3), 2 * k3[0] + k3[1] + 0.5 * k3[2]])


def test_the_divisor_of_dr_grpo_counts_masked_rows() -> None:
    weights = row_weights(torch.tensor([3, 5]), torch.tensor([True, False]), "dr_grpo", 10)
    assert weights.tolist() == pytest.approx([1 / 20, 0])
