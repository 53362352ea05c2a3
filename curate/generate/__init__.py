"""Recipes (ways to request traces), and the job that runs them exactly once and
resumably.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from curate.registry import resolve

# Adding a recipe: one file, one line here, one test.
RECIPES = {
    "cold-start": "curate.generate.recipes.cold_start:RECIPE",
    "r1-zero": "curate.generate.recipes.r1_zero:RECIPE",
    "rejection": "curate.generate.recipes.rejection:RECIPE",
    "distill": "curate.generate.recipes.distill:RECIPE",
    "evaluate": "curate.generate.recipes.evaluation:RECIPE",
}


@dataclass(frozen=True)
class Recipe:
    """A way to request traces.

    `defaults` (keys of GenerateConfig) apply to keys that the user's config leaves out; those of
    `by_source[source]` override them. `rows`, if given, makes traces without an engine (source:
    solutions): it gets the frame of problems and the form, and returns columns of `traces`.
    """

    name: str
    doc: str
    defaults: dict[str, Any] = field(default_factory=dict)
    rows: Callable[..., Any] | None = None
    by_source: dict[str, dict[str, Any]] = field(default_factory=dict)


def get_recipe(name: str) -> Recipe:
    """Return the recipe `name`. UsageError for an unknown name."""
    return resolve("recipe", name, RECIPES)
