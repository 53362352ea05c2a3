"""DPO: the loss by hand, pairs by SQL rules, gradients in any cut, runs, kills and adapters."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from curate.errors import UsageError
from curate.job import Context
from curate.pipeline.stages import stage_kind
from curate.train import job as jobs
from curate.train.config import DPOConfig, PairsConfig
from curate.train.dpo import Pair, dpo_step, train_dpo
from curate.train.losses import dpo_loss
from curate.train.pairs import preference_pairs
from curate.train.ranks import Ranks
from curate.warehouse import Warehouse
from tests.train.conftest import policy_of, ragged
from tests.train.test_sft import EXACT, weights_of

RIGHT, WRONG = " <think> one more </think> <answer> {} </answer>", " no idea, perhaps {}"


def judged(wh: Warehouse, problems: int = 6) -> None:
    """Per problem two correct traces, two wrong ones and one that no verifier could judge."""
    traces: list[dict[str, Any]] = []
    verdicts: list[dict[str, Any]] = []
    for p in range(problems):
        texts = [RIGHT.format(p + 1), RIGHT.format(f" {p + 1}"), WRONG.format(p), WRONG.format("?")]
        for i, text in enumerate([*texts, "..."]):
            trace_id = f"t{p}-{i}"
            traces.append(
                {
                    "trace_id": trace_id,
                    "attempt": 0,
                    "problem_id": f"p{p}",
                    "sample_index": i,
                    "recipe": "rejection",
                    "form": "r1-zero",
                    "prompt": f"User: {p} + 1. Assistant:",
                    "completion": text,
                    "finish_reason": "length" if i == 3 else "stop",
                    "completion_tokens": len(text),
                }
            )
            verdict = ("correct", "correct", "wrong", "wrong", "unverifiable")[i]
            verdicts.append(
                {
                    "trace_id": trace_id,
                    "attempt": 0,
                    "verifier": "exact",
                    "verifier_version": "1",
                    "kind": "rule",
                    "verdict": verdict,
                }
            )
    wh.write("traces", "rejection", traces, key=["traces", problems])
    wh.write("verdicts", "rules", verdicts, key=["verdicts", problems])


def config(model: Path, **changes: Any) -> DPOConfig:
    small = {"batch_size": 3, "compute": EXACT, "optim": {"lr": 1e-2}, "beta": 0.2}
    return DPOConfig.model_validate({"model": str(model)} | small | changes)


@pytest.fixture
def warehouse(tmp_path: Path) -> Warehouse:
    wh = Warehouse(tmp_path / "wh")
    judged(wh)
    return wh


# --- the loss


def test_the_loss_and_its_gradient_by_hand() -> None:
    chosen = torch.tensor([0.0, math.log(3) / 0.5], dtype=torch.float64, requires_grad=True)
    rejected = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    losses = dpo_loss(chosen, rejected, beta=0.5)
    # -log sigmoid(0) = log 2; sigmoid(log 3) = 3/4
    assert losses.tolist() == pytest.approx([math.log(2), -math.log(3 / 4)])
    losses.sum().backward()
    # -beta sigmoid(-margin): -0.5 / 2 and -0.5 / 4
    assert chosen.grad.tolist() == pytest.approx([-0.25, -0.125])
    assert rejected.grad.tolist() == pytest.approx([0.25, 0.125])


@pytest.mark.parametrize("nll", [0.0, 0.5])
@pytest.mark.parametrize("micro", [1, 60, 5000])
def test_a_step_has_the_gradient_of_the_whole_batch(tiny_dir: Path, nll: float, micro: int) -> None:
    """Against autograd through all log-probs of the batch at once, in float64."""
    policy, reference = policy_of(tiny_dir, micro_batch_tokens=micro), policy_of(tiny_dir)
    with torch.no_grad():  # else policy and reference are the same, and every margin is 0
        for parameter in policy.model.parameters():
            parameter.mul_(1.1)
    rows = ragged()
    pairs = [Pair(rows[0], rows[2], "a"), Pair(rows[4], rows[5], "b"), Pair(rows[7], rows[6], "c")]
    settings = config(tiny_dir, beta=0.3, nll=nll)
    metrics = dpo_step(policy, reference, pairs, settings, Ranks())
    gradients = {n: p.grad.clone() for n, p in policy.model.named_parameters()}
    policy.model.zero_grad()

    def sums(of: Any) -> Any:
        layout = of.layout([s for pair in pairs for s in (pair.chosen, pair.rejected)])
        values = of.logprobs(layout)[0]
        return torch.stack([values[layout.row == i].sum() for i in range(6)]).view(3, 2)

    with torch.no_grad():
        fixed = sums(reference)
    now = sums(policy)
    margin = 0.3 * ((now - fixed)[:, 0] - (now - fixed)[:, 1])
    tokens = sum(len(pair.chosen.completion) for pair in pairs)
    loss = torch.log1p(torch.exp(-margin)).mean() - nll * now[:, 0].sum() / tokens
    loss.backward()
    assert metrics["loss"] == pytest.approx(loss.item(), abs=1e-10)
    assert metrics["margin"] == pytest.approx(margin.mean().item(), abs=1e-10)
    assert metrics["preferred"] == pytest.approx((margin > 0).double().mean().item())
    assert max(float(g.abs().max()) for g in gradients.values()) > 1e-3
    for name, parameter in policy.model.named_parameters():
        assert torch.allclose(gradients[name], parameter.grad, rtol=0, atol=1e-10), name


# --- pairs


def test_pairs_are_a_correct_and_a_wrong_trace_of_one_prompt(warehouse: Warehouse) -> None:
    frame = preference_pairs(warehouse, PairsConfig())
    assert frame["problem_id"].to_list() == [f"p{i}" for i in range(6)]
    for row in frame.iter_rows(named=True):
        assert "<answer>" in row["chosen"]
        assert "no idea" in row["rejected"]
        assert row["prompt"].startswith(f"User: {row['problem_id'][1:]} ")
    assert preference_pairs(warehouse, PairsConfig()).equals(frame), "the same seed, the same pairs"
    others = preference_pairs(warehouse, PairsConfig(), seed=1)
    assert not others["rejected_id"].equals(frame["rejected_id"])
    both = preference_pairs(warehouse, PairsConfig(per_prompt=5))
    assert both.height == 12, "no trace is in two pairs"
    assert both["chosen_id"].n_unique() == both["rejected_id"].n_unique() == 12
    assert set(frame["refs"].explode()) == {warehouse.latest("traces", "rejection").ref}


def test_rules_choose_reject_and_order_the_pairs(warehouse: Warehouse) -> None:
    rules = PairsConfig(
        where="problem_id <> 'p0' -- a comment",
        chosen="completion LIKE '%answer%'",
        rejected="verdict IS DISTINCT FROM 'wrong'",  # accepts chosen ones, too: they stay chosen
        by="length(completion)",
    )
    frame = preference_pairs(warehouse, rules)
    assert frame["problem_id"].to_list() == [f"p{i}" for i in range(1, 6)]
    assert set(frame["rejected"]) == {"..."}
    assert frame["chosen"].to_list() == [RIGHT.format(f" {i + 1}") for i in range(1, 6)]


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"chosen": "verdict = 'perfect'"}, "no pairs: 0 traces are chosen and 12 rejected"),
        ({"rejected": "nonsense > 1"}, r"rule 'pairs\.rejected' fails"),
        ({"by": "random()"}, r"rule 'pairs\.by' calls random"),
        ({"where": "(SELECT TRUE)"}, r"rule 'pairs\.where' holds a subquery"),
        ({"chosen": "TRUE; DROP TABLE traces"}, r"rule 'pairs\.chosen'"),
    ],
)
def test_rules_that_cannot_be_used_are_one_message(
    warehouse: Warehouse, rules: dict[str, str], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        preference_pairs(warehouse, PairsConfig(**rules))


# --- runs


def test_the_policy_comes_to_prefer_the_chosen_traces(tiny_dir: Path, warehouse: Warehouse) -> None:
    seen: list[dict[str, float]] = []
    messages: list[str] = []
    settings = config(tiny_dir, epochs=8)
    result = train_dpo(settings, warehouse, lambda s, t, m: seen.append(m), say=messages.append)
    assert len(seen) == result.steps == 16
    assert seen[0]["loss"] == pytest.approx(math.log(2), abs=1e-5), "it starts as its reference"
    assert seen[-1]["loss"] < 0.3
    assert seen[-1]["preferred"] == 1
    assert seen[-1]["reward_chosen"] > seen[-1]["reward_rejected"]
    assert messages[0].startswith("the model is computed as tree")
    assert "⟦ <think> one more" in messages[1]
    row = warehouse.sql("SELECT kind, step FROM models").row(0)
    assert row == ("dpo", 16)
    ancestors = warehouse.sql("SELECT ancestor FROM ancestry WHERE ref LIKE 'model:%'")["ancestor"]
    assert warehouse.latest("traces", "rejection").ref in ancestors.to_list()
    assert train_dpo(settings, warehouse).skipped
    warehouse.write(
        "verdicts",
        "again",
        [
            {
                "trace_id": "t0-4",
                "attempt": 0,
                "verifier": "exact",
                "verifier_version": "2",
                "kind": "rule",
                "verdict": "wrong",
            }
        ],
        key=["again"],
    )
    other = train_dpo(settings.model_copy(update={"pairs": PairsConfig(per_prompt=3)}), warehouse)
    assert not other.skipped, "other pairs make another run"


@pytest.mark.parametrize("lora", [None, {"rank": 4}])
def test_a_killed_run_ends_with_the_same_weights(
    tiny_dir: Path, tmp_path: Path, lora: dict[str, int] | None
) -> None:
    paths = []
    for name in ("whole", "killed"):
        wh = Warehouse(tmp_path / name)
        judged(wh)
        settings = config(
            tiny_dir, epochs=3, checkpoint={"every": 2}, compute=EXACT | {"lora": lora}
        )

        def progress(step: int, total: int, metrics: dict[str, float], name: str = name) -> None:
            if name == "killed" and step == 3:
                raise KeyboardInterrupt

        if name == "killed":
            with pytest.raises(KeyboardInterrupt):
                train_dpo(settings, wh, progress)
        result = train_dpo(settings, wh)
        assert result.resumed_from == (2 if name == "killed" else 0)
        paths.append(result.model_path)
    whole, killed = (weights_of(path) for path in paths)
    assert all(torch.equal(whole[k], killed[k]) for k in whole)
    start = weights_of(tiny_dir)
    assert any(not torch.equal(whole[k], start[k]) for k in whole), "nothing was trained"


def test_traces_that_are_too_long_are_skipped_and_counted(
    tiny_dir: Path, warehouse: Warehouse
) -> None:
    settings = config(tiny_dir, max_length=40, pairs={"per_prompt": 2})
    with pytest.raises(UsageError, match=r"all 12 pairs have a trace longer than max_length=40"):
        train_dpo(settings, warehouse)


def test_dropout_in_adapters_is_refused(tiny_dir: Path) -> None:
    with pytest.raises(ValueError, match=r"compute\.lora\.dropout must be 0"):
        config(tiny_dir, compute={"lora": {"dropout": 0.1}})


def test_dpo_from_a_config(tiny_dir: Path, warehouse: Warehouse) -> None:
    data = {"model": str(tiny_dir), "compute": EXACT, "traces": ["rejection"]}
    with Context(warehouse) as context:
        plan = jobs.describe("dpo", data, context, "dpo")
        assert "pairs   6 of 6 problems, from traces/rejection/" in plan
        assert plan.endswith("steps   1")
        result = jobs.run("dpo", data, context, "dpo")
        assert result is not None
        assert "1 step on 6 pairs" in result.summary
        with pytest.raises(UsageError, match="no traces 'none'"):
            jobs.run("dpo", data | {"traces": ["none"]}, context, "dpo")
        assert jobs.run("dpo", data | {"reference": str(tiny_dir)}, context, "dpo") is not None


def test_a_stage_of_a_pipeline(tiny_dir: Path, warehouse: Warehouse) -> None:
    kind = stage_kind("dpo")
    version = warehouse.latest("traces", "rejection").ref
    data = {"model": str(tiny_dir), "compute": EXACT, "traces": [version], "name": "dpo"}
    with Context(warehouse) as context:
        checked = kind.config(data, "stage dpo")
        assert kind.size(checked, lambda name: None).text == "1 epoch of the pairs that traces give"
        result = kind.run(checked, context)
    assert kind.gives == "model"
    assert result.model is not None
    assert (Path(result.model) / "model.safetensors").exists()
