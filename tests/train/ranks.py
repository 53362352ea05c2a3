"""What one rank of tests/train/test_ranks.py runs."""

from __future__ import annotations

from typing import Any


def main(kind: str, model: str, warehouse: str, fsdp: str) -> None:
    from curate.train.world import join_world
    from curate.warehouse import Warehouse

    compute = {"precision": "fp32", "device": "cpu", "fsdp": fsdp == "1", "micro_batch_tokens": 100}
    (sft if kind == "sft" else grpo)(model, Warehouse(warehouse), compute)
    if join_world().size > 1:
        import torch.distributed as dist

        dist.destroy_process_group()


def sft(model: str, wh: Any, compute: dict[str, Any]) -> None:
    from curate.train.config import SFTConfig
    from curate.train.sft import train_sft

    data = {"model": model, "corpus": "sums", "batch_size": 5, "compute": compute, "checkpoint": {"every": 1}}
    train_sft(SFTConfig.model_validate(data | {"optim": {"lr": 1e-3}}), wh)


def grpo(model: str, wh: Any, compute: dict[str, Any]) -> None:
    from curate.engines import EngineConfig
    from curate.engines.transformers import TransformersEngine
    from curate.train.grpo import train_grpo
    from curate.train.world import join_world
    from tests.train.test_grpo import PROBLEMS, Judge, by_chance, config

    engine = None
    if join_world().first:
        engine = TransformersEngine(EngineConfig(name="transformers", dtype="float32"), model)
    settings = config(model, steps=2, compute=compute, loss={"beta": 0.1}, mini_batches=2)  # type: ignore[arg-type]
    train_grpo(settings, wh, engine, Judge(by_chance), PROBLEMS)
