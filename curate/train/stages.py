"""The kinds of stages that train: base, sft, distill, dpo and grpo."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from curate.config import invalid, validate
from curate.engines import EngineConfig
from curate.errors import UsageError
from curate.job import Context, JobResult, Rows, Size, StageKind
from curate.problems import ProblemsConfig
from curate.progress import counted
from curate.rewards import components
from curate.train import toy_base
from curate.train.config import DistillConfig, DPOConfig, GRPOConfig, Mixture, SFTConfig
from curate.train.job import run_distill, run_dpo, run_grpo, run_sft
from curate.train.on_policy import is_on_policy, on_policy


class GRPOStage(GRPOConfig):
    """The keys of GRPO, plus the problems that it samples and the engine it samples with."""

    problems: str | ProblemsConfig | None = None
    """Stored problems by name, or their sources; null: those of a replayed run."""
    split: str = "train"
    """Split of the problems that rollouts are sampled from."""
    engine: EngineConfig = EngineConfig()
    """Engine of the rollouts."""
    held_out_limit: int = 64
    """Maximum number of held-out problems in an evaluation during training."""


def _grpo_config(data: Mapping[str, Any], where: str) -> GRPOStage:
    config = validate(GRPOStage, data, where)
    if config.problems is None and (config.replay is None or config.replay.run == "own"):
        raise UsageError(
            invalid(where, ["problems: missing; name stored problems, or give their sources"])
        )
    components(config.rewards)  # an unknown reward, or option of one, fails before anything runs
    return config


def _distill_config(data: Mapping[str, Any], where: str) -> DistillConfig | GRPOStage:
    if is_on_policy(data, where):
        return _grpo_config(on_policy(data, where), where)
    return validate(DistillConfig, data, where)


def _run_sft(config: SFTConfig, context: Context) -> JobResult:
    return run_sft(config.model_dump(), context, config.name)


def _run_grpo(config: GRPOStage, context: Context) -> JobResult:
    return run_grpo(config.model_dump(), context, config.name)


def _run_dpo(config: DPOConfig, context: Context) -> JobResult:
    return run_dpo(config.model_dump(), context, config.name)


def _run_distill(config: DistillConfig | GRPOStage, context: Context) -> JobResult:
    if isinstance(config, GRPOStage):
        return run_grpo(config.model_dump(), context, config.name, kind="distill")
    return run_distill(config.model_dump(), context, config.name)


def _epochs(count: float) -> str:
    return "1 epoch" if count == 1 else f"{count:g} epochs"


def _sft_size(config: SFTConfig, rows: Rows) -> Size:
    corpora = config.corpus if isinstance(config.corpus, list) else [Mixture(corpus=config.corpus)]
    counts = [rows(part.corpus) for part in corpora]
    if None in counts:
        return Size(f"{_epochs(config.epochs)} of the kept traces")
    pairs = zip(counts, corpora, strict=True)
    examples = round(sum((count or 0) * part.share for count, part in pairs) * config.epochs)
    steps = counted(-(-examples // config.batch_size), "step")
    return Size(f"{counted(examples, 'example')}, {steps}")


def _grpo_size(config: GRPOStage, _: Rows) -> Size:
    if config.replay and not config.replay.fresh:
        return Size(f"up to {config.steps} stored rounds, nothing is sampled")
    count = config.steps * config.prompts * config.samples
    rounds = counted(config.steps, "round")
    text = f"{rounds} of {config.prompts} x {config.samples} = {counted(count, 'rollout')}"
    return Size(text, count, count * config.sampling.max_tokens)


def _distill_size(config: DistillConfig | GRPOStage, rows: Rows) -> Size:
    return _grpo_size(config, rows) if isinstance(config, GRPOStage) else _sft_size(config, rows)


def _dpo_size(config: DPOConfig, _: Rows) -> Size:
    return Size(f"{_epochs(config.epochs)} of the pairs that traces give")


def _base_size(config: toy_base.BaseConfig, _: Rows) -> Size:
    return Size(f"{counted(config.steps, 'step')} of {counted(config.batch_size, 'text')}")


BASE = StageKind(
    config=partial(validate, toy_base.BaseConfig),
    run=toy_base.run,
    size=_base_size,
    takes=frozenset({"seed"}),
    gives="model",
)
SFT = StageKind(
    config=partial(validate, SFTConfig),
    run=_run_sft,
    size=_sft_size,
    takes=frozenset({"seed"}),
    ranks=True,
    gives="model",
)
DISTILL = StageKind(
    config=_distill_config,
    run=_run_distill,
    size=_distill_size,
    takes=frozenset({"seed"}),
    ranks=True,
    gives="model",
)
DPO = StageKind(
    config=partial(validate, DPOConfig),
    run=_run_dpo,
    size=_dpo_size,
    takes=frozenset({"seed"}),
    ranks=True,
    exact=frozenset({"traces"}),
    gives="model",
)
GRPO = StageKind(
    config=_grpo_config,
    run=_run_grpo,
    size=_grpo_size,
    takes=frozenset({"engine", "seed"}),
    ranks=True,
    gives="model",
)
