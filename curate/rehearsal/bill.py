"""The bill of a pipeline: what each stage of the real run needs, from its config and the rehearsal.

Counts are upper bounds as long as `Assumptions.length` and `kept` are 1. How many rows a stage gets
follows from the stages before it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from curate.annotate.job import AnnotateConfig
from curate.config import validate
from curate.engines import EngineConfig
from curate.engines.registry import LOCAL
from curate.errors import CurateError
from curate.evaluate.job import EvaluateConfig
from curate.files import data_files, read_parts
from curate.filter.job import FilterConfig
from curate.filter.rules import load_rules
from curate.generate.config import GenerateConfig
from curate.imports.job import ImportConfig
from curate.pipeline.checks import with_shipped_path
from curate.pipeline.stages import Stage
from curate.problems import ProblemsConfig, Source
from curate.problems.hub import Hub
from curate.problems.identity import SPLIT_NAMES
from curate.rehearsal import costs, datasets
from curate.rehearsal.architectures import Model
from curate.rehearsal.costs import Assumptions, Cost, Memory
from curate.rehearsal.gpus import GPU
from curate.train.config import DistillConfig, DPOConfig, GRPOConfig, Mixture, SFTConfig
from curate.warehouse.schemas import shipped_file

JUDGED = 700.0  # tokens of a judge's prompt: rubric, question, reference and answer (a guess)
# Bytes on disk per sampled token: text, and with token ids and log-probs (a guess, compressed).
TEXT_BYTES, TOKEN_BYTES = 2.0, 8.0
GUESSED = 300.0  # tokens of a worked solution that is not at hand (a guess)
ADAPTERS = 0.02  # share of the parameters that are trained with adapters (a guess, from above)


@dataclass
class Flow:
    """What a stage hands on: rows by split, of problems; traces or rows of a corpus."""

    train: float = 0.0
    held_out: float = 0.0
    rows: float = 0.0
    problems: float = 0.0
    tokens: float = 0.0  # of a completion
    prompt: float = 0.0
    open_share: float = 0.0  # problems without a verifier


@dataclass
class StageBill:
    """One line of the bill. Tokens are counts, memory bytes per GPU, hours those of the clock."""

    stage: str
    do: str
    models: list[str] = field(default_factory=list)
    requests: float = 0.0
    prompt_tokens: float = 0.0
    sampled_tokens: float = 0.0
    trained_tokens: float = 0.0
    served_tokens: float = 0.0
    flops: float = 0.0
    gpus: int = 0
    hours: float = 0.0
    gpu_hours: float = 0.0
    memory: dict[str, Memory] = field(default_factory=dict)
    disk: float = 0.0
    money: float = 0.0
    notes: list[str] = field(default_factory=list)

    @property
    def peak(self) -> float:
        """Most memory on one GPU: trainer and sampler take turns on it."""
        return max((memory.total for memory in self.memory.values()), default=0.0)


@dataclass
class Measured:
    """What the rehearsal measured of a stage: tokens of its prompts, mean and most, and of texts
    that were not sampled, such as worked solutions.
    """

    prompt: float = 0.0
    longest: float = 0.0
    standin: bool = False  # whether its problems are stand-ins
    completion: float = 0.0


class Biller:
    """Makes the bill of the stages, in order. `model_for` gives the facts of a stage's model."""

    def __init__(
        self,
        gpu: GPU,
        assume: Assumptions,
        measured: Mapping[str, Measured],
        model_for: Callable[[str], Model | None],
        stored: Callable[[str], int | None],
    ) -> None:
        self.gpu, self.assume, self.measured = gpu, assume, measured
        self.model_for, self.stored = model_for, stored
        self.flows: dict[str, Flow] = {}

    def bill(self, stages: Sequence[Stage]) -> list[StageBill]:
        return [self._line(stage) for stage in stages]

    def _line(self, stage: Stage) -> StageBill:
        line = StageBill(stage.name, stage.do)
        config = stage.checked
        if isinstance(config, ProblemsConfig):
            self.flows[stage.name] = _problem_flow(config, line)
        elif isinstance(config, GenerateConfig):
            self._generate(stage.name, config, line)
        elif isinstance(config, ImportConfig):
            self._import(stage.name, config, line)
        elif isinstance(config, AnnotateConfig):
            self._annotate(config, line)
        elif isinstance(config, FilterConfig):
            self._filter(stage.name, config, line)
        elif isinstance(config, GRPOConfig):
            self._grpo(stage, config, line)
        elif isinstance(config, SFTConfig):
            self._sft(stage, config, line)
        elif isinstance(config, DPOConfig):
            self._dpo(stage, config, line)
        elif isinstance(config, EvaluateConfig):
            self._evaluate(stage.name, config, line)
        line.money = line.gpu_hours * self.gpu.price
        return line

    # --- stages that sample

    def _generate(self, name: str, config: GenerateConfig, line: StageBill) -> None:
        flow = self._units(config, line)
        units = flow.rows
        length = config.sampling.max_tokens * self.assume.length
        made = Flow(
            rows=units * config.samples,
            problems=units,
            tokens=length,
            prompt=self._prompt(name, line),
            open_share=flow.open_share,
        )
        if config.source == "solutions":
            made = replace(made, rows=units, tokens=self._written(name, line))
        self.flows[name] = made
        if config.source == "solutions" or config.model is None:
            return
        if config.source == "rework" and config.rework is not None:
            made.prompt += self._flow(config.rework.traces).tokens
        if config.adapts:
            line.notes.append("adaptive: at most this many samples")
        self._sample(config.model, config.engine, made.rows, made.prompt, length, line)
        line.disk = made.rows * length * (TOKEN_BYTES if config.store_tokens else TEXT_BYTES)

    def _units(self, config: GenerateConfig, line: StageBill) -> Flow:
        """Problems (or traces to rewrite) of a generation."""
        if config.source == "rework" and config.rework is not None:
            flow = self._flow(config.rework.traces)
            units = (flow.problems or float("inf")) * config.rework.per_problem
        else:
            flow = self._problems(config.problems, line)
            units = {"train": flow.train, "held-out": flow.held_out}.get(
                config.split or "", flow.train + flow.held_out
            )
            if config.where:
                line.notes.append("where: counted as if all problems met it")
        units = min(units, config.limit or float("inf"))
        if units == float("inf"):
            line.notes.append("the number of traces to rewrite is unknown: set limit")
            units = 0.0
        return replace(flow, rows=units)

    def _sample(
        self,
        spec: str,
        engine: EngineConfig,
        requests: float,
        prompt: float,
        tokens: float,
        line: StageBill,
        held: int = 0,
        taken: float = 0.0,
    ) -> None:
        """Add the sampling of one model to the line. `held` GPUs are there anyway; a trainer has
        `taken` bytes of each, unless the engine has GPUs of its own.
        """
        line.requests += requests
        line.prompt_tokens += requests * prompt
        line.sampled_tokens += requests * tokens
        if engine.name not in (*LOCAL, "auto"):
            line.served_tokens += requests * (prompt + tokens)
            line.notes.append(f"{engine.name} serves it: its GPUs are not in this bill")
            return
        model = self.model_for(spec)
        if model is None:
            return
        line.models.append(model.name)
        each = engine.tensor_parallel_size
        tokens = min(tokens, max(1.0, self._length(engine, model) - prompt))
        taken = 0.0 if engine.devices else taken
        gpu, assume = self.gpu, self.assume
        cost = costs.sampling(model, requests, prompt, tokens, gpu, assume, each, taken)
        memory = costs.sampling_memory(model, prompt, tokens, gpu, each, taken)
        line.memory["sampling"] = _larger(line.memory.get("sampling"), memory)
        computing = each * engine.replicas
        apart = len(engine.devices or ())
        line.gpus = max(line.gpus, held + apart if apart else max(held, computing))
        self._add(line, cost, computing)
        if held > computing and not apart:
            line.notes.append(
                f"sampling uses {computing} of {held} GPUs: engine.replicas spreads it over more"
            )

    @staticmethod
    def _length(engine: EngineConfig, model: Model) -> int:
        return min(engine.max_model_len or model.max_len, model.max_len)

    def _add(self, line: StageBill, cost: Cost, computing: int) -> None:
        """Add a cost that `computing` GPUs share; all GPUs of the stage are held meanwhile."""
        hours = cost.gpu_seconds / max(1, computing) / 3600
        line.flops += cost.flops
        line.hours += hours
        line.gpu_hours += hours * max(line.gpus, computing)

    def _evaluate(self, name: str, config: EvaluateConfig, line: StageBill) -> None:
        problems = self._problems(config.problems, line)
        count = {"train": problems.train, "held-out": problems.held_out}.get(
            config.split or "", problems.train + problems.held_out
        )
        count = min(count, config.limit or float("inf"))
        each = config.samples + config.greedy
        prompt = self._prompt(name, line)
        tokens = config.sampling.max_tokens * self.assume.length
        engine = validate(EngineConfig, config.engine, "engine")
        for model in config.models:
            for spec in [model.model] if isinstance(model.model, str) else model.model:
                self._sample(spec, engine, count * each, prompt, tokens, line)
        line.disk = line.sampled_tokens * TOKEN_BYTES

    def _annotate(self, config: AnnotateConfig, line: StageBill) -> None:
        if config.judge is None:
            return
        flow = self._flow(config.traces)
        tokens = config.judge.max_tokens * self.assume.length
        line.notes.append("judge: at most all traces; it sees those that rules called not correct")
        self._sample(config.judge.model, config.judge.engine, flow.rows, JUDGED, tokens, line)

    # --- stages that choose

    def _import(self, name: str, config: ImportConfig, line: StageBill) -> None:
        path = Path(shipped_file(config.path)).expanduser()
        rows = float(config.limit or 0)
        if path.exists():
            rows = float(sum(p.height for f in data_files([path]) for p in read_parts(f)))
            rows = min(rows, config.limit or rows)
        elif not rows:
            line.notes.append(f"the number of rows of {config.path} is not known")
        tokens = self._written(name, line)
        prompt = self._prompt(name, line)
        self.flows[name] = Flow(rows=rows, problems=rows, tokens=tokens, prompt=prompt)

    def _filter(self, name: str, config: FilterConfig, line: StageBill) -> None:
        flow = self._flow(config.traces)
        rows = flow.rows * self.assume.kept
        select = load_rules(config.rules, config.set, config.without).select
        for way in ("best", "shortest", "diverse", "random"):
            step = getattr(select.per_problem, way, None)
            count = getattr(step, "k", step)
            if isinstance(count, int):
                rows = min(rows, count * flow.problems)
        rows = min(rows, select.budget or rows)
        self.flows[name] = replace(flow, rows=rows)
        line.disk = rows * flow.tokens * TEXT_BYTES

    # --- stages that train

    def _sft(self, stage: Stage, config: SFTConfig, line: StageBill) -> None:
        parts = config.corpus
        mixture = [Mixture(corpus=parts)] if isinstance(parts, str) else parts
        examples = tokens = 0.0
        for part in mixture:
            flow = self._flow([part.corpus])
            count = flow.rows * part.share
            examples += count
            tokens += count * min(flow.prompt + flow.tokens, config.max_length)
        trained = tokens * config.epochs
        line.requests = examples * config.epochs
        teacher = None
        if isinstance(config, DistillConfig) and config.kind != "sequences":
            teacher = self.model_for(config.teacher)
        scored = trained if teacher else 0.0
        model = self.model_for(config.model)
        memory = self._training_memory(stage, config, model, teacher, config.max_length)
        self._train(stage, config, trained, scored, teacher, memory, line)

    def _dpo(self, stage: Stage, config: DPOConfig, line: StageBill) -> None:
        flow = self._flow(config.traces)
        pairs = min(flow.rows / 2, flow.problems * config.pairs.per_prompt)
        each = 2 * min(flow.prompt + flow.tokens, config.max_length)
        trained = pairs * each * config.epochs
        line.requests = pairs * config.epochs
        own = self.model_for(config.reference or config.model)
        kept = None if config.compute.lora and not config.reference else own
        model = self.model_for(config.model)
        memory = self._training_memory(stage, config, model, kept, 2.0 * config.max_length)
        self._train(stage, config, trained, trained, own, memory, line)

    def _grpo(self, stage: Stage, config: GRPOConfig, line: StageBill) -> None:
        ranks = stage.processes * stage.nodes
        groups = float(config.steps * config.prompts)
        rollouts = groups * config.samples
        tokens = config.sampling.max_tokens * self.assume.length
        prompt = self._prompt(stage.name, line)
        flow = self._problems(getattr(config, "problems", None), line)
        line.gpus = ranks
        reference = None
        if config.loss.beta:
            reference = self.model_for(config.loss.reference or config.model)
        # With adapters, the reference is the policy without them.
        kept = reference if config.loss.reference or not config.compute.lora else None
        model = self.model_for(config.model)
        memory = None
        if model is not None:
            memory = self._training_memory(stage, config, model, kept, prompt + tokens)
        self._rollouts(config, prompt, tokens, ranks, memory, line)
        once = rollouts * tokens + groups * prompt  # a shared prompt is computed once
        scored = once * (config.mini_batches * config.epochs > 1) + once * (reference is not None)
        self._train(stage, config, once * config.epochs, scored, reference, memory, line)
        self._preference(config, flow, line)
        self.flows[stage.name] = Flow(rows=rollouts, problems=groups, tokens=tokens, prompt=prompt)

    def _rollouts(
        self,
        config: GRPOConfig,
        prompt: float,
        tokens: float,
        ranks: int,
        memory: Memory | None,
        line: StageBill,
    ) -> None:
        """Add the samples of GRPO, those of its evaluations included."""
        engine = getattr(config, "engine", EngineConfig())
        fresh = config.prompts if config.replay is None else config.replay.fresh
        count = float(config.steps * fresh * config.samples * (1 + config.dynamic_sampling))
        if config.dynamic_sampling:
            line.notes.append("dynamic sampling: at most this many rollouts")
        size = TOKEN_BYTES if config.keep_tokens is True else TEXT_BYTES
        line.disk = count * tokens * size
        if config.evaluation.every:
            times = config.steps // config.evaluation.every + 1
            problems = getattr(config, "held_out_limit", 64)
            count += times * problems * config.evaluation.samples
        taken = memory.resting if memory else 0.0
        if count:
            self._sample(config.model, engine, count, prompt, tokens, line, ranks, taken)

    def _preference(self, config: GRPOConfig, flow: Flow, line: StageBill) -> None:
        """The judge of the reward `preference`: two comparisons per rollout of an open question."""
        options = getattr(config.rewards.get("preference"), "options", None)
        if not options:
            return
        engine = validate(EngineConfig, options.get("engine") or {}, "engine")
        rollouts = config.steps * config.prompts * config.samples * flow.open_share
        requests = 2 * int(options.get("opponents", 1)) * rollouts
        tokens = float(options.get("max_tokens", 1024)) * self.assume.length
        self._sample(str(options["model"]), engine, requests, JUDGED, tokens, line)

    def _train(
        self,
        stage: Stage,
        config: Any,
        trained: float,
        scored: float,
        scorer: Model | None,
        memory: Memory | None,
        line: StageBill,
    ) -> None:
        """Add training to the line; `scorer` computes the log-probs of `scored` tokens."""
        model = self.model_for(config.model)
        ranks = stage.processes * stage.nodes
        line.gpus = max(line.gpus, ranks)
        line.trained_tokens += trained
        if model is None or memory is None:
            return
        line.models.append(model.name)
        again = config.compute.gradient_checkpointing
        self._add(
            line,
            costs.training(model, trained, scored, scorer, self.gpu, self.assume, again),
            ranks,
        )
        line.memory["training"] = memory
        # fp32 weights and moments of each checkpoint that is kept, one more while it is written,
        # and the finished model in 16 bits
        count = config.checkpoint.keep_last + 1
        line.disk += 12 * model.parameters * count + 2 * model.parameters

    @staticmethod
    def _training_memory(
        stage: Stage, config: Any, model: Model | None, kept: Model | None, longest: float
    ) -> Memory | None:
        """Memory per GPU of a trainer. `kept` is a second model, `longest` a row in tokens."""
        if model is None:
            return None
        compute = config.compute
        return costs.training_memory(
            model,
            max(compute.micro_batch_tokens, min(longest, model.max_len)),
            stage.processes * stage.nodes,
            recomputes=compute.gradient_checkpointing,
            reference=kept,
            half=compute.precision != "fp32",
            trained_share=ADAPTERS if compute.lora else 1.0,
            sharded=compute.fsdp,
        )

    # --- the flow of rows

    def _flow(self, names: Sequence[str]) -> Flow:
        """The traces or corpora of several stages together; those of other runs are unknown."""
        flows = [self.flows[n[1:].partition(".")[0]] for n in names if self._is_known(n)]
        if not flows:
            return Flow()
        rows = sum(flow.rows for flow in flows)
        weigh = max(rows, 1.0)
        return Flow(
            rows=rows,
            problems=max(flow.problems for flow in flows),
            tokens=sum(flow.tokens * flow.rows for flow in flows) / weigh,
            prompt=sum(flow.prompt * flow.rows for flow in flows) / weigh,
        )

    def _is_known(self, name: str) -> bool:
        return name.startswith("@") and name[1:].partition(".")[0] in self.flows

    def _problems(self, problems: Any, line: StageBill) -> Flow:
        if isinstance(problems, ProblemsConfig):
            return _problem_flow(problems, line)
        if isinstance(problems, str) and self._is_known(problems):
            return self.flows[problems[1:].partition(".")[0]]
        count = self.stored(problems) if isinstance(problems, str) else None
        if count is None:
            line.notes.append(f"the number of problems of '{problems}' is not known")
            return Flow()
        return Flow(train=float(count), held_out=float(count))

    def _written(self, name: str, line: StageBill) -> float:
        """Mean tokens of texts that were not sampled."""
        measured = self.measured.get(name, Measured())
        if not measured.completion or measured.standin:
            line.notes.append(f"texts of stand-ins or none: {GUESSED:g} tokens each are a guess")
            return GUESSED
        return measured.completion

    def _prompt(self, name: str, line: StageBill) -> float:
        """Mean tokens of the stage's prompts."""
        measured = self.measured.get(name, Measured())
        return measured.prompt + (self.assume.question if measured.standin else 0.0)


