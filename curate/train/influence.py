"""Influence of traces on target problems, by sketches of their gradients. Experimental.

    curate influence model=MODEL traces=[harvest] problems=sums
    curate sql --file influence

A training step on a trace raises the log-likelihood of a target by about the inner product of their
gradients (TracIn, arXiv 2002.08484). Gradients are kept as random projections, which preserve inner
products on average: of a matrix G, A G B with random A [side, rows] and B [columns, side], summed
over the matrices of the model. The influence of a trace is the mean cosine with the targets: the
norm of a gradient reflects the length of a text more than its usefulness (LESS, arXiv 2402.04333).

Gradients of traces are divided by the root mean square over the targets, parameter by parameter, as
AdamW divides them by that of earlier steps.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import polars as pl
import torch
from torch import Tensor

from curate.engines import resolve_model
from curate.engines.base import encode
from curate.errors import UsageError
from curate.job import Context, JobResult
from curate.problems import from_rows
from curate.progress import counted, duration, task
from curate.prompts.render import load_template, render, worked_completion
from curate.records import Problem
from curate.train.config import InfluenceConfig
from curate.train.model.layout import PromptCompletion
from curate.train.model.loading import load_policy
from curate.train.model.policy import Policy
from curate.train.runs import memory_errors
from curate.warehouse import Version, Warehouse
from curate.warehouse.identity import digest
from curate.warehouse.names import now, part_name

SKETCH_VERSION = 1  # raised when the same config would give other sketches
TINY = 1e-12


@dataclass
class Sketcher:
    """Gradients of single examples at fixed weights, as sketches of `side * side` numbers."""

    policy: Policy
    side: int
    seed: int = 0
    _projections: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def gradients(self, tokens: PromptCompletion) -> dict[str, Tensor]:
        """Return the gradient of the mean loss per completion token, by parameter."""
        for parameter in self.policy.parameters():
            parameter.grad = None
        layout = self.policy.layout([tokens])
        (-self.policy.logprobs(layout)[0].mean()).backward()
        self.policy.release_memory()
        named = self.policy.model.named_parameters()
        return {name: p.grad for name, p in named if p.grad is not None}

    def sketch(
        self, gradients: dict[str, Tensor], scale: dict[str, Tensor] | None = None
    ) -> tuple[Tensor, float]:
        """Return a sketch `[side * side]` (float32, on the CPU), and the norm of the gradient.

        `scale` divides the gradients, parameter by parameter; the norm is taken before.
        """
        total = torch.zeros(self.side, self.side, device=self.policy.device)
        square = torch.zeros((), device=self.policy.device)
        for name, gradient in gradients.items():
            square += gradient.square().sum()
            matrix = gradient if scale is None else gradient / scale[name]
            matrix = matrix.reshape(-1, matrix.shape[-1]) if matrix.ndim > 1 else matrix[:, None]
            left, right = self._projection(name, matrix)
            total += left @ matrix.float() @ right
        return total.reshape(-1).cpu(), float(square.sqrt())

    def _projection(self, name: str, matrix: Tensor) -> tuple[Tensor, Tensor]:
        """Return random A `[side, rows]` and B `[columns, side]` of variance 1 / side."""
        if name not in self._projections:
            rng = torch.Generator().manual_seed(int(digest("sketch", self.seed, name)[:15], 16))
            rows, columns = matrix.shape
            scale = self.side**-0.5
            self._projections[name] = (
                (torch.randn(self.side, rows, generator=rng) * scale).to(matrix.device),
                (torch.randn(columns, self.side, generator=rng) * scale).to(matrix.device),
            )
        return self._projections[name]


def root_mean_square(gradients: Iterator[dict[str, Tensor]], count: int) -> dict[str, Tensor]:
    """Return the root of the mean square of gradients, by parameter, with a floor.

    The floor is a hundredth of the parameter's own mean, so that elements without gradient on the
    targets are not amplified.
    """
    total: dict[str, Tensor] = {}
    for gradient in gradients:
        for name, value in gradient.items():
            total[name] = total.get(name, torch.zeros_like(value)) + value.square() / count
    roots = {name: value.sqrt() for name, value in total.items()}
    return {name: root + 0.01 * root.mean() + TINY for name, root in roots.items()}


def run(config: InfluenceConfig, context: Context) -> JobResult:
    """Measure the traces that have no influence yet, part by part.

    UsageError for unknown names, and for problems without worked solutions.
    """
    started, wh = time.monotonic(), context.warehouse
    model = resolve_model(config.model)
    version = wh.latest("problems", config.problems)
    targets = _targets(config, version)
    sources = [v for name in config.traces for v in _sealed(wh, name)]
    settings = config.model_dump(mode="json", exclude={"name", "model", "traces", "problems"})
    ids = sorted(p.problem_id for p in targets)
    influence_id = digest("influence", SKETCH_VERSION, model.hash, ids, settings)[:16]
    facts = {"model_hash": model.hash, "config": config.model_dump(mode="json")}
    todo = []
    for source in sources:
        name = f"{influence_id}.{source.dataset}.{source.version}"
        out = wh.version("influences", config.name, name, parents=[source.ref], **facts)
        todo += [(out, source, part) for part in source.parts() if not out.has(part_name(part))]
    result = JobResult(facts={"influence_id": influence_id})
    if todo:
        common = {
            "influence_id": influence_id,
            "model_hash": model.hash,
            "targets": f"{version.dataset}/{config.split}",
        }
        with memory_errors("while gradients were taken"):
            measure = _measure(config, str(model.path), targets, wh, common)
            with task(config.name, len(todo)) as bar:
                for done, (out, _, part) in enumerate(todo, 1):
                    rows = measure(pl.read_parquet(part, glob=False))
                    out.publish(part_name(part), rows.with_columns(**_literals(common)))
                    result.rows += rows.height
                    bar.update(done, counted(result.rows, "trace"))
        for out, source, _ in todo:
            if source.sealed:
                out.seal()
    result.refs = sorted({out.ref for out, _, _ in todo})
    result.seconds = time.monotonic() - started
    result.summary = (
        f"influence of {counted(result.rows, 'trace')} on {counted(len(targets), 'problem')} in "
        f"{duration(result.seconds)}"
        if todo
        else "nothing new to measure"
    )
    if todo:
        job = config.model_dump(mode="json")
        context.record(influence_id, "influence", config.name, job, result)
    return result


def _sealed(wh: Warehouse, name: str) -> list[Version]:
    """Return versions of a dataset of traces, including open ones. UsageError if it has none."""
    versions = wh.versions("traces", name)
    return versions or [wh.latest("traces", name)]


def _literals(values: dict[str, str]) -> dict[str, pl.Expr]:
    return {name: pl.lit(value) for name, value in values.items()}


def _targets(config: InfluenceConfig, version: Version) -> list[Problem]:
    """Return the last problems of the split that have a worked solution."""
    frame = version.read().collect()
    solved = pl.col("solution").fill_null("").str.strip_chars() != ""
    rows = frame.filter(pl.col("split") == config.split, solved, pl.col("reference").is_not_null())
    if rows.is_empty():
        raise UsageError(
            f"influence: {version.ref} has no problems with a worked solution in the split "
            f"'{config.split}': targets are solved problems"
        )
    return from_rows(rows.tail(config.targets))


def _measure(
    config: InfluenceConfig,
    model: str,
    targets: list[Problem],
    wh: Warehouse,
    common: dict[str, str],
) -> Callable[[pl.DataFrame], pl.DataFrame]:
    """Sketch the targets, and return the function that measures a frame of traces."""
    policy, tokenizer = load_policy(model, config.compute)
    template = load_template(config.template, config.form)
    sketcher = Sketcher(policy, config.side, config.seed)

    def tokens(question: str, completion: str) -> PromptCompletion | None:
        """Tokenise like SFT on a corpus: render the prompt again, append the end token."""
        prompt = encode(tokenizer, render(template, question))
        ids = tokenizer(completion, add_special_tokens=False)["input_ids"]
        whole = PromptCompletion(prompt, [*ids, tokenizer.eos_token_id])
        return whole if len(whole) <= config.max_length else None

    texts = [tokens(p.question, worked_completion(p, config.form)) for p in targets]
    solved = [(p, t) for p, t in zip(targets, texts, strict=True) if t is not None]
    if not solved:
        raise UsageError(f"influence: all targets are longer than max_length={config.max_length}")
    scale = None
    if config.precondition:
        gradients = (sketcher.gradients(t) for _, t in solved)
        scale = root_mean_square(gradients, len(solved))
    rows, directions = [], []
    for problem, sequence in solved:
        sketch, norm = sketcher.sketch(sketcher.gradients(sequence))
        directions.append(sketch / sketch.norm().clamp(min=TINY))
        rows.append(_row(problem.problem_id, directions[-1], norm))
    out = wh.version("influences", config.name, f"{common['influence_id']}.targets")
    out.publish("0", pl.DataFrame(rows).with_columns(**_literals(common)))
    out.seal()
    target = torch.stack(directions)
    questions = wh.sql("SELECT problem_id, question FROM problems")

    def measure(frame: pl.DataFrame) -> pl.DataFrame:
        frame = frame.join(questions, on="problem_id", how="left", maintain_order="left")
        columns = ("trace_id", "attempt", "problem_id", "question", "completion", "finish_reason")
        measured = []
        for trace_id, attempt, problem_id, question, text, finish in frame.select(
            columns
        ).iter_rows():
            sequence = tokens(question, text) if question and text and finish != "error" else None
            if sequence is None:
                continue
            sketch, norm = sketcher.sketch(sketcher.gradients(sequence), scale)
            direction = sketch / sketch.norm().clamp(min=TINY)
            influence = float((target @ direction).mean())
            measured.append(
                _row(problem_id, direction, norm)
                | {"trace_id": trace_id, "attempt": attempt, "influence": influence}
            )
        schema = {"trace_id": pl.String, "attempt": pl.Int32, "influence": pl.Float64}
        return pl.DataFrame(measured, schema_overrides=schema) if measured else _nothing()

    return measure


def _row(problem_id: str, direction: Tensor, norm: float) -> dict[str, object]:
    return {
        "problem_id": problem_id,
        "sketch": direction.tolist(),
        "norm": norm,
        "created_at": now(),
    }


def _nothing() -> pl.DataFrame:
    return pl.DataFrame(schema={"problem_id": pl.String})
