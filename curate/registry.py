"""Names to things: what ships, what an installed package offers by entry point, or a dotted path.

A registry maps a short name to a dotted path `module:attribute`, so that nothing heavy is imported before it is used.
Users add their own without forking: an entry point in the group `curate.<kind>`, or `package.module:thing` in a config.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Any

from curate.errors import UsageError


def resolve(kind: str, name: str, builtin: Mapping[str, str]) -> Any:
    """The object called `name` of this `kind` ("engine", "verifier", "source", "recipe", ...)."""
    if name in builtin:
        return load(builtin[name], kind)
    for point in entry_points(group=f"curate.{kind}"):
        if point.name == name:
            return point.load()
    if ":" in name:
        return load(name, kind)
    raise UsageError(
        f"unknown {kind} '{name}': choose one of {', '.join(sorted(builtin))}, or your own as 'package.module:name'"
    )


def load(path: str, kind: str) -> Any:
    """The object at `module:attribute`."""
    module, _, attribute = path.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UsageError(f"the {kind} '{path}' could not be loaded: {error}") from error
