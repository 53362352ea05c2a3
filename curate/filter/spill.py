"""Keep decided rows in files, so that memory does not grow with the number of traces.

`Decisions` keeps every slice of traces in a file, and in memory only the numbers that the selection
needs of each trace that passed the rules, some 30 bytes per trace. `ExternalSort` sorts frames by
id: ranges of ids are written to separate files, and each is sorted when it is read.
"""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl
import pyarrow as pa

from curate.filter.hidden_columns import (
    BALANCE,
    BAND,
    DIFFICULTY,
    DRAW,
    PLACE,
    RANK,
    SCORE,
    SHAPE,
    TOP,
    WITHIN,
    is_hidden,
)

if TYPE_CHECKING:
    from curate.filter.rules import Selection


RANGES = 256  # files that are open at once
_WAITING = 32 << 20  # bytes that are written together
_KEYS = ("trace_id", "attempt")


def problem_key() -> pl.Expr:
    """Return a 64-bit hash of a problem's id. Among a million problems, the chance of a collision
    is 3 in 10^8.
    """
    return pl.col("problem_id").hash(0)


def numbers_read(selection: Selection) -> list[str]:
    """Return the columns that the selection reads of each candidate, in addition to problem, source
    and band.
    """
    ways = selection.per_problem
    draws = ways.ways() or selection.balance or selection.top or selection.budget
    read = [DRAW] if draws else []
    read += [RANK] if ways.best or ways.shortest or ways.diverse else []
    read += [DIFFICULTY] if selection.difficulty else []
    read += [BALANCE] if selection.balance else []
    read += [TOP] if selection.top else []
    return read + ([SHAPE] if ways.diverse else [])


class Decisions:
    """All rows of a decision, in the order in which they were read. The files live as long as the
    object.

    candidates: one row per trace that passed the rules, in order: problem_id (see `problem_key`),
    source, difficulty (its band, see curate/filter/funnel.py), the columns of `numbers_read`, and
    dropped_by, which the selection fills in.
    """

    def __init__(
        self, steps: Iterable[str], numbers: Iterable[str], folder: Path | None = None
    ) -> None:
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        self.folder = Path(tempfile.mkdtemp(prefix="decide-", dir=folder))
        weakref.finalize(self, shutil.rmtree, self.folder, True)
        self.steps = pl.Enum(steps)
        self.total = 0
        self.parts = 0
        self._numbers = list(numbers)
        self._passed_parts: list[pl.DataFrame] = []
        self.candidates = pl.DataFrame()

    def add(self, frame: pl.DataFrame) -> None:
        """Add a slice, with `dropped_by` (the first rule that a trace fails) and BAND."""
        frame = frame.with_columns(pl.col("dropped_by").cast(self.steps))
        hidden = [name for name in frame.columns if is_hidden(name) and name not in _TEXT_STEPS]
        frame.drop(hidden).cast({pl.Categorical: pl.String}).write_ipc(self._file(self.parts))
        source = (
            pl.col("source") if "source" in frame.columns else pl.lit(None, dtype=pl.Categorical)
        )
        self._passed_parts.append(
            frame.lazy()
            .filter(pl.col("dropped_by").is_null())
            .select(
                problem_key(),
                source.alias("source"),
                pl.col(BAND).alias("difficulty"),
                *self._numbers,
            )
            .collect()
        )
        self.total += frame.height
        self.parts += 1

    def close(self) -> None:
        """Finish after the last slice."""
        self._starts = [0]
        for part in self._passed_parts:
            self._starts.append(self._starts[-1] + part.height)
        self.candidates = pl.concat(self._passed_parts).with_columns(
            dropped_by=pl.lit(None, dtype=self.steps)
        )
        self._passed_parts.clear()

    def _file(self, number: int) -> Path:
        return self.folder / f"slice-{number:05d}.arrow"

    def _read(self, number: int, columns: list[str] | None = None) -> pl.DataFrame:
        """Read the rows of a slice, by a file handle: Polars takes brackets in a path for a
        pattern.
        """
        with open(self._file(number), "rb") as handle:
            return pl.read_ipc(handle, columns=columns)

    def passed(self, number: int) -> pl.DataFrame:
        """Return the traces of a slice that passed the rules, with PLACE (row in `candidates`) and
        `dropped_by`.
        """
        first, end = self._starts[number], self._starts[number + 1]
        rows = self._read(number).filter(pl.col("dropped_by").is_null())
        fate = self.candidates.get_column("dropped_by").slice(first, end - first)
        return rows.with_columns(fate, pl.int_range(first, end, dtype=pl.UInt32).alias(PLACE))

    def kept(self, number: int) -> pl.DataFrame:
        """Return the kept traces of a slice, in the columns of `FilterResult.kept`."""
        rows = self.passed(number).filter(pl.col("dropped_by").is_null())
        return rows.select(
            name for name in rows.columns if name != "dropped_by" and not is_hidden(name)
        )

    def decided(self, number: int) -> pl.DataFrame:
        """Return all traces of a slice: trace_id, attempt, dropped_by."""
        rows = self._read(number, columns=[*_KEYS, "dropped_by"])
        first, end = self._starts[number], self._starts[number + 1]
        at = rows.select(pl.arg_where(pl.col("dropped_by").is_null())).to_series()
        fate = self.candidates.get_column("dropped_by").slice(first, end - first)
        return rows.with_columns(rows.get_column("dropped_by").scatter(at, fate).cast(pl.String))


