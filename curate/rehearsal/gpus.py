"""GPUs by name: peak rates, memory, and a price to begin with.

Rates and memory are those of NVIDIA's data sheets: dense products in bf16, without sparsity. Prices
are in US dollars per GPU and hour: the middle of what specialised clouds asked on demand in May
2026 according to https://www.mercatus-ai.com/blog/cloud-gpu-pricing (H100 2.50 to 3.50, H200 3.50
to 4.50, A100 1.10 to 1.50). Those of the other cards are guesses of this project. Prices differ by
a factor of 2.5 between providers, and change: give your own with `--price`.
"""

from __future__ import annotations

from dataclasses import dataclass

from curate.config import did_you_mean
from curate.errors import UsageError


@dataclass(frozen=True)
class GPU:
    """One kind of GPU.

    flops: peak of bf16 products per second. bandwidth: bytes per second. memory: bytes.
    price: per hour, in the currency of the date's note.
    """

    name: str
    flops: float
    bandwidth: float
    memory: float
    price: float
    priced: str


_MAY = "May 2026, mercatus-ai.com"
_GUESS = "a guess"
GPUS = {
    gpu.name: gpu
    for gpu in (
        GPU("a100", 312e12, 2.0e12, 80e9, 1.30, _MAY),
        GPU("h100", 989e12, 3.35e12, 80e9, 3.00, _MAY),
        GPU("h200", 989e12, 4.8e12, 141e9, 4.00, _MAY),
        GPU("h800", 989e12, 3.35e12, 80e9, 2.00, "DeepSeek-V3 report, table 1 (assumed there)"),
        GPU("b200", 2250e12, 8.0e12, 180e9, 5.50, _GUESS),
        GPU("l40s", 362e12, 0.864e12, 48e9, 1.00, _GUESS),
        GPU("rtx4090", 165e12, 1.008e12, 24e9, 0.45, _GUESS),
    )
}


def gpu_named(name: str) -> GPU:
    """The GPU of this name. UsageError if there is none."""
    if name.lower() not in GPUS:
        raise UsageError(
            f"--gpu {name}: choose one of {', '.join(GPUS)}{did_you_mean(name.lower(), GPUS)} "
            "Another card: the nearest one, with --assume memory=… flops=… bandwidth=… and --price"
        )
    return GPUS[name.lower()]
