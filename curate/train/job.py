"""Training as a job: resolve names in a config, open the engine, show progress, record results.

Under `torchrun` every rank runs this; only the first prints, opens an engine and writes to the
warehouse.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from curate.config import invalid, merge, validate
from curate.engines import EngineConfig, ModelRef, resolve_model
from curate.engines.models import weights_hash
from curate.engines.registry import check_devices, choose, label, settle
from curate.engines.vllm_transfer import way_of_weights
from curate.errors import UsageError
from curate.job import Context, JobResult
from curate.problems import ProblemsConfig, from_rows
from curate.problems.store import stored_problems
from curate.progress import counted, duration, say, task
from curate.records import Problem
from curate.rewards import components
from curate.train.config import DistillConfig, DPOConfig, GRPOConfig, SFTConfig
from curate.train.on_policy import is_on_policy, on_policy
from curate.train.pairs import preference_pairs
from curate.train.ranks import join_ranks, leave_ranks
from curate.train.result import TrainResult
from curate.verify.models.preference import JudgeEngines
from curate.warehouse import Warehouse
from curate.warehouse.card import write_card
from curate.warehouse.identity import digest
from curate.warehouse.names import now

if TYPE_CHECKING:
    from curate.train.replay import StoredRun

SFT_SHOWN = ("loss", "lr", "tokens_per_second")
DPO_SHOWN = ("loss", "margin", "preferred", "tokens_per_second")
GRPO_SHOWN = (
    "reward",
    "accuracy",
    "format",
    "mean_length",
    "kl",
    "entropy",
    "rollout_tokens_per_second",
)
PATIENCE = 30  # seconds that other ranks wait for the first one to report an error


def run_sft(data: Mapping[str, Any], context: Context, where: str) -> JobResult:
    """Run `curate train sft`: an SFTConfig whose model is any name that `resolve_model` accepts."""
    from curate.train.sft import train_sft

    config, model = _sft_config(data, where)
    return _supervised("sft", config, model, train_sft, context)


def run_distill(data: Mapping[str, Any], context: Context, where: str) -> JobResult:
    """Run `curate train distill`: a DistillConfig, or a teacher and the keys of GRPO (on-policy).

    Model and teacher are names that `resolve_model` accepts.
    """
    from curate.train.distill import train_distill

    if is_on_policy(data, where):
        return run_grpo(on_policy(data, where), context, where, kind="distill")
    config = validate(DistillConfig, data, where)
    model, teacher = resolve_model(config.model), resolve_model(config.teacher)
    remember_base(context.warehouse, teacher)
    config = config.model_copy(update={"model": str(model.path), "teacher": str(teacher.path)})
    return _supervised("distill", config, model, train_distill, context)


def run_dpo(data: Mapping[str, Any], context: Context, where: str) -> JobResult:
    """Run `curate train dpo`: a DPOConfig; model and reference are names for `resolve_model`."""
    from curate.train.dpo import train_dpo

    config = validate(DPOConfig, data, where)
    model = resolve_model(config.model)
    config = config.model_copy(update={"model": str(model.path)})
    if config.reference:
        reference = resolve_model(config.reference)
        remember_base(context.warehouse, reference)
        config = config.model_copy(update={"reference": str(reference.path)})
    return _supervised("dpo", config, model, train_dpo, context, DPO_SHOWN)


def _supervised(
    kind: str,
    config: SFTConfig | DPOConfig,
    model: ModelRef,
    train: Callable[..., TrainResult],
    context: Context,
    shown: tuple[str, ...] = SFT_SHOWN,
) -> JobResult:
    started = time.monotonic()
    remember_base(context.warehouse, model)
    with _bar(config.name, 1, shown) as progress:
        trained = train(config, context.warehouse, progress, say=say)
    result = _result(trained, started)
    units = {"examples": "example", "tokens": "token"}
    counts = ", ".join(
        counted(value, units[name]) if name in units else f"{value:,} {name.replace('_', ' ')}"
        for name, value in trained.counts.items()
        if value
    )
    result.summary = f"{counted(trained.steps, 'step')} on {counts}, {_how(trained, started)}"
    _record(context, kind, config.name, config.model_dump(mode="json"), trained, result)
    return result


def run_grpo(
    data: Mapping[str, Any], context: Context, where: str, kind: str = "grpo"
) -> JobResult:
    """Run `curate train grpo`: a GRPOConfig plus `problems`, `split`, `engine`, held_out_limit."""
    from curate.train.grpo import train_grpo

    started = time.monotonic()
    data, source = _with_stored_run(data, context)
    config, model, extra = _grpo_config(data, where)
    problems, held_out, refs = _grpo_problems(config, extra, source, context)
    remember_base(context.warehouse, model)
    if config.loss.reference:
        reference = resolve_model(config.loss.reference)
        remember_base(context.warehouse, reference)
        config = config.model_copy(
            update={"loss": config.loss.model_copy(update={"reference": str(reference.path)})}
        )
    engine = _grpo_engine(config, extra["engine"], model, context)
    with JudgeEngines() as judges, _bar(config.name, config.steps, GRPO_SHOWN) as progress:
        try:
            trained = train_grpo(
                config,
                context.warehouse,
                engine,
                context.pool if join_ranks().first else None,
                problems,
                progress,
                held_out=held_out if config.evaluation.every else (),
                problems_refs=refs,
                model_name=model.name,
                kind=kind,
                say=say,
                judges=judges,
                source=source,
            )
        finally:
            context.engine.changed()  # it holds the trained weights now, not the original ones
    result = _result(trained, started)
    result.facts |= {"traces": config.name, "run_id": trained.run_id}
    last = _shown(trained.metrics, GRPO_SHOWN)
    result.summary = (
        f"{counted(trained.steps, 'step')}, last step: {last}, {_how(trained, started)}"
    )
    if trained.best_step is not None and trained.best_step != trained.steps:
        kept = f"step {trained.best_step}" if trained.best_step else "its start"
        result.summary += f"; kept the best by held-out accuracy ({kept}), not the last"
    if trained.warning:
        result.summary += "; the policy got worse, see the warning"
    if trained.ended:
        result.summary += f"; {trained.ended}"
    if trained.empty_rounds:
        rounds = counted(trained.counts["rounds"], "round")
        result.summary += f"; {trained.empty_rounds} of {rounds} had nothing to learn from"
    _record(context, kind, config.name, config.model_dump(mode="json"), trained, result)
    return result


def _replay_of_another(data: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the group `replay` of a config if it names another run."""
    given = data.get("replay")
    group = dict(given) if isinstance(given, Mapping) else {"run": given}
    return group if isinstance(group.get("run"), str) and group["run"] != "own" else None


