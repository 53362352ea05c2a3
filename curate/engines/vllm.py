"""vLLM. Each replica is one `LLMEngine`, stepped in its own process (`child.py` says why).

Differences from vLLM's defaults: the core runs inside our child process instead of in two more; on
a CPU nothing is compiled and the key-value cache has a fixed size, so that it starts in seconds;
log-probs are those of the distribution sampled from. Any engine argument in `EngineConfig.args`
overrides the choices made here.
"""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from curate.engines.base import EngineConfig
from curate.engines.child import Child
from curate.engines.pool import PooledEngine
from curate.engines.proof import expected_hashes
from curate.engines.vllm_transfer import Sender
from curate.errors import CurateError, UsageError

if TYPE_CHECKING:
    from torch import Tensor


QUIET = {
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CONFIGURE_LOGGING": "1",
    "HF_HUB_OFFLINE": "1",  # the model is a directory by now, so nothing has to be fetched
    "TOKENIZERS_PARALLELISM": "false",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
}

# Threads spin for this long before they sleep, about the gap between two parallel regions of a
# step. By default they spin some hundred times longer, and if anything else needs the cores (a
# trainer, verifiers) they burn the time that the slowest of them needs. Output tokens/s on two
# cores with 0, 1 and 4 other busy processes: by default 485, 68, 14; spinning 1,000 times 425, 140,
# 49; asleep at once 335, 171, 53.
WAITING = {"GOMP_SPINCOUNT": "4000", "KMP_BLOCKTIME": "1"}
WAIT_KEYS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


class VllmEngine(PooledEngine):
    name = "vllm"
    core = "curate.engines.vllm_core:VllmCore"

    def __init__(self, config: EngineConfig, model_dir: str | Path) -> None:
        if config.devices is not None:
            self.devices = own_devices(config, visible_devices())
        self._sender: Sender | None = None
        self._sent: dict[str, Tensor] = {}  # weights that the children hold but no file does
        super().__init__(config, model_dir)

    def child_env(self, replica: int) -> dict[str, str]:
        env = {key: value for key, value in QUIET.items() if key not in os.environ}
        if not any(key in os.environ for key in WAIT_KEYS):
            env |= WAITING
        if self.config.devices is not None:
            env |= devices_of(replica, self.config.tensor_parallel_size, self.devices)
        elif self.config.replicas > 1:
            env |= devices_of(replica, self.config.tensor_parallel_size, visible_devices())
        return env

    # --- weights without files: a trainer on other GPUs

    # Options of vLLM's sending side.
    transfer_options: Mapping[str, Any] = {}

    @property
    def transfers(self) -> bool:
        """Whether new weights arrive by `receive_weights` instead of as files."""
        return self.config.transfer == "nccl"

    def receive_weights(self, tensors: Mapping[str, Tensor], device: Any) -> str:
        """Load weights (by their names in a checkpoint), sent from `device`. Returns the
        fingerprint read back.

        Raises CurateError if a child dies or holds other weights afterwards. A copy is kept until
        the next update, from which a child that dies later is started again.
        """
        import torch

        self._check_idle()
        self.wait_ready()
        dtype = getattr(torch, self._children[0].ready()["dtype"])
        sizes: Counter[Any] = Counter()
        for tensor in tensors.values():
            sizes[tensor.dtype] += tensor.numel()
        # Weights in another dtype than most keep it on purpose: the expert bias of DeepSeek-V3.
        common = sizes.most_common(1)[0][0]
        cast = {
            name: t.to(device="cpu", dtype=dtype if t.dtype == common else t.dtype)
            for name, t in tensors.items()
        }
        size = self.config.tensor_parallel_size
        if self._sender is None:
            self._sender = Sender(self._children, size, device, self.transfer_options)
        self._sent = cast
        self._sender.send(cast)
        expected = expected_hashes(cast, size, dtype)
        seen = {child.call("prove_transfer", expected) for child in self._children}
        if len(seen) != 1:
            raise CurateError("the replicas hold different weights after the transfer")
        self._hash = seen.pop()
        return self._hash

    def proven(self) -> str:
        """Describe in one line what the proof of the last weights compared and what it did not."""
        return str(self._children[0].call("proven"))

    def update_weights(self, directory: str | Path) -> str:
        self._sent = {}
        return super().update_weights(directory)

    def _start(self, replica: int) -> Child:
        if not self._sent:
            return super()._start(replica)
        # The child died, and its weights are in no file: write one for its restart.
        from safetensors.torch import save_file

        with tempfile.TemporaryDirectory(prefix="curate-weights-") as folder:
            for path in self._weights.iterdir():
                if path.is_file() and path.suffix not in (".safetensors", ".index"):
                    (Path(folder) / path.name).symlink_to(path.resolve())
            save_file(
                {name: t.contiguous() for name, t in self._sent.items()},
                Path(folder) / "model.safetensors",
            )
            child = Child(self.core, folder, self.child_config(), self.child_env(replica))
            child.ready()
        if self._sender is not None:  # its connection included the dead process
            self._sender.client.children = [c for i, c in enumerate(self._children) if i != replica]
            self._sender.client.shutdown()
            self._sender = None
        return child


def visible_devices() -> list[str]:
    """GPUs that this process sees, by their names in CUDA_VISIBLE_DEVICES, in torch's numbering."""
    import torch

    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    return given.split(",") if given else [str(i) for i in range(torch.cuda.device_count())]


def own_devices(config: EngineConfig, visible: list[str]) -> list[str]:
    """Names of the GPUs of `engine.devices`.

    UsageError if one does not exist or they are too few.
    """
    wanted = config.devices or []
    if missing := [number for number in wanted if number >= len(visible)]:
        there = ", ".join(map(str, range(len(visible)))) if visible else "none"
        raise UsageError(
            f"engine.devices names GPU {', '.join(map(str, missing))}, but this process sees "
            f"{there}: name others, or leave engine.devices out"
        )
    needed = config.replicas * config.tensor_parallel_size
    if len(wanted) < needed:
        raise UsageError(
            f"engine.devices names {len(wanted)} GPUs; {config.replicas} replicas with "
            f"tensor_parallel_size {config.tensor_parallel_size} need {needed}: name more, or "
            "lower one of the two"
        )
    return [visible[number] for number in wanted]


def devices_of(replica: int, size: int, devices: list[str]) -> dict[str, str]:
    """Environment that shows a replica its share of `size` devices; empty without a GPU."""
    if not devices:
        return {}
    mine = devices[replica * size : (replica + 1) * size]
    if len(mine) < size:
        raise UsageError(
            f"replica {replica + 1} with tensor_parallel_size {size} needs GPU "
            f"{(replica + 1) * size}, and there are {len(devices)}: lower engine.replicas or "
            "engine.tensor_parallel_size"
        )
    return {"CUDA_VISIBLE_DEVICES": ",".join(mine)}
