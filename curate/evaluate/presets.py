"""Presets of benchmarks: configs of an evaluation in `pipelines/benchmarks`, by name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from curate.config import did_you_mean, override, read_yaml
from curate.errors import UsageError
from curate.shipped import data_dir, names

FOLDER = "benchmarks"


def preset_names() -> list[str]:
    """Names of the presets that ship."""
    return names("pipelines", f"{FOLDER}/*.yaml")


def preset_path(name: str) -> Path:
    """The file of a preset. UsageError if there is none of that name."""
    path = data_dir("pipelines") / FOLDER / f"{name}.yaml"
    if "/" in name or not path.is_file():
        there = preset_names()
        raise UsageError(
            f"no benchmark '{name}': choose from {', '.join(there)}{did_you_mean(name, there)}"
        )
    return path


def presets(listed: str, overrides: Sequence[str] = ()) -> list[tuple[str, dict[str, Any]]]:
    """Name and config of each preset of a list such as `aime24,math500`, with the overrides.

    UsageError for an unknown or an empty name, or one given twice.
    """
    asked = [name.strip() for name in listed.split(",")]
    if len(set(asked)) < len(asked):
        raise UsageError(f"--benchmark {listed}: a benchmark is named twice")
    return [(name, override(read_yaml(preset_path(name)), overrides)) for name in asked]