# The text steps of the selection read these from the files.
_TEXT_STEPS = (SCORE, WITHIN)


class ExternalSort:
    """Sorts frames by trace_id and attempt: written in any order, read in ranges of ids."""

    def __init__(self, bounds: pl.Series, folder: Path) -> None:
        self.bounds = bounds
        self._folder = Path(tempfile.mkdtemp(prefix="ordered-", dir=folder))
        self._writers: dict[int, pa.ipc.RecordBatchStreamWriter] = {}
        self._waiting: list[pl.DataFrame] = []

    def add(self, frame: pl.DataFrame) -> None:
        self._waiting.append(frame)
        if sum(part.estimated_size() for part in self._waiting) > _WAITING:
            self._write()

    def _write(self) -> None:
        if not self._waiting:
            return
        frame = pl.concat(self._waiting)
        self._waiting.clear()
        place = self.bounds.search_sorted(frame.get_column("trace_id"), side="right")
        frame = frame.with_columns(_range=place).sort("_range")
        runs = frame.get_column("_range").rle().struct.unnest()
        # In the oldest layout, a slice of a string column is written without the texts around it;
        # views would keep all of them.
        table = frame.drop("_range").to_arrow(compat_level=pl.CompatLevel.oldest()).combine_chunks()
        at = 0
        for count, number in runs.iter_rows():
            if number not in self._writers:
                options = pa.ipc.IpcWriteOptions(compression="lz4")
                self._writers[number] = pa.ipc.new_stream(
                    self._file(number), table.schema, options=options
                )
            self._writers[number].write_table(table.slice(at, count))
            at += count

    def __iter__(self) -> Iterator[pl.DataFrame]:
        self._write()
        for writer in self._writers.values():
            writer.close()
        for number in sorted(self._writers):
            with open(self._file(number), "rb") as handle:
                rows = pl.read_ipc_stream(handle)
            yield rows.sort(*_KEYS)

    def _file(self, number: int) -> Path:
        return self._folder / f"range-{number:03d}.arrows"

    def remove(self) -> None:
        for writer in self._writers.values():
            writer.close()
        shutil.rmtree(self._folder, ignore_errors=True)


def bounds_of(parts: Iterable[pl.DataFrame], rows: int) -> pl.Series:
    """Return ids that split the rows of `parts` into ranges of about `rows`, from a sample of one
    in 64.
    """
    sampled = [part.get_column("trace_id").sort().gather_every(64) for part in parts]
    sample = pl.concat([pl.Series("trace_id", [], dtype=pl.String), *sampled]).sort()
    step = max(1, rows // 64, -(-sample.len() // RANGES))
    return sample.gather_every(step).slice(1)


def in_chunks(
    parts: Iterable[pl.DataFrame], rows: int, size: int, text: str
) -> Iterator[pl.DataFrame]:
    """Yield the rows of `parts` in frames of `rows`, or fewer if the column `text` reaches `size`
    bytes.
    """
    held = pl.DataFrame()
    for part in parts:
        held = pl.concat([held, part]) if held.height else part
        while True:
            ends = held.select(pl.col(text).str.len_bytes().fill_null(0).cum_sum()).to_series()
            count = min(rows, int((ends < size).sum()) + 1)
            if count >= held.height:
                break
            yield held.slice(0, count)
            held = held.slice(count)
    if held.height:
        yield held
