"""Send weights from a trainer on one GPU into vLLM on others by vLLM's own transfer (NCCL), without
files.

    trainer (rank 0) ──broadcast──▶ workers of replica 1 (ranks 1 …), workers of replica 2, …

vLLM has both ends (`vllm.distributed.weight_transfer`) and leaves the rest to its caller, this
module: the messages to our children, the tensors to send, and the proof that they arrived, by
hashes that each worker computes of the tensors it then holds.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Literal

from curate.engines.base import EngineConfig
from curate.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from curate.engines.child import Child


def way_of_weights(config: EngineConfig, name: str, device: str) -> Literal["nccl", "files"]:
    """Choose how new weights reach the engine `name` from a trainer on `device` (cpu, cuda:0, …).

    nccl needs vLLM on its own GPUs, because NCCL cannot join two processes on one GPU. Raises
    UsageError if `engine.transfer` asks for the impossible.
    """
    possible = name == "vllm" and config.devices is not None and device.startswith("cuda")
    if config.transfer == "nccl" and not possible:
        raise UsageError(
            "engine.transfer=nccl needs vLLM on its own GPUs (engine.devices) and a trainer on a "
            f"GPU; the engine is {name}, engine.devices is {config.devices} and the trainer is on "
            f"{device}: use engine.transfer=files"
        )
    return "nccl" if possible and config.transfer != "files" else "files"


class Children:
    """The four calls of vLLM's trainer side, sent to all replicas; each blocks until all return."""

    def __init__(self, children: list[Child], size: int) -> None:
        self.children, self.size = children, size

    def _all(
        self, method: str, arguments: Callable[[int], tuple[Any, ...]] = lambda replica: ()
    ) -> None:
        with ThreadPoolExecutor(len(self.children)) as pool:
            calls = [
                pool.submit(child.call, "transfer", method, *arguments(i))
                for i, child in enumerate(self.children)
            ]
            for call in calls:
                call.result()

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        first = init_info["rank_offset"]
        self._all(
            "init_weight_transfer_engine",
            lambda i: (init_info | {"rank_offset": first + i * self.size},),
        )

    def start_weight_update(self) -> None:
        self._all("start_weight_update")

    def update_weights(self, update_info: Any) -> None:
        self._all("update_weights", lambda i: (update_info,))

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self._all("finish_weight_update")

    def shutdown(self) -> None:
        self._all("shutdown_weight_transfer_engine")


class State:
    """A state dict as vLLM reads it from a trainer: metadata, then tensors one by one, on the
    sending device.
    """

    def __init__(self, device: Any) -> None:
        self.device = device
        self.tensors: Mapping[str, Tensor] = {}

    def metadata(self) -> list[Any]:
        from vllm.distributed.weight_transfer.base import ParamMeta

        return [ParamMeta(name, t.dtype, tuple(t.shape)) for name, t in self.tensors.items()]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in self.tensors.items():
            yield name, tensor.to(self.device)


class Sender:
    """The trainer's end. `options` go to vLLM's `NCCLTrainerInitInfo`."""

    def __init__(
        self, children: list[Child], size: int, device: Any, options: Mapping[str, Any]
    ) -> None:
        from vllm.distributed.weight_transfer.nccl_engine import (
            NCCLTrainerInitInfo,
            NCCLTrainerWeightTransferEngine,
        )

        self.client, self.state = Children(children, size), State(device)
        with _current(device):
            info = NCCLTrainerInitInfo(
                master_address="127.0.0.1",  # engines are children of this process
                master_port=_free_port(),
                world_size=1 + len(children) * size,
                rank=0,
                **options,
            )
            self.engine = NCCLTrainerWeightTransferEngine.trainer_init(
                info,
                client=self.client,
                source=self.state,  # type: ignore[arg-type]
            )

    def send(self, tensors: Mapping[str, Tensor]) -> None:
        self.state.tensors = tensors
        with _current(self.state.device):
            self.engine.send_weights()
        self.state.tensors = {}


def _current(device: Any) -> Any:
    """A context in which `device` is the current one, which is the one that NCCL uses."""
    import torch

    return (
        torch.cuda.device(device)
        if torch.device(device).type == "cuda"
        else contextlib.nullcontext()
    )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