def _larger(one: Memory | None, other: Memory) -> Memory:
    return other if one is None or other.total > one.total else one


def _problem_flow(config: ProblemsConfig, line: StageBill) -> Flow:
    """Rows of a stage of problems by split."""
    flow = Flow()
    unjudged = 0.0
    for source in config.built():
        count = _expected(source)
        if count is None:
            line.notes.append(f"the number of rows of {source.source} is not known")
            continue
        parts: Any = getattr(source, "parts", None) or {"": getattr(source, "split", None)}
        ours = next(iter(parts.values()))
        if ours is not None:
            ours = SPLIT_NAMES.get(ours.strip().lower(), ours)
        held = float(config.held_out)
        share = held if held < 1 else held / max(count, 1)
        held_out = count if ours == "held-out" else 0.0 if ours == "train" else count * share
        flow.held_out += held_out
        flow.train += count - held_out
        if getattr(source, "verifier", "own") is None and "verifier" not in getattr(
            source, "columns", {}
        ):
            unjudged += count
    flow.rows = flow.problems = flow.train + flow.held_out
    flow.open_share = unjudged / max(flow.rows, 1.0)
    line.requests = flow.rows
    return flow


def _expected(source: Source) -> float | None:
    """Rows of a source, without a network."""
    if isinstance(source, Hub) and not Path(source.dataset).expanduser().exists():
        count = datasets.expected_rows(source)
        return None if count is None else float(count)
    known = source.expected()
    if known is not None and not hasattr(source, "path"):
        return float(known)
    try:
        return float(with_shipped_path(source).load().height)
    except CurateError:  # the check of files reports it
        return None