def _with_stored_run(
    data: Mapping[str, Any], context: Context
) -> tuple[dict[str, Any], StoredRun | None]:
    """Lay the keys over the config of the run that `replay` names, and return that run as well.

    A stage of a pipeline gives all keys, and none is taken from the run. `rewards.NAME: null` drops
    a component.
    """
    group = _replay_of_another(data)
    if group is None:
        return dict(data), None
    from curate.train.replay import find_run, stored_config

    source = find_run(context.warehouse, group["run"])
    group["run"] = source.run_id
    if not set(GRPOConfig.model_fields) <= set(data):
        data = merge(stored_config(source), data)
        rewards = data.get("rewards")
        if isinstance(rewards, Mapping):
            data["rewards"] = {k: v for k, v in rewards.items() if v is not None}
    return {**data, "replay": group}, source


def _grpo_problems(
    config: GRPOConfig, extra: Mapping[str, Any], source: StoredRun | None, context: Context
) -> tuple[list[Problem], list[Problem], list[str]]:
    """Return the problems to sample, the held-out ones, and their version.

    A replay without fresh rollouts has the problems of its stored ones; a version is needed for an
    evaluation only.
    """
    refs = extra["problems"]
    if source is not None and refs is None:
        refs = next((ref for ref in source.parents if ref.startswith("problems/")), None)
    if source is not None and config.replay and not config.replay.fresh:
        if refs is None or not config.evaluation.every:
            return source.problems(), [], [r for r in [refs] if isinstance(r, str)]
    elif refs is None:
        raise UsageError("grpo: problems: missing; name stored problems, or give their sources")
    version = stored_problems(refs, context)
    frame = version.read().collect()
    train = from_rows(frame.filter(frame["split"] == extra["split"]))
    if source is not None and config.replay and not config.replay.fresh:
        train = source.problems()
    # The last ones: an evaluation with a limit takes the first, so that the best policy is not
    # chosen on the problems that measure it.
    held_out = from_rows(frame.filter(frame["split"] == "held-out").tail(extra["held_out_limit"]))
    return train, held_out, [version.ref]


