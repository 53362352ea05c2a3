"""Training as a job: names in a config become a model directory, a corpus, problems and an engine; a bar is drawn.

Under `torchrun` every rank runs this; only the first draws, opens an engine, and writes to the warehouse.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from curate.config import invalid, validate
from curate.engines import EngineConfig, ModelRef, resolve_model
from curate.engines.models import weights_hash
from curate.engines.registry import check_devices, choose, label, settle
from curate.errors import UsageError
from curate.job import Context, JobResult
from curate.progress import duration, say, task
from curate.rewards import components, release
from curate.train.checkpoints import TrainResult
from curate.train.config import DistillConfig, GRPOConfig, SFTConfig
from curate.train.ranks import join_world, leave_world
from curate.warehouse import Warehouse
from curate.warehouse.card import write_card
from curate.warehouse.files import now
from curate.warehouse.identity import digest

SFT_SHOWN = ("loss", "lr", "tokens_per_second")
GRPO_SHOWN = (
    "reward",
    "accuracy",
    "format",
    "mean_length",
    "kl",
    "entropy",
    "rollout_tokens_per_second",
)
PATIENCE = 30  # seconds


def run_sft(data: Mapping[str, Any], context: Context, where: str) -> JobResult:
    """`curate train sft`: `data` is an SFTConfig whose model may be any name that `resolve_model` knows."""
    from curate.train.sft import train_sft

    config, model = _sft_config(data, where)
    return _supervised("sft", config, model, train_sft, context)


def run_distill(data: Mapping[str, Any], context: Context, where: str) -> JobResult:
    """`curate train distill`: a DistillConfig, or with `kind: on-policy` a teacher beside the keys of GRPO.

    The teacher, too, may be any name that `resolve_model` knows.
    """
    from curate.train.distill import is_on_policy, on_policy, train_distill

    if is_on_policy(data, where):
        return run_grpo(on_policy(data, where), context, where, kind="distill")
    config = validate(DistillConfig, data, where)
    model, teacher = resolve_model(config.model), resolve_model(config.teacher)
    remember_base(context.warehouse, teacher)
    config = config.model_copy(update={"model": str(model.path), "teacher": str(teacher.path)})
    return _supervised("distill", config, model, train_distill, context)


def _supervised(
    kind: str,
    config: SFTConfig,
    model: ModelRef,
    train: Callable[..., TrainResult],
    context: Context,
) -> JobResult:
    started = time.monotonic()
    remember_base(context.warehouse, model)
    with _bar(config.name, 1, SFT_SHOWN) as progress:
        made = train(config, context.warehouse, progress, say=say)
    result = _result(made, started)
    counts = ", ".join(
        f"{value:,} {name.replace('_', ' ')}" for name, value in made.counts.items() if value
    )
    result.summary = f"{made.steps} steps on {counts}, {_how(made, started)}"
    _record(context, kind, config.name, config.model_dump(mode="json"), made, result)
    return result


def run_grpo(
    data: Mapping[str, Any], context: Context, where: str, kind: str = "grpo"
) -> JobResult:
    """`curate train grpo`: a GRPOConfig, and beside it `problems`, `split` and `engine`."""
    from curate.problems import from_rows
    from curate.problems.store import stored_problems
    from curate.train.grpo import train_grpo

    started = time.monotonic()
    config, model, extra = _grpo_config(data, where)
    version = stored_problems(extra["problems"], context)
    frame = version.read().collect()
    problems = from_rows(frame.filter(frame["split"] == extra["split"]))
    # The last ones: an evaluation with a limit takes the first, so that the best policy is not
    # chosen on the problems that measure it.
    held_out = from_rows(frame.filter(frame["split"] == "held-out").tail(extra["held_out_limit"]))
    remember_base(context.warehouse, model)
    if config.loss.reference:
        reference = resolve_model(config.loss.reference)
        remember_base(context.warehouse, reference)
        config = config.model_copy(
            update={"loss": config.loss.model_copy(update={"reference": str(reference.path)})}
        )
    settings = beside_trainer(extra["engine"], config.compute.device)
    settings = settle(settings, model.path, may_measure=join_world().first)
    engine = _LazyEngine(context, settings, model)
    with _bar(config.name, config.steps, GRPO_SHOWN) as progress:
        try:
            made = train_grpo(
                config,
                context.warehouse,
                engine,
                context.pool if join_world().first else None,
                problems,
                progress,
                held_out=held_out if config.evaluation.every else (),
                problems_refs=[version.ref],
                model_name=model.name,
                kind=kind,
                say=say,
            )
        finally:
            release()
            context.engine.changed()  # the engine holds the trained weights now, whatever it was opened with
    result = _result(made, started)
    result.facts |= {"traces": config.name, "run_id": made.run_id}
    last = _shown(made.metrics, GRPO_SHOWN)
    result.summary = f"{made.steps} steps, last step: {last}, {_how(made, started)}"
    if made.best_path and made.best_step != made.steps:
        kept = f"step {made.best_step}" if made.best_step else "its start"
        result.summary += f"; kept the best by held-out accuracy, {kept}, not the last"
    if made.warning:
        result.summary += "; the policy got worse, see the warning"
    _record(context, kind, config.name, config.model_dump(mode="json"), made, result)
    return result


RUNS: dict[str, Callable[[Mapping[str, Any], Context, str], JobResult]] = {
    "sft": run_sft,
    "distill": run_distill,
    "grpo": run_grpo,
}


def run(kind: str, data: Mapping[str, Any], context: Context, where: str) -> JobResult | None:
    """The training that `curate train KIND` asks for; None on the ranks that have nothing to say."""
    try:
        result = RUNS[kind](data, context, where)
    except UsageError:
        if join_world().first:
            raise
        # The first rank says the same; torchrun ends all ranks as soon as one has ended, so let it speak.
        time.sleep(PATIENCE)
        raise SystemExit(UsageError.exit_code) from None
    speaks = join_world().first
    leave_world()
    return result if speaks else None


def describe(kind: str, data: Mapping[str, Any], context: Context, where: str) -> str:
    """The resolved plan of a training run, for `--dry-run`."""
    from curate.problems.store import stored_problems
    from curate.train.distill import check_same_tokens, is_on_policy, on_policy

    if kind == "distill" and is_on_policy(data, where):
        kind, data = "grpo", on_policy(data, where)
    if kind in ("sft", "distill"):
        config, model = _sft_config(data, where, DistillConfig if kind == "distill" else SFTConfig)
        if isinstance(config, DistillConfig) and config.kind != "sequences":
            check_same_tokens(str(resolve_model(config.teacher).path), config.model)
        corpora = (
            [config.corpus]
            if isinstance(config.corpus, str)
            else [part.corpus for part in config.corpus]
        )
        rows = sum(context.warehouse.latest("corpora", name).manifest["rows"] for name in corpora)
        steps = -(-round(rows * config.epochs) // config.batch_size)
        return f"model   {model.name} ({model.hash[:12]})\ncorpus  {', '.join(corpora)}: {rows} rows\nsteps   {steps}"
    grpo, model, extra = _grpo_config(data, where)
    version = stored_problems(extra["problems"], context)
    rollouts = grpo.steps * grpo.prompts * grpo.samples
    engine = beside_trainer(extra["engine"], grpo.compute.device)
    own = (
        f" on GPUs {', '.join(map(str, engine.devices))}, weights by {engine.transfer}"
        if engine.devices
        else ""
    )
    return (
        f"model     {model.name} ({model.hash[:12]})\n"
        f"problems  {version.ref}, split {extra['split']}\n"
        f"engine    {choose(engine)[0]}{own}\n"
        f"rollouts  {grpo.steps} rounds of {grpo.prompts} x {grpo.samples} = {rollouts:,}\n"
        f"tokens    at most {rollouts * grpo.sampling.max_tokens:,}"
    )


def remember_base(warehouse: Warehouse, model: ModelRef) -> None:
    """A row of `models` for a model that was not trained here, so that lineage ends in a name."""
    if not join_world().first:
        return
    query = "SELECT 1 FROM models WHERE model_hash = ? LIMIT 1"
    if not warehouse.exists() or warehouse.sql(query, [model.hash]).is_empty():
        row = {
            "model_hash": model.hash,
            "name": model.name,
            "kind": "base",
            "path": str(model.path),
            "created_at": now(),
        }
        warehouse.write("models", "base", [row], key=["base", model.hash])


def beside_trainer(engine: EngineConfig, device: str) -> EngineConfig:
    """The engine's config beside a trainer on `device`.

    Where they share a GPU, vLLM must be able to give memory back. On GPUs of its own it is told how weights will come;
    UsageError where one of them is the trainer's.
    """
    from curate.engines.vllm_transfer import way_of_weights
    from curate.train.model.policy import pick_device

    name, device = choose(engine)[0], pick_device(device)
    check_devices(engine, name)
    way = way_of_weights(engine, name, device)
    if name != "vllm" or not device.startswith("cuda"):
        return engine
    if engine.devices is not None:
        if both := sorted(trainers_gpus(device) & set(engine.devices)):
            raise UsageError(
                f"engine.devices names GPU {', '.join(map(str, both))}, where the trainer works: give the engine "
                "others, or leave engine.devices out, and it sleeps while the trainer works"
            )
        return engine.model_copy(update={"transfer": way})
    return engine.model_copy(update={"args": {"enable_sleep_mode": True} | engine.args})


def trainers_gpus(device: str) -> set[int]:
    """Numbers of the GPUs that the ranks of this machine train on; `device` is this rank's."""
    if "LOCAL_WORLD_SIZE" in os.environ:
        return set(range(int(os.environ["LOCAL_WORLD_SIZE"])))
    return {int(device.partition(":")[2] or 0)}


