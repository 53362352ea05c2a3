"""Rehearse a pipeline: run its stages at a small size in a temporary warehouse, collect the faults,
and make the bill of the real run.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import polars as pl

from curate.annotate import job as annotate
from curate.config import read_yaml
from curate.engines.base import encode, load_tokenizer
from curate.errors import CurateError, UsageError
from curate.evaluate.job import EvaluateConfig
from curate.filter import job as filtering
from curate.filter.rules import RuleSet, load_rules
from curate.generate.config import GenerateConfig
from curate.generate.estimate import CHARS_PER_TOKEN
from curate.imports.job import ImportConfig
from curate.job import Context
from curate.pipeline.checks import faults as checked_faults
from curate.pipeline.config import PipelineConfig, find_pipeline, load_pipeline
from curate.pipeline.references import versions
from curate.pipeline.runner import Pipeline
from curate.pipeline.stages import Done, Stage
from curate.problems import ProblemsConfig, load_problems
from curate.problems.hub import Hub
from curate.progress import say
from curate.prompts.render import load_template
from curate.rehearsal import datasets
from curate.rehearsal.architectures import Model, local_files, model_of
from curate.rehearsal.bill import Biller, Measured, StageBill
from curate.rehearsal.contradictions import impossible
from curate.rehearsal.costs import Assumptions
from curate.rehearsal.cuts import Cutter
from curate.rehearsal.faults import full_gpus, lost_tags, short_contexts
from curate.rehearsal.gpus import GPU
from curate.rehearsal.models import TinyModels
from curate.rehearsal.synthetic import add_traces
from curate.train.config import GRPOConfig, SFTConfig
from curate.warehouse import Warehouse
from curate.warehouse.sql import connect

ROUNDS = 2  # of a loop: the second takes what the first gave
MOST_LOOKED_AT = 400  # texts of which lengths are measured


@dataclass
class Rehearsal:
    """What a rehearsal showed.

    faults: a line `stage NAME: …` each; the real run would stop, or give a wrong result. replaced:
    what stood for what. fed: stages whose output was supplemented by synthetic traces. open: what
    could not be rehearsed. needed: what the real run needs and this machine lacks.
    """

    name: str
    gpu: GPU
    assume: Assumptions
    bills: list[StageBill] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    replaced: dict[str, str] = field(default_factory=dict)
    fed: list[str] = field(default_factory=list)
    open: list[str] = field(default_factory=list)
    needed: list[str] = field(default_factory=list)
    seconds: float = 0.0


def rehearse(
    pipeline: str | Path,
    overrides: Sequence[str],
    gpu: GPU,
    assume: Assumptions | None = None,
    warehouse: Path | None = None,
) -> Rehearsal:
    """Rehearse a pipeline file. `warehouse`: the user's, which is read for stored problems only.

    UsageError for a pipeline that cannot be loaded. Everything else that is wrong is in `faults`.
    """
    started = time.monotonic()
    config, stages = load_pipeline(pipeline, overrides)
    _, small = load_pipeline(pipeline, [*overrides, *_fewer_rounds(pipeline, overrides)])
    result = Rehearsal(config.name, gpu, assume or Assumptions())
    for line in checked_faults(stages):
        # A package that is missing here may be there: the real machine is another one.
        (result.needed if "pip install" in line else result.faults).append(line)
    users = Warehouse(warehouse or Path(config.warehouse))
    with TemporaryDirectory(prefix="curate-rehearsal-") as folder, _results_on_stderr():
        place = Path(folder)
        context = Context(place / "warehouse")
        with context:
            context.warehouse.create()
            run = _Run(config, small, context, place, users, result)
            run.stages()
            _judge(run, stages, result)
    result.seconds = time.monotonic() - started
    return result


@contextlib.contextmanager
def _results_on_stderr() -> Iterator[None]:
    """Print what stages print on stderr: the result of a rehearsal is its bill."""
    with contextlib.redirect_stdout(sys.stderr):
        yield


def _fewer_rounds(pipeline: str | Path, overrides: Sequence[str]) -> list[str]:
    """Overrides that leave a loop two rounds and a repetition one seed."""
    from curate.config import override

    stages = override(read_yaml(find_pipeline(pipeline)), overrides).get("stages") or {}
    fewer = []
    for name, stage in stages.items():
        if isinstance(stage, Mapping) and stage.get("do") == "loop":
            rounds = stage.get("rounds")
            if isinstance(rounds, int) and rounds > ROUNDS:
                fewer.append(f"stages.{name}.rounds={ROUNDS}")
        if isinstance(stage, Mapping) and stage.get("do") == "repeat" and stage.get("seeds"):
            fewer.append(f"stages.{name}.seeds=[{stage['seeds'][0]}]")
    return fewer


class _Run:
    """The stages at a small size, one after another."""

    def __init__(
        self,
        config: PipelineConfig,
        stages: list[Stage],
        context: Context,
        folder: Path,
        users: Warehouse,
        result: Rehearsal,
    ) -> None:
        self.real, self.context, self.result = stages, context, result
        self.models = TinyModels(folder / "models")
        self.cutter = Cutter(self.models, folder / "data")
        self.users = users
        self.pipeline = Pipeline(config.model_copy(update={"budget": None}), stages, context)
        self.done: dict[str, Done] = {}
        self.measured: dict[str, Measured] = {}
        self.corpora: dict[str, list[str]] = {}
        self.standin_problems: set[str] = set()

    def stages(self) -> None:
        """Run every stage whose inputs are there; report the others."""
        for number, stage in enumerate(self.real, 1):
            head = f"[{number}/{len(self.real)}] {stage.name}"
            if missing := [name for name in stage.needs if name not in self.done]:
                self.result.open.append(
                    f"stage {stage.name}: not run, since {', '.join(missing)} failed"
                )
                continue
            say(f"{head} (rehearsal)")
            try:
                small = self.cutter.cut(stage)
                self._provide(small)
                self.done[stage.name] = done = self._run(stage, small)
            except CurateError as error:
                self._fault(stage.name, str(error))
                continue
            say(f"{head}: {done.summary}")
            if isinstance(stage.checked, ProblemsConfig):
                self._look_at_choices(stage.name, done)
            if "nothing to learn from" in done.summary:
                self.result.open.append(
                    f"stage {stage.name}: updates by rewards, which are equal in every group of a "
                    "random model (a KL term alone moves the weights)"
                )
            self._measure(stage)
        self.result.replaced |= self.cutter.replaced

    def _fault(self, name: str, message: str) -> None:
        line = f"stage {name}: {message.removeprefix(f'stage {name}: ')}"
        if line not in self.result.faults:
            self.result.faults.append(line)

    def _look_at_choices(self, name: str, done: Done) -> None:
        """Report questions whose choices the model would never see."""
        columns = ["source", "question", "choices"]
        frame = self.context.warehouse.latest("problems", done.value).read(columns).collect()
        hidden = [
            row["source"]
            for row in frame.filter(pl.col("choices").list.len() > 1).iter_rows(named=True)
            if not any(choice and choice in row["question"] for choice in row["choices"])
        ]
        for source in dict.fromkeys(hidden):
            self._fault(
                name,
                f"questions of {source} do not show their choices, so no prompt does: set "
                "show_choices: true on the source, or add the choices to the question",
            )

    def _run(self, stage: Stage, small: Stage) -> Done:
        if small.do == "filter":
            return self._filter(stage, small)
        try:
            done = self._run_plain(small)
        except UsageError as error:
            if not (str(error).startswith("no problems") and small.config.get("where")):
                raise
            # None of the few rows meets the condition, which says nothing about all rows.
            self.result.open.append(
                f"stage {stage.name}: where, which none of the few problems of the rehearsal meets"
            )
            done = self._run_plain(_without(small, "where"))
        if isinstance(stage.checked, GenerateConfig) and stage.checked.source != "solutions":
            done = self._feed(stage, done)
        return done

    def _run_plain(self, small: Stage) -> Done:
        return self.pipeline.run_stage(small, self.pipeline.key(small, self.done), self.done)

    # --- input that a random model cannot give

    def _feed(self, stage: Stage, done: Done) -> Done:
        """Add synthetic traces to those that a random model sampled."""
        config = stage.checked
        family = str(done.facts["family"])
        problems = self.context.warehouse.sql(
            "SELECT p.* FROM problems p SEMI JOIN traces t ON p.problem_id = t.problem_id AND "
            "t.dataset = ?",
            [family],
        ).unique("problem_id", maintain_order=True)
        form = str(config.form or load_template(config.template).form)
        version = add_traces(
            self.context.warehouse, family, problems, form, config.template, config.recipe
        )
        self.result.fed.append(stage.name)
        return replace(done, refs=[*done.refs, version.ref])

    def _provide(self, small: Stage) -> None:
        """Put stand-ins of problems, traces and corpora that other runs would have made into the
        temporary warehouse.
        """
        config = small.config
        problems = config.get("problems")
        if isinstance(problems, str) and not problems.startswith("@"):
            self._provide_problems(problems)
        groups = [config, config.get("rework") or {}, config.get("examples") or {}]
        for group in groups:
            names = group.get("traces") if isinstance(group, Mapping) else None
            for name in names if isinstance(names, list) else ():
                if not name.startswith("@"):
                    self._provide_traces(name.removeprefix("traces/").partition("/")[0])
        corpus = config.get("corpus") if isinstance(small.checked, SFTConfig) else None
        parts = [corpus] if isinstance(corpus, str) else [p["corpus"] for p in corpus or ()]
        for name in parts:
            if not name.startswith("@"):
                self._provide_corpus(name.partition("@")[0])

    def _stored(self, table: str, name: str) -> bool:
        return bool(self.context.warehouse.versions(table, name))

    def _provide_problems(self, name: str) -> None:
        base = name.partition("@")[0]
        if self._stored("problems", base):
            return
        frame = _stored_problems(self.users, name)
        if frame is None:
            self.result.needed.append(f"problems '{name}' in the warehouse {self.users.root}")
            self.cutter.replaced[f"problems {name}"] = "sums"
            source = self.cutter.folder / f"{base}.jsonl"
            datasets.write_lines(source, datasets.sums(2 * datasets.ROWS))
            given = {"source": "files", "path": str(source)}
            frame, _ = load_problems({"sources": [given], "held_out": 2})
            self.standin_problems.add(name)
        self.context.warehouse.write("problems", base, frame, key=["rehearsal", base])

    def _provide_traces(self, family: str) -> None:
        if self._stored("traces", family):
            return
        if not self.users.exists() or not self.users.versions("traces", family):
            self.result.needed.append(f"traces '{family}' in the warehouse {self.users.root}")
        problems = self._some_problems()
        add_traces(self.context.warehouse, family, problems, "r1-zero", "r1-zero", "r1-zero")
        self.cutter.replaced[f"traces {family}"] = "synthetic traces"

    def _some_problems(self) -> pl.DataFrame:
        """Training problems of the temporary warehouse; sums, if there are none."""
        wh = self.context.warehouse
        if not wh.versions("problems"):
            self._provide_problems("rehearsal-sums")
        frame = wh.sql("SELECT * FROM problems WHERE split = 'train'")
        return frame.unique("problem_id", maintain_order=True).head(4 * datasets.ROWS)

    def _provide_corpus(self, name: str) -> None:
        if self._stored("corpora", name):
            return
        self.result.needed.append(f"corpus '{name}' in the warehouse {self.users.root}")
        family = f"rehearsal-{name}"
        add_traces(self.context.warehouse, family, self._some_problems(), "r1", "r1", "distill")
        annotate.run(annotate.AnnotateConfig(traces=[family], verify=False), self.context)
        config = filtering.FilterConfig(rules="unfiltered", corpus=name, traces=[family])
        filtering.run(config, self.context)
        self.cutter.replaced[f"corpus {name}"] = "synthetic traces"

    # --- filters

    def _filter(self, stage: Stage, small: Stage) -> Done:
        """Run a filter. If it keeps nothing, find out whether it could keep anything at all, and
        leave out the rules that the synthetic traces do not pass.
        """
        try:
            done = self._run_plain(small)
        except UsageError:
            raise
        except CurateError as error:
            blocking = self._blocking(small)
            if blocking is None:
                raise
            fault = self._contradiction(small, blocking) or self._unjudged(small, blocking)
            if fault:
                self._fault(stage.name, fault)
            else:
                shown = ", ".join(f"'{name}'" for name in blocking)
                self.result.open.append(
                    f"stage {stage.name}: rules {shown}, which neither random nor synthetic traces "
                    f"pass ({_first_line(error)}); later stages ran without them"
                )
            names = [name for name in blocking if not name.startswith("(")]
            config = {**small.config, "without": [*small.config.get("without", []), *names]}
            if "(where)" in blocking:
                config.pop("where", None)
            done = self._run_plain(replace(small, config=config))
        self._keep_texts(stage, done)
        return done

    def _blocking(self, small: Stage) -> list[str] | None:
        """Rules that drop every trace but those of random models; None if it is a step of the
        selection that keeps nothing.
        """
        rules, within = self._rules(small)
        expressions = {rule.name: rule.keep for rule in rules.rules}
        if rules.where:
            expressions["(rules.where)"] = rules.where
        if small.config.get("where"):
            expressions["(where)"] = small.config["where"]
        with connect(self.context.warehouse.root, views=False) as connection:
            passed = ", ".join(
                f"coalesce(bool_or((({sql}\n) IS TRUE)), false)" for sql in expressions.values()
            )
            # written by people or by the rehearsal, not sampled from a random model
            written = "engine IN ('rehearsal', 'solution', 'import')"
            from_synthetic = f"FROM annotated WHERE {written} AND ({within})"
            row = connection.execute(f"SELECT {passed} {from_synthetic}").fetchall()[0]
        blocking = [name for name, passes in zip(expressions, row, strict=True) if not passes]
        return blocking or None

    def _rules(self, small: Stage) -> tuple[RuleSet, str]:
        """The rule set of a filter, and the condition that selects its traces."""
        config = small.checked
        names = versions(small.config.get("traces", []), self.done)
        within = filtering.traces_condition(names, self.context.warehouse) if names else "TRUE"
        return load_rules(config.rules, config.set, config.without), within

    def _contradiction(self, small: Stage, blocking: Sequence[str]) -> str | None:
        """The fault of rules that no trace of these stages can pass."""
        rules, within = self._rules(small)
        sources = [s for s in self.real if f"@{s.name}" in small.config.get("traces", [])]
        limits = [s.checked.sampling.max_tokens for s in sources if _samples(s)]
        with connect(self.context.warehouse.root, views=False) as connection:
            fixed = {}
            for column in ("recipe", "form", "domain", "source"):
                found = connection.sql(f"SELECT DISTINCT {column} FROM annotated WHERE {within}")
                fixed[column] = [row[0] for row in found.fetchall()]
            most = {"completion_tokens": max(limits)} if limits and _all_sample(sources) else {}
            names = impossible(connection, rules, small.config.get("where"), fixed, most)
        if not names or not set(names) & set(blocking):
            return None
        sqls = {rule.name: rule.keep for rule in rules.rules} | {
            "where": rules.where,
            "(where)": small.config.get("where"),
        }
        shown = " and ".join(f"'{name}' ({' '.join(str(sqls[name]).split())})" for name in names)
        together = "can never be true" if len(names) == 1 else "can never be true together"
        limit = f", max_tokens={max(limits)}" if most and "tokens" in shown else ""
        seen = {k: v for k, v in fixed.items() if any(k in str(sqls[n]) for n in names)}
        given = "".join(f", {k} is {' or '.join(map(str, v))}" for k, v in seen.items())
        hint = f" for the traces of {', '.join(s.name for s in sources)}{limit}{given}"
        return (
            f"rules {shown} {together}{hint}: the filter would keep nothing. Correct or remove "
            f"{'it' if len(names) == 1 else 'one of them'} in the rule set '{rules.name}'"
        )

    def _unjudged(self, small: Stage, blocking: Sequence[str]) -> str | None:
        """The fault of a filter that reads verdicts of traces that no stage judged."""
        rules, within = self._rules(small)
        texts = [rule.keep for rule in rules.rules if rule.name in blocking]
        if not any("verdict" in text for text in texts):
            return None
        rows = self.context.warehouse.sql(
            f"SELECT count(*) FILTER (verdict IS NOT NULL) AS judged FROM annotated WHERE {within}"
        )
        if rows.item():
            return None
        return (
            f"rule '{blocking[0]}' reads verdicts, and no stage before this one judges its traces: "
            "add a stage `do: annotate` over them, and name it in `after`"
        )

    def _keep_texts(self, stage: Stage, done: Done) -> None:
        """Remember completions of the corpus, for the stages that learn from it."""
        name, _, version = done.value.partition("@")
        rows = self.context.warehouse.sql(
            "SELECT completion FROM corpora WHERE dataset = ? AND version = ? LIMIT 64",
            [name, version],
        )
        self.corpora[stage.name] = rows["completion"].drop_nulls().to_list()

    def texts_learned(self) -> dict[str, list[str]]:
        """Completions that each stage of SFT learned from."""
        learned = {}
        for stage in self.real:
            if isinstance(stage.checked, SFTConfig):
                corpus = stage.checked.corpus
                names = [corpus] if isinstance(corpus, str) else [part.corpus for part in corpus]
                found = [self.corpora.get(name.removeprefix("@"), []) for name in names]
                learned[stage.name] = [text for texts in found for text in texts]
        return learned

    # --- lengths

    def _measure(self, stage: Stage) -> None:
        """Measure prompts and written completions of a stage, in tokens of the real model."""
        config = stage.checked
        written = isinstance(config, ImportConfig) or _is_solutions(config)
        if not (_samples(stage) or written):
            return
        done = self.done[stage.name]
        refs = [ref.split("/") for ref in done.refs if ref.startswith("traces/")]
        condition = " OR ".join("(t.dataset = ? AND t.version = ?)" for _ in refs) or "FALSE"
        values = [part for ref in refs for part in ref[1:]]
        if isinstance(config, EvaluateConfig):
            condition, values = "recipe = 'evaluate'", []
        if isinstance(config, GRPOConfig):
            condition, values = "t.dataset = ?", [str(done.facts.get("traces"))]
        rows = self.context.warehouse.sql(
            "SELECT coalesce(t.prompt, p.question) AS prompt, t.completion FROM traces t JOIN "
            f"problems p USING (problem_id) WHERE ({condition}) AND engine <> 'rehearsal' "
            f"LIMIT {MOST_LOOKED_AT}",
            values,
        )
        count = self._counter(self.root_model(stage))
        prompts = [count(text) for text in rows["prompt"].drop_nulls()]
        texts = [count(text) for text in rows["completion"].drop_nulls()] if written else []
        if prompts:
            self.measured[stage.name] = Measured(
                sum(prompts) / len(prompts),
                max(prompts),
                self._has_standins(stage),
                sum(texts) / max(1, len(texts)),
            )

    def _counter(self, spec: str | None) -> Callable[[str], float]:
        """A function that counts tokens: by the tokenizer of the model, or, of texts that no model
        wrote, by that of some model of the pipeline; by characters without one.
        """
        named = [spec] if spec else list(self.models.made)
        for name in named:
            if name not in self.models.standins and local_files(name) is not None:
                tokenizer = load_tokenizer(self.models.of(name))
                return lambda text: float(len(encode(tokenizer, text)))
        return estimated_tokens

    def _has_standins(self, stage: Stage) -> bool:
        """Whether the problems of a stage are stand-ins, whose questions are short."""
        problems = getattr(stage.checked, "problems", None)
        if isinstance(problems, str) and problems.startswith("@"):
            name = problems[1:].partition(".")[0]
            problems = next((s.checked for s in self.real if s.name == name), None)
        if isinstance(problems, ProblemsConfig):
            return any(
                isinstance(s, Hub) and not Path(s.dataset).expanduser().exists()
                for s in problems.built()
            )
        return problems in self.standin_problems

    def root_model(self, stage: Stage | str) -> str | None:
        """The named model that a stage's model was trained from; of a toy base, None."""
        spec = stage if isinstance(stage, str) else _model_of(stage)
        by_name = {s.name: s for s in self.real}
        while isinstance(spec, str) and spec.startswith("@"):
            spec = _model_of(by_name[spec[1:].partition(".")[0]])
        return spec


