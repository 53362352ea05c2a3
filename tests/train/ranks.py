"""Program of one process of tests/train/test_ranks.py and test_kill.py."""

from __future__ import annotations

from typing import Any


def main(kind: str, model: str, warehouse: str, fsdp: str) -> None:
    """`kind`: sft, bf16 (sft in it), lora, dpo, grpo or gradients; `-until-2`: die after step 2."""
    from curate.train.ranks import leave_ranks
    from curate.warehouse import Warehouse

    kind, _, dies = kind.partition("-")
    if dies:
        die_at(2)
    compute: dict[str, Any] = {
        "precision": "fp32",
        "device": "cpu",
        "fsdp": fsdp == "1",
        "micro_batch_tokens": 100,
    }
    if kind == "bf16":
        compute["precision"] = "bf16"
    if kind == "lora":
        compute["lora"] = {"rank": 4}
    if kind == "gradients":
        gradients(model, warehouse, compute)
    else:
        {"grpo": grpo, "dpo": dpo}.get(kind, sft)(model, Warehouse(warehouse), compute)
    leave_ranks()


def gradients(model: str, folder: str, compute: dict[str, Any]) -> None:
    """Write gradients of one float64 step of each loss, by loss and parameter: `gradients.pt`."""
    import random
    from pathlib import Path

    import torch

    from curate.train.config import GRPOConfig, ModelConfig
    from curate.train.grpo import RolloutRow, grpo_step
    from curate.train.model.loading import load_policy
    from curate.train.model.sharding import shard
    from curate.train.ranks import join_ranks
    from curate.train.sft import TrainingExample, likelihood, sft_step
    from tests.train.conftest import ragged

    ranks = join_ranks()
    options = ModelConfig.model_validate(compute | {"micro_batch_tokens": 30})
    policy, _ = load_policy(model, options)
    policy.model.double()
    shard(policy, ranks, options)
    dice = random.Random(1)

    def near(count: int) -> list[float]:
        return [-4.0 + 0.3 * dice.gauss(0, 1) for _ in range(count)]

    rows = []
    for i, tokens in enumerate(ragged()):
        n = len(tokens.completion)
        rows.append(
            RolloutRow(
                tokens,
                f"t{i}",
                i // 4,
                dice.gauss(0, 1),
                i != 5,
                near(n),
                old=near(n),
                ref=near(n),
            )
        )
        rows[-1].old, rows[-1].ref = (
            torch.tensor(x, dtype=torch.float64) for x in (rows[-1].old, rows[-1].ref)
        )
    examples = [TrainingExample(tokens, 1.0 + i, f"t{i}", 0.5) for i, tokens in enumerate(ragged())]
    results: dict[str, dict[str, Any]] = {}
    for kind in ("grpo", "dr_grpo", "dapo", "sft"):
        if kind == "sft":
            sft_step(policy, examples, ranks, likelihood)
        else:
            loss = {
                "normalisation": kind,
                "beta": 0.1,
                "ratio": "sequence" if kind == "dapo" else "token",
            }
            grpo_step(
                policy, rows, GRPOConfig.model_validate({"model": model, "loss": loss}), ranks, 1
            )
        results[kind] = {}
        for name, parameter in policy.model.named_parameters():
            grad = parameter.grad
            results[kind][name] = (
                grad.full_tensor() if hasattr(grad, "full_tensor") else grad
            ).clone()
            parameter.grad = None
    if ranks.first:
        torch.save(results, Path(folder) / "gradients.pt")


def die_at(step: int) -> None:
    import os

    from curate.train.checkpoints import Checkpoints

    save = Checkpoints.save

    def deadly(self: Checkpoints, at: int, *args: Any, **state: Any) -> None:
        save(self, at, *args, **state)
        if at == step:
            os._exit(9)

    Checkpoints.save = deadly  # type: ignore[method-assign]


def sft(model: str, wh: Any, compute: dict[str, Any]) -> None:
    from curate.train.config import SFTConfig
    from curate.train.sft import train_sft

    data = {
        "model": model,
        "corpus": "sums",
        "batch_size": 5,
        "compute": compute,
        "checkpoint": {"every": 1},
    }
    lr = 1e-2 if "lora" in compute else 1e-3
    train_sft(SFTConfig.model_validate(data | {"optim": {"lr": lr}}), wh)


def dpo(model: str, wh: Any, compute: dict[str, Any]) -> None:
    from curate.train.config import DPOConfig
    from curate.train.dpo import train_dpo

    data = {
        "model": model,
        "batch_size": 3,
        "epochs": 2,
        "compute": compute,
        "optim": {"lr": 1e-3},
        "checkpoint": {"every": 1},
    }
    train_dpo(DPOConfig.model_validate(data), wh)


def grpo(model: str, wh: Any, compute: dict[str, Any]) -> None:
    from curate.engines import EngineConfig
    from curate.engines.transformers import TransformersEngine
    from curate.train.grpo import train_grpo
    from curate.train.ranks import join_ranks
    from tests.train.test_grpo import PROBLEMS, ScriptedVerifier, by_chance, config

    engine = None
    if join_ranks().first:
        engine = TransformersEngine(EngineConfig(name="transformers", dtype="float32"), model)
    settings = config(model, steps=2, compute=compute, loss={"beta": 0.1}, mini_batches=2)  # type: ignore[arg-type]
    train_grpo(settings, wh, engine, ScriptedVerifier(by_chance), PROBLEMS)


def until_killed(model: str, warehouse: str, at: str) -> None:
    """A run that SIGKILLs itself: `sample:N` during round N's rollouts, `step:N` after it."""
    import os
    import signal

    from curate.engines import EngineConfig
    from curate.engines.transformers import TransformersEngine
    from curate.train.grpo import train_grpo
    from curate.warehouse import Warehouse
    from tests.train.test_grpo import PROBLEMS, Counting, ScriptedVerifier, by_chance, config

    kind, _, number = at.partition(":")

    class Deadly(Counting):
        def generate(self, requests: Any) -> Any:
            for done in super().generate(requests):
                if kind == "sample" and self.requests == int(number) * 16 - 5:
                    os.kill(os.getpid(), signal.SIGKILL)
                yield done

    def progress(step: int, total: int, metrics: dict[str, float]) -> None:
        if kind == "step" and step == int(number):
            os.kill(os.getpid(), signal.SIGKILL)

    engine = Deadly(TransformersEngine(EngineConfig(name="transformers", dtype="float32"), model))
    settings = config(model, steps=4, checkpoint={"every": 2})  # type: ignore[arg-type]
    train_grpo(
        settings, Warehouse(warehouse), engine, ScriptedVerifier(by_chance), PROBLEMS, progress
    )
