"""Replay: the same weights from stored rollouts, exact ratios with other settings, and its ends."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from curate.engines import EngineConfig
from curate.engines.transformers import TransformersEngine
from curate.errors import UsageError
from curate.train.config import GRPOConfig
from curate.train.grpo import train_grpo
from curate.train.losses import effective_share, importance_sums
from curate.train.replay import NoEngine, find_run, stored_config
from curate.train.result import TrainResult
from curate.warehouse import Warehouse
from tests.train.test_grpo import (
    PROBLEMS,
    Counting,
    ScriptedVerifier,
    by_chance,
    config,
    killed,
    same_weights,
)

FP32 = EngineConfig(name="transformers", dtype="float32")


@pytest.fixture
def engine(tiny_dir: Path) -> Any:
    return Counting(TransformersEngine(FP32, tiny_dir))


def stored(wh: Warehouse) -> None:
    """Problems as the warehouse holds them, which a replay reads."""
    rows = [
        {
            "problem_id": p.problem_id,
            "question": p.question,
            "reference": p.reference,
            "verifier": p.verifier,
            "split": "train",
        }
        for p in PROBLEMS
    ]
    wh.write("problems", "letters", rows, key="letters")


def fresh(wh: Warehouse, engine: Any, settings: GRPOConfig, rule: Any = by_chance) -> TrainResult:
    stored(wh)
    return train_grpo(
        settings, wh, engine, ScriptedVerifier(rule), PROBLEMS, problems_refs=["problems/p/1"]
    )


def replayed(wh: Warehouse, run_id: str, rule: Any = by_chance, **changes: Any) -> TrainResult:
    """A replay of the run with its own config and some changes, as the job starts it."""
    source = find_run(wh, run_id)
    data = stored_config(source) | changes
    group = data.pop("replay", {})
    settings = GRPOConfig.model_validate(data | {"replay": {"run": source.run_id, **group}})
    return train_grpo(
        settings, wh, NoEngine(), ScriptedVerifier(rule), source.problems(), source=source
    )


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"loss": {"beta": 0.1, "reference_every": 2}, "mini_batches": 2, "epochs": 2},
        {"dynamic_sampling": 2, "optim": {"lr": 1e-3, "schedule": "cosine", "warmup": 1}},
        {"compute": {"precision": "fp32", "device": "cpu", "lora": {"rank": 4}}},
    ],
    ids=["plain", "minibatches", "dynamic", "lora"],
)
def test_a_replay_with_the_same_settings_gives_the_same_weights_bit_for_bit(
    tiny_dir: Path,
    tmp_path: Path,
    engine: Any,
    changes: dict[str, Any],
) -> None:
    wh = Warehouse(tmp_path)
    first = fresh(wh, engine, config(tiny_dir, **changes))
    sampled = engine.requests
    again = replayed(wh, first.run_id)
    assert again.run_id != first.run_id
    assert engine.requests == sampled, "nothing is sampled"
    assert same_weights(first.model_path, again.model_path)
    assert not same_weights(first.model_path, tiny_dir), "training changed the weights"
    if "mini_batches" not in changes:  # a policy that moves within a round leaves its samples
        assert again.metrics["ess"] == pytest.approx(1.0, abs=1e-6)
    assert again.metrics["loss"] == first.metrics["loss"]
    rows = wh.sql("SELECT run_id, sum(reward) AS r, count(*) AS n FROM rollouts GROUP BY run_id")
    assert rows["r"].n_unique() == rows["n"].n_unique() == 1
    assert not Warehouse(tmp_path).versions("traces", "grpo-replay"), "it has no traces of its own"


def test_a_replay_resumes_after_a_kill_with_the_same_weights(
    tiny_dir: Path,
    tmp_path: Path,
    engine: Any,
) -> None:
    wh = Warehouse(tmp_path)
    first = fresh(wh, engine, config(tiny_dir, steps=4))
    source = find_run(wh, first.run_id)
    settings = GRPOConfig.model_validate(stored_config(source) | {"replay": first.run_id})
    with pytest.raises(KeyboardInterrupt):
        train_grpo(
            settings,
            wh,
            NoEngine(),
            ScriptedVerifier(by_chance),
            source.problems(),
            killed(2),
            source=source,
        )
    again = replayed(wh, first.run_id)
    assert again.resumed_from
    assert same_weights(first.model_path, again.model_path)


def other(problem: Any, text: str) -> str:
    return "correct" if sum(map(ord, text)) % 2 == 0 else "wrong"


def test_with_another_reward_the_ratio_is_that_to_the_stored_sampler(
    tiny_dir: Path,
    tmp_path: Path,
    engine: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each round's ratios against log-probs of the policy at that point, computed on their own."""
    from curate.train import grpo

    wh = Warehouse(tmp_path)
    first = fresh(wh, engine, config(tiny_dir))
    seen: list[tuple[Any, Any, Any, float]] = []
    plain = grpo.policy_loss

    def spy(tokens: Any, **options: Any) -> Any:
        out = plain(tokens, **options)
        seen.append((tokens.new.detach(), tokens.old, tokens.sampler, out.sums["ratio"]))
        return out

    monkeypatch.setattr(grpo, "policy_loss", spy)
    again = replayed(wh, first.run_id, other, optim={"lr": 3e-3}, replay={"min_ess": 0})
    assert not same_weights(first.model_path, again.model_path)
    assert seen[0][1] is None, "in the first round the policy is the one that sampled"
    for new, old, sampler, ratio in seen[1:]:
        assert torch.equal(old, sampler), "no cap acts on an exact ratio"
        assert ratio == pytest.approx(float((new - sampler).exp().sum()), rel=1e-5)
    moved = seen[-1][0] - seen[-1][1]
    assert moved.abs().max() > 1e-3, "a policy that has not moved proves nothing"
    metrics = wh.sql(
        "SELECT step, value FROM metrics WHERE run_id = ? AND name = 'ess' ORDER BY step",
        [again.run_id],
    )
    assert metrics["value"][0] == pytest.approx(1.0, abs=1e-6)
    assert metrics["value"][-1] < 0.9999


