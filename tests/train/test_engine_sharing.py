"""Engine and trainer together: on one GPU the engine sleeps while the trainer works, on
separate GPUs it gets weights without files. Tested with scripted engines; never run with vLLM
on a GPU.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from curate.engines import EngineConfig
from curate.engines.transformers import TransformersEngine, copy_weights
from curate.engines.vllm_core import VllmCore
from curate.errors import UsageError
from curate.records import Completion, Request
from curate.train import grpo
from curate.train import job as jobs
from curate.train.grpo import train_grpo
from curate.warehouse import Warehouse
from tests.train.conftest import DEVICE
from tests.train.test_grpo import PROBLEMS, ScriptedVerifier, by_chance, config, same_weights

pytestmark = pytest.mark.skipif(DEVICE != "cpu", reason="tells of an engine as if there were a GPU")


class Recording:
    """An engine that records its calls, in order."""

    name = "transformers"

    def __init__(self, path: Path) -> None:
        self.engine = TransformersEngine(EngineConfig(name="transformers", dtype="float32"), path)
        self.calls: list[str] = []
        self.asleep = False

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
        assert not self.asleep
        self.calls.append("generate")
        yield from self.engine.generate(requests)

    def update_weights(self, path: Path) -> str:
        assert not self.asleep
        self.calls.append("files")
        return self.engine.update_weights(path)

    def sleep(self) -> None:
        self.calls.append("sleep")
        self.asleep = True

    def wake(self) -> None:
        self.calls.append("wake")
        self.asleep = False


class Receiving(Recording):
    """Like vLLM on separate GPUs: tensors come by name."""

    transfers = True
    seen: Any = None

    def receive_weights(self, tensors: dict[str, Any], device: Any) -> str:
        self.calls.append("tensors")
        self.seen = set(tensors)
        from tempfile import TemporaryDirectory

        from safetensors.torch import save_file

        with TemporaryDirectory() as folder:
            save_file(
                {k: v.contiguous() for k, v in tensors.items()}, Path(folder) / "model.safetensors"
            )
            return copy_weights(self.engine.model, Path(folder))


def watched(monkeypatch: pytest.MonkeyPatch, engine: Recording) -> None:
    """Record the steps of the optimizer as well."""
    plain = grpo.optimizer_step

    def step(*arguments: Any) -> float:
        engine.calls.append("train")
        return plain(*arguments)

    monkeypatch.setattr(grpo, "optimizer_step", step)


def test_on_the_trainers_gpu_the_engine_sleeps_while_the_trainer_works(
    tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Recording(tiny_dir)
    watched(monkeypatch, engine)
    monkeypatch.setattr(grpo, "shares_gpu", lambda *_: True)
    settings = config(tiny_dir, steps=2, evaluation={"every": 1, "samples": 1})
    result = train_grpo(
        settings,
        Warehouse(tmp_path / "a"),
        engine,
        ScriptedVerifier(by_chance),
        PROBLEMS,
        held_out=PROBLEMS[:1],
    )
    one = [
        "generate",
        "sleep",
        "train",
        "wake",
        "files",
        "generate",
    ]  # rollouts first, held-out problems last
    assert engine.calls == ["files", "generate", *one, *one, "files"]
    monkeypatch.undo()
    awake = Recording(tiny_dir)
    plain = train_grpo(
        settings,
        Warehouse(tmp_path / "b"),
        awake,
        ScriptedVerifier(by_chance),
        PROBLEMS,
        held_out=PROBLEMS[:1],
    )
    assert "sleep" not in awake.calls
    assert same_weights(result.model_path, plain.model_path)


def test_an_engine_on_its_own_gpus_gets_weights_without_files(
    tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Receiving(tiny_dir)
    watched(monkeypatch, engine)
    wh = Warehouse(tmp_path / "a")
    result = train_grpo(
        config(tiny_dir, steps=2), wh, engine, ScriptedVerifier(by_chance), PROBLEMS
    )
    assert engine.calls == ["tensors", *["generate", "train", "tensors"] * 2, "files"], (
        "files at the end, where it stays"
    )
    names = set(torch_names(result.model_path))
    assert engine.seen == names, "what shares a tensor is sent once, as in a checkpoint"
    assert wh.sql("SELECT count(DISTINCT model_hash) AS n FROM traces")["n"][0] == 2
    monkeypatch.undo()
    plain = train_grpo(
        config(tiny_dir, steps=2),
        Warehouse(tmp_path / "b"),
        Recording(tiny_dir),
        ScriptedVerifier(by_chance),
        PROBLEMS,
    )
    assert same_weights(result.model_path, plain.model_path)


def torch_names(path: Path) -> list[str]:
    from safetensors import safe_open

    with safe_open(path / "model.safetensors", "pt") as file:
        return list(file.keys())


def test_which_engines_share_the_trainers_gpu() -> None:
    cuda, cpu = torch.device("cuda:0"), torch.device("cpu")
    beside = SimpleNamespace(config=EngineConfig(name="vllm"))
    apart = SimpleNamespace(config=EngineConfig(name="vllm", devices=[1]))
    assert [grpo.shares_gpu(d, e) for d in (cuda, cpu) for e in (beside, apart)] == [
        True,
        False,
        False,
        False,
    ]


def test_sleep_and_wake_reach_a_vllm_that_was_opened_for_them() -> None:
    for able, expected in ((True, ["sleep 1", "wake"]), (False, [])):
        calls: list[str] = []
        core = object.__new__(VllmCore)
        core.engine = SimpleNamespace(
            vllm_config=SimpleNamespace(model_config=SimpleNamespace(enable_sleep_mode=able)),
            sleep=lambda level, calls=calls: calls.append(f"sleep {level}"),
            wake_up=lambda calls=calls: calls.append("wake"),
        )
        core.sleep()
        core.wake()
        assert calls == expected


def test_the_config_of_an_engine_next_to_a_trainer(monkeypatch: pytest.MonkeyPatch) -> None:
    vllm = EngineConfig(name="vllm", args={"block_size": 16})
    shared = jobs.rollout_engine_config(vllm, "cuda:0")
    assert (shared.args, shared.transfer) == ({"enable_sleep_mode": True, "block_size": 16}, "auto")
    assert jobs.rollout_engine_config(vllm, "cpu") is vllm, (
        "so that the engine of other stages is reused"
    )
    awake = EngineConfig(name="vllm", args={"enable_sleep_mode": False})
    assert jobs.rollout_engine_config(awake, "cuda:0").args == awake.args, (
        "an explicit setting wins"
    )
    assert jobs.rollout_engine_config(EngineConfig(name="transformers"), "cuda:0").args == {}
    apart = jobs.rollout_engine_config(EngineConfig(name="vllm", devices=[1, 2]), "cuda:0")
    assert (apart.args, apart.transfer) == ({}, "nccl"), "no need to sleep"
    with pytest.raises(UsageError, match=r"engine\.devices names GPU 0, which the trainer uses"):
        jobs.rollout_engine_config(EngineConfig(name="vllm", devices=[0, 1]), "cuda:0")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(UsageError, match=r"engine\.devices names GPU 1, which the trainer uses"):
        jobs.rollout_engine_config(EngineConfig(name="vllm", devices=[1, 2]), "cuda:0")