class _LazyEngine:
    """Opens the engine when it is first used: a finished run needs none."""

    def __init__(self, context: Context, config: EngineConfig, model: ModelRef) -> None:
        self._context, self._config, self._model = context, config, model
        self._engine: Any = None
        self.name = config.name
        self.label = label(config)  # engine and precision: part of what determines the run

    def __getattr__(self, name: str) -> Any:
        if self._engine is None:
            self._engine = self._context.engine.get(
                self._config, self._model.path, self._model.hash
            )
        return getattr(self._engine, name)


@contextmanager
def _bar(
    name: str, total: int, shown: tuple[str, ...]
) -> Iterator[Callable[[int, int, dict[str, float]], None]]:
    """A progress bar that shows some metrics; on the first rank only."""
    if not join_world().first:
        yield lambda *_: None
        return
    with task(name, total) as bar:

        def progress(step: int, total: int, metrics: dict[str, float]) -> None:
            bar.total = total
            bar.update(step, _shown(metrics, shown))

        yield progress


def _sft_config(
    data: Mapping[str, Any], where: str, of: type[SFTConfig] = SFTConfig
) -> tuple[SFTConfig, ModelRef]:
    config = validate(of, data, where)
    model = resolve_model(config.model)
    return config.model_copy(update={"model": str(model.path)}), model


