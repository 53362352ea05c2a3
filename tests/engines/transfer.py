"""vLLM's weight transfer on a CPU: both ends are real, only NCCL's broadcast goes over a TCP
store.

`main` is the trainer's process: an engine in its child, and new weights sent without a file. It
prints the outcome as JSON.
"""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any, ClassVar

from curate.engines.base import EngineConfig
from curate.engines.vllm import VllmEngine
from curate.engines.vllm_core import VllmCore
from curate.records import Request, Sampling


class Store:
    """Stands in for vLLM's NCCL communicator."""

    def __init__(self, address: str, port: int, rank: int, size: int) -> None:
        from vllm.distributed.utils import StatelessProcessGroup

        self.group = StatelessProcessGroup.create(address, port, rank, size)
        self.rank = rank

    def broadcast(self, tensor: Any, src: int, stream: Any) -> None:
        sent = self.group.broadcast_obj(tensor.contiguous() if self.rank == src else None, src)
        if self.rank != src:
            tensor.copy_(sent)

    def destroy(self) -> None:
        self.group = None


def without_cuda() -> None:
    import torch
    from vllm.distributed.weight_transfer import nccl_engine

    def worker(info: Any, parallel: Any) -> Store:
        return Store(
            info.master_address, info.master_port, info.rank_offset + parallel.rank, info.world_size
        )

    nccl_engine.worker_init_process_group = worker  # type: ignore[assignment]
    nccl_engine.open_trainer_endpoint = lambda info: Store(
        info.master_address, info.master_port, 0, info.world_size
    )  # type: ignore[assignment]
    torch.cuda.current_stream = lambda *_: None  # type: ignore[assignment, return-value]
    torch.accelerator.synchronize = lambda *_: None  # type: ignore[assignment]


class Core(VllmCore):
    def __init__(self, model_dir: str, config: dict[str, Any]) -> None:
        super().__init__(model_dir, config)
        without_cuda()

    def spoil(self) -> None:
        """Make one tensor of the engine differ from the one that was sent."""

        def add(worker: Any) -> None:
            next(iter(worker.get_model().parameters())).data.add_(1)

        self.engine.collective_rpc(add)


class Engine(VllmEngine):
    core = "tests.engines.transfer:Core"
    transfer_options: ClassVar = {"packed": False}  # packing is done in CUDA streams


def main(tiny: str, other: str, replicas: str) -> None:
    from safetensors.torch import load_file

    from curate.engines.proof import expected_hashes
    from curate.errors import CurateError

    without_cuda()
    settings = {
        "dtype": "float32",
        "memory": 0.25,
        "max_model_len": 256,
        "replicas": int(replicas),
        "transfer": "nccl",
    }
    engine = Engine(EngineConfig.model_validate({"name": "vllm", **settings}), tiny)

    def texts() -> list[str]:
        batch = [
            Request(f"{i}", f"What is {i}?", 100 + i, Sampling(max_tokens=12, temperature=0.0))
            for i in range(8)
        ]
        return [c.text for c in sorted(engine.generate(batch), key=lambda c: c.request_id)]

    report: dict[str, Any] = {"transfers": engine.transfers, "before": texts()}
    new, old = (load_file(Path(path) / "model.safetensors") for path in (other, tiny))
    report["proof"] = engine.receive_weights(new, "cpu")
    report["after"] = texts()
    for child in engine._children[
        :1
    ]:  # one dies: it restarts from the weights sent, and takes the next ones, too
        os.kill(child.process.pid, signal.SIGKILL)
        child.process.wait()
    report["restarted"], report["restarts"] = texts(), engine.restarts
    engine.receive_weights(old, "cpu")
    report["back"] = texts()
    engine._children[0].call("spoil")
    try:
        engine._children[0].call("prove_transfer", expected_hashes(old, 1))
    except CurateError as error:
        report["spoiled"] = str(error)
    report["files"] = engine.update_weights(other)
    engine.close()
    print("\nSAID " + json.dumps(report))