def test_the_first_gradient_of_a_replay_equals_the_fresh_one_with_that_reward(
    tiny_dir: Path,
    tmp_path: Path,
    engine: Any,
) -> None:
    """After one step, a replay with another reward is the fresh run with that reward."""
    wh = Warehouse(tmp_path / "a")
    first = fresh(wh, engine, config(tiny_dir, steps=1))
    again = replayed(wh, first.run_id, other)
    theirs = fresh(Warehouse(tmp_path / "b"), engine, config(tiny_dir, steps=1), other)
    assert same_weights(theirs.model_path, again.model_path)
    assert not same_weights(first.model_path, again.model_path)


def test_a_replay_ends_before_the_step_whose_completions_are_worth_too_little(
    tiny_dir: Path,
    tmp_path: Path,
    engine: Any,
) -> None:
    wh = Warehouse(tmp_path)
    first = fresh(wh, engine, config(tiny_dir, steps=4))
    again = replayed(wh, first.run_id, other, optim={"lr": 0.05}, replay={"min_ess": 0.9})
    assert 0 < again.steps < 4
    assert f"before step {again.steps + 1}" in again.ended
    assert "replay.min_ess=0.9" in again.ended
    worth = wh.sql(
        "SELECT value FROM metrics WHERE run_id = ? AND name = 'ess' ORDER BY step DESC LIMIT 1",
        [again.run_id],
    ).item()
    assert worth < 0.9
    whole = replayed(wh, first.run_id, other, optim={"lr": 0.05}, replay={"min_ess": 0})
    assert whole.steps == 4
    assert not whole.ended


