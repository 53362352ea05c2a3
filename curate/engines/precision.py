"""The number format a model is computed in. Engines and trainers share this one answer.

bfloat16 halves the memory traffic of float32, which makes it faster wherever the processor
multiplies it natively. A CPU without such instructions emulates it, at a third of the speed of
float32 or less.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from curate.engines.base import EngineConfig, read_config


def fast_bf16(device: Any) -> bool:
    """Whether a `torch.device` multiplies bfloat16 natively.

    On a CPU that takes AVX512-BF16, AMX or SVE-BF16. `ATEN_CPU_CAPABILITY` can take them away, so
    torch is queried as well.
    """
    import torch

    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    if device.type == "cpu":
        x86 = "AVX512" in torch.backends.cpu.get_cpu_capability()
        flags = _cpu_flags()
        return (x86 and bool({"avx512_bf16", "amx_bf16"} & flags)) or "bf16" in flags
    return False


def _cpu_flags() -> set[str]:
    """Instruction sets of this CPU, as Linux lists them; empty elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    return {
        flag
        for line in lines
        if line.lower().startswith(("flags", "features"))
        for flag in line.split()
    }


def resolve_dtype(config: EngineConfig, name: str, model_dir: str | Path) -> str:
    """The dtype in which engine `name` computes the model; `auto` follows the weights as far as the
    device allows.

    On a CPU without native bfloat16, half-precision weights are computed in float32. On a GPU
    without it they are computed in float16, and vLLM, whose attention kernels want 16 bits, rounds
    float32 weights.
    """
    if config.dtype != "auto":
        return config.dtype
    import torch

    wanted = config.args.get("device") if name == "transformers" else None
    device = torch.device(wanted or ("cuda" if torch.cuda.is_available() else "cpu"))
    stored = weights_dtype(model_dir)
    native = fast_bf16(device)
    if device.type == "cpu":
        return stored if native else "float32"
    if stored == "float32" and name != "vllm":
        return stored
    return "float16" if stored == "float16" or not native else "bfloat16"


def weights_dtype(model_dir: str | Path) -> str:
    """The dtype of the weights in a directory, as its config.json records it; float32 if it does
    not.
    """
    config = read_config(model_dir)
    stored = str(config.get("dtype") or config.get("torch_dtype") or "float32")
    return stored if stored in ("float32", "float16", "bfloat16") else "bfloat16"