def _model_of(stage: Stage) -> str | None:
    model = getattr(stage.checked, "model", None)
    if model is None and isinstance(stage.checked, EvaluateConfig):
        model = stage.checked.models[0].model
        model = model if isinstance(model, str) else model[0]
    return model


def _is_solutions(config: Any) -> bool:
    return isinstance(config, GenerateConfig) and config.source == "solutions"


def _without(stage: Stage, key: str) -> Stage:
    config = {k: v for k, v in stage.config.items() if k != key}
    return replace(stage, config=config, checked=stage.kind.config(config, f"stage {stage.name}"))


def _samples(stage: Stage) -> bool:
    """Whether a stage samples from a model."""
    config = stage.checked
    if isinstance(config, GenerateConfig):
        return config.source != "solutions"
    return isinstance(config, GRPOConfig | EvaluateConfig)


def _all_sample(stages: Sequence[Stage]) -> bool:
    return all(_samples(stage) for stage in stages)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def estimated_tokens(text: str) -> float:
    """Tokens of a text, without the tokenizer: a quarter of its ASCII characters, and each other
    one.
    """
    other = sum(ord(character) > 127 for character in text)
    return (len(text) - other) / CHARS_PER_TOKEN + other


def _stored_problems(warehouse: Warehouse, name: str) -> pl.DataFrame | None:
    """A few stored problems of each split from the user's warehouse; None if it has none."""
    if not warehouse.exists():
        return None
    try:
        frame = warehouse.latest("problems", name).read().collect()
    except UsageError:
        return None
    return frame.group_by("split", maintain_order=True).head(2 * datasets.ROWS)


