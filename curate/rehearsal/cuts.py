"""The stages of a rehearsal: the real ones with fewer problems, samples, tokens and steps, with
tiny models, and with local stand-ins for what is on a network.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from curate.annotate.job import AnnotateConfig
from curate.config import merge, validate
from curate.engines import EngineConfig
from curate.engines.openai import OpenAIArgs
from curate.engines.registry import LOCAL
from curate.evaluate.job import EvaluateConfig
from curate.generate.config import GenerateConfig
from curate.imports.job import ImportConfig
from curate.pipeline.stages import Stage
from curate.problems import ProblemsConfig
from curate.problems.hub import Hub
from curate.problems.procedural import Procedural
from curate.rehearsal import datasets
from curate.rehearsal.models import TinyModels
from curate.report.job import ReportConfig
from curate.train.config import DPOConfig, GRPOConfig, SFTConfig
from curate.train.toy_base import BaseConfig
from curate.warehouse.schemas import shipped_file

TOKENS = 16  # of a completion
SAMPLES = 2  # per problem
PROBLEMS = 24  # of a stage that samples: some of each source
STEPS = 2  # rounds of RL: the second samples from weights that the first trained
HELD_OUT = 2  # problems of each source; one, if there are many sources
MANY = 3  # sources, from which on each has half as many rows
SERVED = "Qwen/Qwen2.5-0.5B"  # architecture in the place of a model that a server has

Config = dict[str, Any]
Note = Callable[[str], None]


class Cutter:
    """Cuts the stages of one pipeline. `replaced` lists what stands for something else, once."""

    def __init__(self, models: TinyModels, folder: Path) -> None:
        self.models, self.folder = models, folder
        self.replaced: dict[str, str] = {}
        self._stage = ""

    def cut(self, stage: Stage) -> Stage:
        """The stage as it is rehearsed. UsageError if a model is unknown."""
        self._stage = stage.name
        config = dict(stage.config)
        if "cluster" in config:
            config.pop("cluster")
            self._note(f"cluster of {stage.name}", "this process")
        if stage.processes > 1 or stage.nodes > 1:
            machines = f" on {stage.nodes} nodes" if stage.nodes > 1 else ""
            self._note(
                f"{stage.processes} processes{machines}", "one process; sharding is not rehearsed"
            )
        config = _sizes(stage.checked, config)
        config = self._engines(stage.checked, config)
        config = self._sources(stage.checked, config)
        checked = stage.kind.config(config, f"stage {stage.name}")
        return replace(stage, config=config, checked=checked, processes=1, nodes=1)

    def _note(self, what: str, by: str) -> None:
        self.replaced.setdefault(what, by)

    # --- models and engines

    def _engines(self, checked: Any, config: Config) -> Config:
        """Tiny models, the transformers engine, and the stub for servers and judges."""
        if isinstance(checked, ImportConfig):
            return config
        served = False
        if "engine" in config:
            config["engine"], served = self._engine(config["engine"])
            if served and "chat" in type(checked).model_fields and config.get("chat") is None:
                config["chat"] = True  # as a chat server takes it
        for key in ("model", "teacher", "reference"):
            if isinstance(config.get(key), str):
                config[key] = self._model(config[key], served)
        if isinstance(loss := config.get("loss"), Mapping) and loss.get("reference"):
            config["loss"] = {**loss, "reference": self._model(loss["reference"], False)}
        if isinstance(checked, EvaluateConfig):
            config["models"] = [self._evaluated(one, served) for one in config["models"]]
        if isinstance(checked, AnnotateConfig) and checked.judge is not None:
            word = {"helpfulness": "HELPFUL", "coherence": "COHERENT"}
            reply = word.get(checked.judge.rubric, "EQUIVALENT")
            config["judge"] = self._judge(dict(config["judge"]), reply)
        if (rewards := config.get("rewards")) and isinstance(rewards.get("preference"), Mapping):
            preference = dict(rewards["preference"])
            preference["options"] = self._judge(dict(preference.get("options") or {}), "FIRST")
            config["rewards"] = {**rewards, "preference": preference}
        return config

    def _engine(self, given: Mapping[str, Any]) -> tuple[Config, bool]:
        """The engine that runs here, and whether it stands for a server."""
        engine = validate(EngineConfig, given, "engine")
        if engine.name == "stub":
            return dict(given), False
        if engine.name in (*LOCAL, "auto"):
            if engine.name != "transformers":
                self._note(
                    f"engine {engine.name}", "the transformers engine; vLLM is not rehearsed"
                )
            own: Config = {"name": "transformers", "dtype": "float32", "args": {}}
            if engine.max_model_len is not None:
                own["max_model_len"] = engine.max_model_len
            return own, False
        if engine.name == "openai":
            validate(OpenAIArgs, engine.args, "engine.args")
            self._note("chat server", "the stub engine, with fixed replies and no request sent")
        else:
            self._note(f"engine {engine.name}", "the stub engine: code of your own is not run")
        return {"name": "stub", "max_model_len": engine.max_model_len}, True

    def _model(self, spec: str, served: bool) -> str:
        if spec.startswith("@"):
            return spec
        if served:
            self._note(f"model {spec} of a server", "the stub engine")
            return str(self.models.of(SERVED))
        path = self.models.of(spec)
        reason = self.models.standins.get(spec)
        words = f"; its tokenizer is a stand-in ({reason})" if reason else "; its own tokenizer"
        self._note(f"model {spec}", f"a tiny random model of the same architecture{words}")
        return str(path)

    def _evaluated(self, one: Config, served: bool) -> Config:
        given = one["model"]
        names = [given] if isinstance(given, str) else given
        tiny = [self._model(name, served) for name in names]
        return {**one, "model": tiny[0] if isinstance(given, str) else tiny}

    def _judge(self, options: Config, word: str) -> Config:
        """The options of a judge that always gives the same readable verdict."""
        model = str(options["model"])
        self._note(f"judge {model}", f"the stub engine, which always replies {word}")
        options["model"] = str(self.models.of(SERVED))
        options["engine"] = {"name": "stub", "args": {"style": f"VERDICT: {word}"}}
        return options

    # --- problems and files

    def _sources(self, checked: Any, config: Config) -> Config:
        """Fewer rows, and stand-ins for sources on a network."""
        if isinstance(checked, ProblemsConfig):
            return self._problems(checked, config)
        if isinstance(given := getattr(checked, "problems", None), ProblemsConfig):
            config["problems"] = self._problems(given, dict(config["problems"]))
        if isinstance(checked, ImportConfig):
            config = self._import(checked, config)
        return config

    def _problems(self, checked: ProblemsConfig, config: Config) -> Config:
        sources = []
        share = 2 if len(checked.sources) >= MANY else 1
        rows = datasets.ROWS // share
        for raw, source in zip(checked.sources, checked.built(), strict=True):
            if isinstance(source, Procedural):
                own = {**raw, "size": min(source.size, rows)}
            elif isinstance(source, Hub) and not Path(source.dataset).expanduser().exists():
                own = self._standin(raw, source) | {"limit": rows}
            else:
                own = dict(raw)
                if "limit" in type(source).model_fields:
                    own["limit"] = min(getattr(source, "limit", None) or 10**9, rows)
            sources.append(own)
        held_out = HELD_OUT // share if checked.held_out else 0
        return {**config, "sources": sources, "held_out": held_out}

    def _standin(self, raw: Config, source: Hub) -> Config:
        """Keys of a source of files that stands for one on the Hub."""
        path = self.folder / f"{re.sub(r'[^A-Za-z0-9._-]+', '-', source.dataset)}.jsonl"
        known = datasets.write_rows(path, source)
        columns = "the same columns" if known else "the columns that the config names"
        self._note(f"data set {source.dataset}", f"sums in {columns}")
        gone = ("dataset", "subset", "revision", "parts", "limit")
        own = {key: value for key, value in raw.items() if key not in gone}
        ours = set(source.parts.values())
        if len(ours) == 1 and (split := ours.pop()) is not None:
            own.setdefault("split", split)
        own.setdefault("label", source.dataset.rstrip("/").split("/")[-1])
        return own | {"source": "files", "path": str(path)}

    def _import(self, checked: ImportConfig, config: Config) -> Config:
        path = Path(shipped_file(checked.path)).expanduser()
        limit = min(checked.limit or 10**9, 2 * datasets.ROWS)
        if path.exists():
            return {**config, "limit": limit}
        target = self.folder / f"{re.sub(r'[^A-Za-z0-9._-]+', '-', checked.path)}.jsonl"
        names = checked.columns
        rows = [
            {
                names.get("question", "question"): row["question"],
                names.get("reference", "reference"): row["reference"],
                names.get("completion", "completion"): f"<think>\n{row['solution']}\n</think>\n\n"
                f"The answer is \\boxed{{{row['reference']}}}.",
            }
            for row in datasets.sums(datasets.ROWS)
        ]
        datasets.write_lines(target, rows)
        self._note(f"data set {checked.path}", "worked sums; its columns are not rehearsed")
        gone = ("subset", "part", "revision", "layout", "labels")
        own = {key: value for key, value in config.items() if key not in gone}
        kept = {k: v for k, v in names.items() if k in ("question", "reference", "completion")}
        return own | {"path": str(target), "columns": kept, "limit": limit}


def _sizes(checked: Any, config: Config) -> Config:
    """The keys of a stage that say how much it does, at the size of a rehearsal."""
    if isinstance(checked, GenerateConfig):
        return merge(config, _generate_sizes(checked))
    if isinstance(checked, EvaluateConfig):
        return merge(
            config,
            {
                "limit": min(checked.limit or 2 * HELD_OUT, 2 * HELD_OUT),
                "samples": min(checked.samples, SAMPLES),
                "sampling": {"max_tokens": min(checked.sampling.max_tokens, TOKENS)},
                "resamples": 100,
            },
        )
    if isinstance(checked, GRPOConfig):
        return merge(config, _grpo_sizes(checked))
    if isinstance(checked, SFTConfig | DPOConfig):
        own = {"epochs": min(checked.epochs, 1.0), "batch_size": min(checked.batch_size, 8)}
        return merge(config, own | _light_training(checked))
    if isinstance(checked, BaseConfig):
        return config | {"steps": min(checked.steps, 4), "batch_size": 4, "least_greedy": 0.0}
    if isinstance(checked, ReportConfig):
        return config | {"out": None, "traces": min(checked.traces, 8)}
    return config


def _generate_sizes(checked: GenerateConfig) -> Config:
    samples = min(checked.samples, SAMPLES)
    own: Config = {
        "limit": min(checked.limit or PROBLEMS, PROBLEMS),
        "samples": samples,
        "sampling": {"max_tokens": min(checked.sampling.max_tokens, TOKENS)},
    }
    if checked.adaptive is not None:
        own["adaptive"] = {
            "keep": min(checked.adaptive.keep, samples),
            "first": min(checked.adaptive.first, samples),
        }
    return own


def _grpo_sizes(checked: GRPOConfig) -> Config:
    batches = min(checked.mini_batches, 2)
    own: Config = {
        "steps": min(checked.steps, STEPS),
        "mini_batches": batches,
        "prompts": min(checked.prompts, 2 * batches) // batches * batches,
        "samples": min(checked.samples, 2 * SAMPLES),
        "epochs": min(checked.epochs, 2),
        "dynamic_sampling": min(checked.dynamic_sampling, 1),
        "sampling": {"max_tokens": min(checked.sampling.max_tokens, TOKENS)},
        "show_every": 0,
        "loss": {"reference_every": min(checked.loss.reference_every, 1)},
        "evaluation": {
            "every": min(checked.evaluation.every, 1),
            "samples": min(checked.evaluation.samples, SAMPLES),
        },
    }
    if checked.replay is not None:
        own["replay"] = {"fresh": min(checked.replay.fresh, own["prompts"] - 1)}
    if hasattr(checked, "held_out_limit"):
        own["held_out_limit"] = min(checked.held_out_limit, HELD_OUT)
    return own | _light_training(checked)


def _light_training(checked: Any) -> Config:
    """Keys that all trainings share: frequent checkpoints, no trackers, the device of this
    machine, and bf16 only if it multiplies that natively.
    """
    return {
        "trackers": [],
        "checkpoint": {"every": min(checked.checkpoint.every, 1)},
        "compute": {"device": "auto", "precision": "auto"},
    }
