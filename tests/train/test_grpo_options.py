"""Single options of GRPO: moving reference, limits of dynamic sampling, sampler correction, tokens
that expire, adapters, and the progress display.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from curate.engines import EngineConfig
from curate.engines.transformers import TransformersEngine
from curate.errors import CurateError
from curate.records import Completion, Request, Sampling
from curate.train.grpo import train_grpo
from curate.warehouse import Warehouse
from tests.train.test_grpo import (
    EXACT,
    PROBLEMS,
    Counting,
    ScriptedVerifier,
    by_chance,
    config,
    killed,
    same_weights,
)


@pytest.fixture
def engine(tiny_dir: Path) -> Any:
    return Counting(
        TransformersEngine(EngineConfig(name="transformers", dtype="float32"), tiny_dir)
    )


def rounds(settings: Any, root: Path, engine: Any, rule: Any = by_chance) -> list[dict[str, float]]:
    """Return the metrics of every round."""
    seen: list[dict[str, float]] = []
    train_grpo(
        settings,
        Warehouse(root),
        engine,
        ScriptedVerifier(rule),
        PROBLEMS,
        lambda s, t, m: seen.append(m),
    )
    return seen


def test_replacing_the_reference_resets_the_kl(tiny_dir: Path, tmp_path: Path, engine: Any) -> None:
    loss = {"beta": 0.1}
    fixed = rounds(config(tiny_dir, steps=4, loss=loss), tmp_path / "a", engine)
    moving = rounds(
        config(tiny_dir, steps=4, loss=loss | {"reference_every": 2}), tmp_path / "b", engine
    )
    assert [m["kl"] > 1e-6 for m in fixed] == [False, True, True, True]
    # replaced after the second round: the third is measured against the policy itself
    assert [m["kl"] > 1e-6 for m in moving] == [False, True, False, True]


def test_dynamic_sampling_ends_at_its_limit(tiny_dir: Path, tmp_path: Path, engine: Any) -> None:
    settings = config(tiny_dir, steps=1, dynamic_sampling=2)
    (metrics,) = rounds(settings, tmp_path, engine, lambda p, c: "correct")
    assert engine.requests == (1 + 2) * 4 * 4
    assert metrics["zero_variance"] == 1.0
    assert metrics["computed"] == 0


class Shifted(Counting):
    """An engine whose log-probs are off by a constant."""

    shift = -math.log(4.0)

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
        for done in super().generate(requests):
            done.logprobs = [x + self.shift for x in done.logprobs]
            yield done


def test_a_sampler_that_differs_is_measured_and_corrected_up_to_a_cap(
    tiny_dir: Path, tmp_path: Path, engine: Any
) -> None:
    def once(name: str, engine: Any, cap: float | None) -> dict[str, float]:
        return rounds(
            config(tiny_dir, steps=1, loss={"sampler_cap": cap}), tmp_path / name, engine
        )[0]

    plain, off = once("plain", engine, 2.0), Shifted(engine.engine)
    capped, free, none = once("capped", off, 2.0), once("free", off, 10.0), once("none", off, None)
    assert plain["mismatch"] < 1e-5
    assert plain["capped"] == 0
    for metrics in (capped, free, none):
        assert metrics["mismatch"] == pytest.approx(math.log(4.0), abs=1e-5)
    # pi / pi_sampler is 4 everywhere: capped at 2, used unchanged, or not corrected
    assert (capped["capped"], free["capped"]) == (1.0, 0.0)
    for metrics, factor in ((capped, 2.0), (free, 4.0), (none, 1.0)):
        assert metrics["grad_norm"] == pytest.approx(factor * plain["grad_norm"], rel=1e-4)


def test_tokens_that_expire(tiny_dir: Path, tmp_path: Path, engine: Any) -> None:
    wh = Warehouse(tmp_path)
    settings = config(tiny_dir, steps=4, keep_tokens=30, checkpoint={"every": 2})
    with pytest.raises(KeyboardInterrupt):
        train_grpo(settings, wh, engine, ScriptedVerifier(by_chance), PROBLEMS, killed(4))
    assert (
        wh.sql("SELECT count(completion_token_ids) + count(logprobs) AS n FROM traces")["n"][0] == 0
    )

    def kept() -> list[str]:
        return sorted(p.name for p in tmp_path.glob("checkpoints/*/rounds/*.parquet"))

    names = [f"step-{i:06d}.parquet" for i in range(4)]
    assert kept() == names
    for path in tmp_path.glob("checkpoints/*/rounds/*.parquet"):
        os.utime(path, times=(time.time() - 31 * 86_400,) * 2)
    other = config(tiny_dir, steps=1, seed=1)
    train_grpo(other, wh, engine, ScriptedVerifier(by_chance), PROBLEMS)
    assert kept() == names[2:], (
        "older than 30 days, but a rerun goes on from the checkpoint after two rounds"
    )
    result = train_grpo(settings, wh, engine, ScriptedVerifier(by_chance), PROBLEMS)
    assert result.resumed_from == 2
    assert kept() == names[2:], "the rounds of a finished run stay for their days"
    train_grpo(
        other.model_copy(update={"seed": 2}), wh, engine, ScriptedVerifier(by_chance), PROBLEMS
    )
    assert kept() == []
    in_table = train_grpo(
        config(tiny_dir, steps=4),
        Warehouse(tmp_path / "b"),
        engine,
        ScriptedVerifier(by_chance),
        PROBLEMS,
    )
    assert same_weights(result.model_path, in_table.model_path)


def test_tokens_can_be_left_out(tiny_dir: Path, tmp_path: Path, engine: Any) -> None:
    wh = Warehouse(tmp_path)
    train_grpo(
        config(tiny_dir, keep_tokens=False), wh, engine, ScriptedVerifier(by_chance), PROBLEMS
    )
    row = wh.sql(
        "SELECT count(completion_token_ids) AS ids, count(logprobs) AS lp, count(completion) AS c "
        "FROM traces"
    )
    assert row.row(0) == (0, 0, 48)
    assert not list(tmp_path.glob("checkpoints/*/rounds/*"))


def test_adapters_reach_the_engine_merged(tiny_dir: Path, tmp_path: Path, engine: Any) -> None:
    lora = EXACT | {"lora": {"rank": 4, "alpha": 16}}
    settings = config(
        tiny_dir, steps=4, compute=lora, optim={"lr": 3e-2, "schedule": "constant", "warmup": 0}
    )
    wh = Warehouse(tmp_path)
    seen: list[dict[str, float]] = []
    result = train_grpo(
        settings, wh, engine, ScriptedVerifier(by_chance), PROBLEMS, lambda s, t, m: seen.append(m)
    )
    # The engine's log-probs are those of the policy with its adapters, round after round.
    assert max(m["mismatch"] for m in seen) < 1e-4
    assert wh.sql("SELECT count(DISTINCT model_hash) AS n FROM traces")["n"][0] == 4
    # The exported weights are those of the engine, and they have moved.
    plain = TransformersEngine(EngineConfig(name="transformers", dtype="float32"), tiny_dir)
    exported = TransformersEngine(
        EngineConfig(name="transformers", dtype="float32"), result.model_path
    )
    ask = [
        Request(str(i), "say a", i, Sampling(1.0, max_tokens=6, logprobs=True)) for i in range(8)
    ]

    def sampled(who: Any) -> list[Any]:
        return sorted((c.request_id, c.token_ids) for c in who.generate(ask))

    assert sampled(engine) == sampled(exported) != sampled(plain)


def test_completions_and_speeds_are_shown(tiny_dir: Path, tmp_path: Path, engine: Any) -> None:
    messages: list[str] = []
    seen: list[dict[str, float]] = []
    train_grpo(
        config(tiny_dir, steps=4, show_every=2),
        Warehouse(tmp_path),
        engine,
        ScriptedVerifier(by_chance),
        PROBLEMS,
        lambda s, t, m: seen.append(m),
        say=messages.append,
    )
    shown = [message for message in messages if message.startswith("completions of step")]
    assert len(shown) == 2
    assert all("say " in text and "reward" in text for text in shown)
    for metrics in seen:
        tokens = metrics["rollout_tokens"] / metrics["seconds_rollout"]
        assert metrics["rollout_tokens_per_second"] == pytest.approx(tokens)
        assert metrics["tokens_per_second"] == pytest.approx(
            metrics["trained_tokens"] / metrics["seconds_train"]
        )


def test_out_of_memory_says_what_to_lower(
    tiny_dir: Path, tmp_path: Path, engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from curate.train.model.policy import Policy

    def full(*_: Any, **__: Any) -> Any:
        raise RuntimeError(
            "[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory"
        )

    def train(root: Path) -> None:
        train_grpo(config(tiny_dir), Warehouse(root), engine, ScriptedVerifier(by_chance), PROBLEMS)

    with monkeypatch.context() as patch:
        patch.setattr(Policy, "logprobs", full)
        message = r"out of memory while the model was loaded: lower compute.micro_batch_tokens"
        with pytest.raises(CurateError, match=message):
            train(tmp_path / "loading")
    monkeypatch.setattr("curate.train.grpo.grpo_step", full)
    message = r"out of memory at step 1: lower compute.micro_batch_tokens"
    with pytest.raises(CurateError, match=message):
        train(tmp_path / "training")
