"""Signals: text columns in, measured columns out. A signal never decides.

A group of signals is one function over a prepared frame (`curate.signals.prose.prepare`). Its
version rises whenever a value could change. The warehouse stores signals per group and version, so
adding a group does not measure the others again. Columns, units and groups are declared in
`schemas/signals.sql`. All work is over columns: Polars expressions, native plugins, and, to detect
loops, NumPy over one long column of tokens.

    annotate_frame(frame)                       # adds every signal column
    annotate_frame(frame, groups=["language"])  # adds the columns of one group
    with_macros(frame)                          # adds the columns derived by schemas/macros.sql
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from math import ceil

import numpy as np
import polars as pl

from curate.errors import UsageError
from curate.signals.behaviour import behaviour
from curate.signals.language import language, question_language
from curate.signals.macros import (
    column_groups,
    derived_columns,
    macro_sql,
    signal_types,
    with_macros,
)
from curate.signals.prose import prepare
from curate.signals.repetition import repetition
from curate.signals.shape import shape

__all__ = [
    "GROUPS",
    "Group",
    "annotate_frame",
    "column_groups",
    "derived_columns",
    "macro_sql",
    "with_macros",
]


@dataclass(frozen=True, slots=True)
class Group:
    """A group of signals: `measure` maps a prepared frame to the group's columns, row by row."""

    name: str
    version: str
    measure: Callable[[pl.DataFrame], pl.DataFrame]

    @property
    def columns(self) -> list[str]:
        """Column names of the group, in the order of schemas/signals.sql."""
        return [column for column, group in column_groups().items() if group == self.name]


GROUPS: dict[str, Group] = {
    group.name: group
    for group in (
        Group("shape", "6", shape),
        Group("repetition", "3", repetition),
        Group("language", "6", language),
        Group("behaviour", "2", behaviour),
    )
}

# Text measured at once. Loops and languages are detected in one long column of tokens, which takes
# about 25 bytes per byte of text: memory must not grow with the frame.
_SLICE_BYTES = 4 << 20
_WORKERS = max(1, min(8, pl.thread_pool_size()))


def annotate_frame(frame: pl.DataFrame, groups: Iterable[str] | None = None) -> pl.DataFrame:
    """Return `frame` with the signal columns of `groups` (default: all); rows keep their order.

    Reads `completion` (string) and, if present, `reasoning`, `answer`, `form`, `prompt`,
    `finish_reason`, `question` and `target_language`. Existing signal columns are replaced. Raises
    `UsageError` for an unknown group or a frame without `completion`.
    """
    chosen = list(GROUPS) if groups is None else list(groups)
    for name in chosen:
        if name not in GROUPS:
            raise UsageError(f"unknown group of signals '{name}': choose from {', '.join(GROUPS)}")
    if "completion" not in frame.columns:
        raise UsageError(
            "signals are measured on the column 'completion', which is missing: "
            "name the text column"
        )
    # Select the inputs only: a data column may have the name of a working column such as `_text`.
    inputs = frame.select(pl.col(name).cast(pl.String) for name in _INPUTS if name in frame.columns)
    if "language" in chosen:  # of all slices at once: many traces share a question
        inputs = inputs.with_columns(_question_language=question_language(inputs))
    slices = _slices(inputs)
    # Several slices at a time: regular expressions and plugins use one core, so slices overlap.
    with ThreadPoolExecutor(max_workers=min(_WORKERS, len(slices))) as pool:
        measured = pl.concat(pool.map(lambda part: _measure(part, chosen), slices))
    return frame.drop(measured.columns, strict=False).hstack(measured)


_INPUTS = (
    "completion",
    "reasoning",
    "answer",
    "form",
    "prompt",
    "finish_reason",
    "question",
    "target_language",
)


def _slices(inputs: pl.DataFrame) -> list[pl.DataFrame]:
    """Slices of about equal text, as large as allowed, their number a multiple of the workers."""
    sizes = inputs.get_column("completion").str.len_bytes().fill_null(0).to_numpy()
    total = int(sizes.sum())
    count = max(ceil(total / _SLICE_BYTES), ceil(inputs.height / 10_000), 1)
    if count > 1:
        count = ceil(count / _WORKERS) * _WORKERS
    # The share of a row's place counts too: rows without text take memory as well.
    place = np.cumsum(sizes + 1) - 1
    number = place * count // (total + inputs.height)
    starts = [0, *(np.flatnonzero(np.diff(number)) + 1).tolist(), inputs.height]
    return [inputs.slice(a, b - a) for a, b in pairwise(starts)]


def _measure(part: pl.DataFrame, groups: list[str]) -> pl.DataFrame:
    prepared = prepare(part)
    types = signal_types()
    measured = [GROUPS[name].measure(prepared) for name in groups]
    frame = pl.concat(measured, how="horizontal")
    return frame.select(pl.col(name).cast(types[name]) for name in types if name in frame.columns)