# --- the bill, and the faults that follow from it


def _judge(run: _Run, stages: list[Stage], result: Rehearsal) -> None:
    """Add the bill of the real stages, and the faults that only their sizes show."""
    model_for = partial(_facts, run, stages, result)
    # Stages of further rounds, or of other seeds, have the prompts of those that were rehearsed.
    measured = {s.name: run.measured.get(s.name) or _like(s, run) for s in stages}
    known = {name: one for name, one in measured.items() if one is not None}
    biller = Biller(result.gpu, result.assume, known, model_for, partial(_count, run.users))
    result.bills = biller.bill(stages)
    lengths = {name: result.assume.question for name, one in known.items() if one.standin}
    for stage in stages:
        config = stage.checked
        if isinstance(config, GenerateConfig) and config.source == "rework" and config.rework:
            lengths[stage.name] = _longest_trace(config.rework.traces, stages)
    faults = list(short_contexts(stages, known, lengths, model_for))
    faults += full_gpus(result.bills, result.gpu)
    directories = {
        spec: run.models.of(spec)
        for spec in run.models.made
        if run.models.has_tokenizer(spec) and local_files(spec) is not None
    }
    faults += lost_tags(stages, directories, run.texts_learned())
    result.faults += [line for line in dict.fromkeys(faults) if line not in result.faults]
    if absent := [name for name in run.models.standins if f"model {name}" in result.replaced]:
        names = ", ".join(absent)
        result.open.append(
            f"tokenizers and chat templates of {names}: prompts are counted at "
            f"{CHARS_PER_TOKEN} characters per token"
        )
    result.open.append("weights: nothing was downloaded, and no real model was loaded")
    for line in result.bills:
        if line.sampled_tokens and not line.models and not line.served_tokens:
            result.open.append(f"stage {line.stage}: GPU hours, since its model is not known")


