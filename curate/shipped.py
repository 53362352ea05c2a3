"""Paths of the files that ship with the package: schemas, pipelines and rules, saved queries."""

from __future__ import annotations

from pathlib import Path

import curate


def data_dir(kind: str) -> Path:
    """Directory of the shipped `schemas`, `pipelines` or `queries`: inside the package of a wheel,
    next to the package in a checkout.
    """
    package = Path(curate.__file__).parent
    inside = package / "data" / kind
    if inside.is_dir():
        return inside
    return package.parent / ("warehouse/queries" if kind == "queries" else kind)


def names(kind: str, pattern: str) -> list[str]:
    """Names, without the ending, of the shipped files of a kind that match a pattern."""
    return sorted(path.stem for path in data_dir(kind).glob(pattern))