def check_distill(data: Mapping[str, Any], where: str) -> None:
    """UsageError where the config of a distillation is wrong."""
    from curate.train.distill import is_on_policy, on_policy

    if is_on_policy(data, where):
        check_grpo(on_policy(data, where), where)
    else:
        validate(DistillConfig, data, where)


def check_grpo(data: Mapping[str, Any], where: str) -> tuple[GRPOConfig, dict[str, Any]]:
    """The config and what stands beside it (problems, split, engine, held_out_limit); UsageError where it is wrong."""
    from curate.problems import ProblemsConfig

    own = dict(data)
    problems = own.pop("problems", None)
    if problems is None:
        raise UsageError(
            invalid(where, ["problems: missing; name stored problems, or give their sources"])
        )
    extra = {
        "problems": problems
        if isinstance(problems, str)
        else validate(ProblemsConfig, problems, f"{where}: problems"),
        "split": own.pop("split", "train"),
        "engine": validate(EngineConfig, own.pop("engine", {}), f"{where}: engine"),
        "held_out_limit": own.pop("held_out_limit", 64),
    }
    config = validate(GRPOConfig, own, where)
    components(
        config.rewards
    )  # a name or an option that is none is told before anything is sampled
    return config, extra


def _grpo_config(
    data: Mapping[str, Any], where: str
) -> tuple[GRPOConfig, ModelRef, dict[str, Any]]:
    config, extra = check_grpo(data, where)
    model = resolve_model(config.model)
    return config.model_copy(update={"model": str(model.path)}), model, extra


def _shown(metrics: Mapping[str, float], names: tuple[str, ...]) -> str:
    return ", ".join(
        f"{name.replace('_', ' ')} {metrics[name]:.3g}" for name in names if name in metrics
    )


def _how(made: TrainResult, started: float) -> str:
    if made.skipped:
        return "done before"
    resumed = f" from step {made.resumed_from}" if made.resumed_from else ""
    return f"{duration(time.monotonic() - started)}{resumed}"


def _result(made: TrainResult, started: float) -> JobResult:
    result = JobResult(model=str(made.chosen_path), seconds=time.monotonic() - started)
    result.facts = {"run_id": made.run_id, "last": str(made.model_path)}
    if made.best_path:
        result.facts["best"] = str(made.best_path)
    if made.warning:
        result.facts["warning"] = made.warning
    return result


def _record(
    context: Context,
    kind: str,
    name: str,
    config: dict[str, Any],
    made: TrainResult,
    result: JobResult,
) -> None:
    if not join_world().first:
        return
    if not made.skipped:
        context.record(digest(made.run_id)[:24], kind, name, config, result)
    if (
        not made.skipped or not (made.model_path / "README.md").exists()
    ):  # killed before it was written
        for path in {made.model_path, made.chosen_path}:
            write_card(context.warehouse, weights_hash(path))