def _facts(run: _Run, stages: Sequence[Stage], result: Rehearsal, spec: str) -> Model | None:
    """The facts of a model by name or `@stage`. Of a model that is made here, its rehearsed files
    tell its shape.
    """
    root = spec
    by_name = {s.name: s for s in stages}
    while root.startswith("@"):
        name = root[1:].partition(".")[0]
        above = _model_of(by_name[name])
        if above is None:
            done = run.done.get(name)
            return model_of(done.value) if done else None
        root = above
    try:
        return model_of(root)
    except UsageError:
        return None  # reported by the stage that named it


def _like(stage: Stage, run: _Run) -> Measured | None:
    """The measurement of a rehearsed stage of the same kind and problems."""
    for other in run.real:
        same = other.do == stage.do and getattr(other.checked, "template", None) == getattr(
            stage.checked, "template", None
        )
        if same and other.name in run.measured:
            return run.measured[other.name]
    return None


def _longest_trace(names: Sequence[str], stages: Sequence[Stage]) -> float:
    """Most tokens of the traces that are rewritten; of traces of other runs, those that the
    pipeline itself samples at most.
    """
    named = [s for s in stages if f"@{s.name}" in names] or list(stages)
    limits = [s.checked.sampling.max_tokens for s in named if _samples(s)]
    return float(max(limits, default=0))


def _count(warehouse: Warehouse, name: str) -> int | None:
    """Number of stored problems of a name in the user's warehouse."""
    if not warehouse.exists():
        return None
    try:
        return int(warehouse.latest("problems", name).manifest.get("rows") or 0)
    except UsageError:
        return None