def _grpo_engine(
    config: GRPOConfig, settings: EngineConfig, model: ModelRef, context: Context
) -> Any:
    """Return the engine next to the trainer; a replay that samples nothing needs none."""
    if config.replay and not config.replay.fresh and not config.evaluation.every:
        from curate.train.replay import NoEngine

        return NoEngine()
    settings = rollout_engine_config(settings, config.compute.device)
    settings = settle(settings, model.path, may_measure=join_ranks().first)
    return _LazyEngine(context, settings, model)


RUNS: dict[str, Callable[[Mapping[str, Any], Context, str], JobResult]] = {
    "sft": run_sft,
    "distill": run_distill,
    "dpo": run_dpo,
    "grpo": run_grpo,
}


def run(kind: str, data: Mapping[str, Any], context: Context, where: str) -> JobResult | None:
    """Run the training of `curate train KIND`; None on all ranks but the first."""
    try:
        result = RUNS[kind](data, context, where)
    except UsageError:
        if join_ranks().first:
            raise
        # The first rank reports the same error. torchrun ends all ranks as soon as one ends, so
        # wait for it.
        time.sleep(PATIENCE)
        raise SystemExit(UsageError.exit_code) from None
    first = join_ranks().first
    leave_ranks()
    return result if first else None


def describe(kind: str, data: Mapping[str, Any], context: Context, where: str) -> str:
    """Return the resolved plan of a training run, for `--dry-run`."""
    if kind == "distill" and is_on_policy(data, where):
        kind, data = "grpo", on_policy(data, where)
    if kind in ("sft", "distill"):
        config, model = _sft_config(data, where, DistillConfig if kind == "distill" else SFTConfig)
        if isinstance(config, DistillConfig) and config.kind != "sequences":
            from curate.train.distill import check_same_tokens

            check_same_tokens(str(resolve_model(config.teacher).path), config.model)
        corpora = (
            [config.corpus]
            if isinstance(config.corpus, str)
            else [part.corpus for part in config.corpus]
        )
        rows = sum(context.warehouse.latest("corpora", name).manifest["rows"] for name in corpora)
        steps = -(-round(rows * config.epochs) // config.batch_size)
        return (
            f"model   {model.name} ({model.hash[:12]})\n"
            f"corpus  {', '.join(corpora)}: {counted(rows, 'row')}\n"
            f"steps   {steps}"
        )
    if kind == "dpo":
        return _describe_dpo(validate(DPOConfig, data, where), context)
    data, source = _with_stored_run(data, context)
    grpo, model, extra = _grpo_config(data, where)
    _, _, refs = _grpo_problems(grpo, extra, source, context)
    if source and grpo.replay and not grpo.replay.fresh:
        return (
            f"model     {model.name} ({model.hash[:12]})\n"
            f"rollouts  {min(grpo.steps, len(source.steps()))} stored rounds of run "
            f"{source.run_id} ({source.name})\n"
            f"engine    {'for evaluations only' if grpo.evaluation.every else 'none'}"
        )
    rollouts = grpo.steps * grpo.prompts * grpo.samples
    engine = rollout_engine_config(extra["engine"], grpo.compute.device)
    own = (
        f" on GPUs {', '.join(map(str, engine.devices))}, weights by {engine.transfer}"
        if engine.devices
        else ""
    )
    return (
        f"model     {model.name} ({model.hash[:12]})\n"
        f"problems  {refs[0]}, split {extra['split']}\n"
        f"engine    {choose(engine)[0]}{own}\n"
        f"rollouts  {counted(grpo.steps, 'round')} of {grpo.prompts} x {grpo.samples} = "
        f"{rollouts:,}\n"
        f"tokens    at most {rollouts * grpo.sampling.max_tokens:,}"
    )


def _describe_dpo(config: DPOConfig, context: Context) -> str:
    model = resolve_model(config.model)
    frame = preference_pairs(context.warehouse, config.pairs, config.traces, config.seed)
    steps = -(-max(1, round(len(frame) * config.epochs)) // config.batch_size)
    return (
        f"model   {model.name} ({model.hash[:12]})\n"
        f"pairs   {len(frame)} of {counted(frame['problem_id'].n_unique(), 'problem')}, from "
        f"{', '.join(sorted(set(frame['refs'].explode().to_list())))}\n"
        f"steps   {steps}"
    )


def remember_base(warehouse: Warehouse, model: ModelRef) -> None:
    """Write a row of `models` for a model trained elsewhere, so that lineage ends in a name."""
    if not join_ranks().first:
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


def rollout_engine_config(engine: EngineConfig, device: str) -> EngineConfig:
    """Return the config of an engine that samples next to a trainer on `device`.

    If they share a GPU, vLLM must be able to free its memory. The config of an engine with its own
    GPUs says how weights will arrive. Raises UsageError if one of these GPUs is the trainer's.
    """
    from curate.train.model.devices import pick_device

    name, device = choose(engine)[0], pick_device(device)
    check_devices(engine, name)
    way = way_of_weights(engine, name, device)
    if name != "vllm" or not device.startswith("cuda"):
        return engine
    if engine.devices is not None:
        if both := sorted(trainers_gpus(device) & set(engine.devices)):
            raise UsageError(
                f"engine.devices names GPU {', '.join(map(str, both))}, which the trainer uses: "
                "give the engine others, or leave engine.devices out: it then sleeps while the "
                "trainer works"
            )
        return engine.model_copy(update={"transfer": way})
    return engine.model_copy(update={"args": {"enable_sleep_mode": True} | engine.args})


def trainers_gpus(device: str) -> set[int]:
    """Return the GPUs that the ranks of this machine train on; `device` is this rank's."""
    if "LOCAL_WORLD_SIZE" in os.environ:
        return set(range(int(os.environ["LOCAL_WORLD_SIZE"])))
    return {int(device.partition(":")[2] or 0)}


class _LazyEngine:
    """Opens the engine at first use: a finished run needs none."""

    def __init__(self, context: Context, config: EngineConfig, model: ModelRef) -> None:
        self._context, self._config, self._model = context, config, model
        self._engine: Any = None
        self.name = config.name
        self.label = label(config)  # engine and precision, which are part of the run's id

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
    """Show a progress bar with selected metrics, on the first rank only."""
    if not join_ranks().first:
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


def check_grpo(data: Mapping[str, Any], where: str) -> tuple[GRPOConfig, dict[str, Any]]:
    """Return the config and the other keys of the job; UsageError if one is invalid.

    These are `problems`, `split`, `engine` and `held_out_limit`.
    """
    own = dict(data)
    problems = own.pop("problems", None)
    if problems is None and _replay_of_another(own) is None:
        raise UsageError(
            invalid(where, ["problems: missing; name stored problems, or give their sources"])
        )
    extra = {
        "problems": problems
        if isinstance(problems, str | None)
        else validate(ProblemsConfig, problems, f"{where}: problems"),
        "split": own.pop("split", "train"),
        "engine": validate(EngineConfig, own.pop("engine", {}), f"{where}: engine"),
        "held_out_limit": own.pop("held_out_limit", 64),
    }
    config = validate(GRPOConfig, own, where)
    components(config.rewards)  # fail on unknown components or options before sampling starts
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


def _how(trained: TrainResult, started: float) -> str:
    if trained.skipped:
        return "done before"
    resumed = f" from step {trained.resumed_from}" if trained.resumed_from else ""
    return f"{duration(time.monotonic() - started)}{resumed}"


def _result(trained: TrainResult, started: float) -> JobResult:
    result = JobResult(model=str(trained.chosen_path), seconds=time.monotonic() - started)
    result.facts = {"run_id": trained.run_id, "last": str(trained.model_path)}
    if trained.best_path:
        result.facts["best"] = str(trained.best_path)
    if trained.warning:
        result.facts["warning"] = trained.warning
    return result


def _record(
    context: Context,
    kind: str,
    name: str,
    config: dict[str, Any],
    trained: TrainResult,
    result: JobResult,
) -> None:
    if not join_ranks().first:
        return
    if not trained.skipped:
        context.record(digest(trained.run_id)[:24], kind, name, config, result)
    # A finished run without a card was killed before writing it.
    if not trained.skipped or not (trained.model_path / "README.md").exists():
        for path in {trained.model_path, trained.chosen_path}:
            write_card(context.warehouse, weights_hash(path))