def test_a_buffer_of_own_rounds_mixes_stored_and_fresh_rollouts(
    tiny_dir: Path,
    tmp_path: Path,
    engine: Any,
) -> None:
    settings = {"steps": 5, "replay": {"run": "own", "fresh": 2, "staleness": 2, "min_ess": 0}}
    wh = Warehouse(tmp_path / "a")
    result = fresh(wh, engine, config(tiny_dir, **settings))
    metrics = wh.sql(
        "SELECT name, step, value FROM metrics WHERE run_id = ? ORDER BY step", [result.run_id]
    )

    def course(name: str) -> list[float]:
        return metrics.filter(metrics["name"] == name)["value"].to_list()

    assert course("replayed") == [0.0, 0.5, 0.5, 0.5, 0.5], "the first round has none to draw from"
    assert all(1 <= age <= 2 for age in course("staleness")), "no older than the limit"
    assert engine.requests == (4 + 4 * 2) * 4
    stored(Warehouse(tmp_path / "b"))
    with pytest.raises(KeyboardInterrupt):
        train_grpo(
            config(tiny_dir, **settings),
            Warehouse(tmp_path / "b"),
            engine,
            ScriptedVerifier(by_chance),
            PROBLEMS,
            killed(3),
            problems_refs=["problems/p/1"],
        )
    again = fresh(Warehouse(tmp_path / "b"), engine, config(tiny_dir, **settings))
    assert again.resumed_from
    assert same_weights(result.model_path, again.model_path)


def test_stored_rounds_of_another_run_next_to_fresh_ones(
    tiny_dir: Path,
    tmp_path: Path,
    engine: Any,
) -> None:
    wh = Warehouse(tmp_path)
    first = fresh(wh, engine, config(tiny_dir))
    source = find_run(wh, first.run_id)
    before = engine.requests
    settings = config(
        tiny_dir,
        name="mixed",
        replay={"run": first.run_id, "fresh": 1, "staleness": 0, "min_ess": 0},
    )
    result = train_grpo(settings, wh, engine, ScriptedVerifier(other), PROBLEMS, source=source)
    assert engine.requests - before == 3 * 4
    assert result.metrics["replayed"] == 0.75
    assert result.metrics["staleness"] == 0
    parents = wh.latest("rollouts", "mixed").manifest["parents"]
    assert f"traces/grpo/{first.run_id}" in parents


def test_effective_sample_size_by_hand() -> None:
    log_ratio = torch.tensor([math.log(2), math.log(2), 0.0, math.log(0.5)])
    sums = importance_sums(log_ratio, torch.tensor([0, 0, 1, 2]), 3)
    # weights 4, 1 and 1/2
    assert effective_share(sums) == pytest.approx(5.5**2 / (3 * (16 + 1 + 0.25)))
    assert effective_share({}) == 1.0
    assert effective_share(importance_sums(torch.zeros(4), torch.tensor([0, 0, 1, 2]), 3)) == 1.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompts": 8}, r"4 problems with 4 completions, fewer than prompts=8"),
        ({"sampling": {"max_tokens": 6, "temperature": 0.7}}, r"sampled at temperature 1, and"),
    ],
)
def test_what_cannot_be_replayed_exactly_is_refused(
    tiny_dir: Path,
    tmp_path: Path,
    engine: Any,
    changes: dict[str, Any],
    message: str,
) -> None:
    wh = Warehouse(tmp_path)
    first = fresh(wh, engine, config(tiny_dir, steps=1))
    with pytest.raises(UsageError, match=message):
        replayed(wh, first.run_id, **changes)


def test_another_tokenizer_and_lost_tokens_are_refused(
    tiny_dir: Path,
    tmp_path: Path,
    engine: Any,
) -> None:
    from curate.engines.testing.tiny import make_tiny_model

    wh = Warehouse(tmp_path / "wh")
    first = fresh(wh, engine, config(tiny_dir, steps=1))
    stranger = make_tiny_model(tmp_path / "stranger", characters="sayb cdefgh0123456789")
    with pytest.raises(UsageError, match="the tokenizer of"):
        replayed(wh, first.run_id, model=str(stranger))
    private = fresh(wh, engine, config(tiny_dir, steps=1, keep_tokens=False, name="private"))
    with pytest.raises(UsageError, match="keep_tokens=true"):
        replayed(wh, private.run_id)
    with pytest.raises(UsageError, match=r"replay: no run called 'nothing'.*runs: "):
        find_run(wh, "nothing")


def test_a_merged_run_is_replayed_all_the_same(
    tiny_dir: Path,
    tmp_path: Path,
    engine: Any,
) -> None:
    from curate.warehouse.merge import merge

    wh = Warehouse(tmp_path)
    first = fresh(wh, engine, config(tiny_dir))
    assert merge(wh, "traces", "grpo")
    assert merge(wh, "rollouts", "grpo")
    again = replayed(wh, first.run_id)
    assert same_weights(first.model_path, again.model_path)
