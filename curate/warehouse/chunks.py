"""Exactly once, also after `kill -9`: plans, chunks, claims and logs.

A *family* is all traces that share everything that determines their text. Its *plan* is a journal
of numbered files, each published with link(2), so that two planners cannot both append the same
number: the loser reads the journal again and plans what is still missing. Hence a (problem, sample,
attempt) belongs to one chunk forever, whichever jobs request it.

A *chunk* is a unit of commit. A process that works on one holds a claim (claims.py), which ends
with the process. Finished rows go to a private log (logs.py), soon durable; a complete chunk
becomes one part, named after the chunk. A process that takes over a chunk first replays its logs.

An *adaptive* plan holds the maximum number of samples of each problem. The process that works on a
chunk decides from its rows how many samples are requested, always the first ones, and commits
those; the rest may be planned again later. A decision needs no record: a process that takes over
the chunk reaches it again from the same rows.

Plans and keys are about *units*: a problem, or the trace that is rewritten (`parent_trace_id`).
"""

from __future__ import annotations

import contextlib
import resource
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import Any

import polars as pl

from curate.atomic import disk_errors
from curate.store import is_remote
from curate.store.paths import files, make_folder, read_bytes, remove
from curate.warehouse import schemas
from curate.warehouse.claims import Claim, Claims, claims_of, rotated
from curate.warehouse.identity import digest
from curate.warehouse.logs import (
    BATCH_SECONDS,
    Log,
    chunks_with_logs,
    line_of,
    logs_of,
    open_log,
    replay,
)
from curate.warehouse.names import JOBS, LOGS, part_name, publish_file
from curate.warehouse.parts import damaged
from curate.warehouse.store import Version, Warehouse

PLANS = "plan-*.parquet"
CHUNK_ROWS = 64
OPEN_FILES = 16384

Row = dict[str, Any]
Key = tuple[str, int, int]  # unit, sample_index, attempt
FOREVER = 1 << 60

PLAN_COLUMNS = {
    "plan": pl.Int64(),
    "chunk_id": pl.String(),
    "unit": pl.String(),
    "start": pl.Int64(),
    "stop": pl.Int64(),
    "attempt": pl.Int64(),
    "adaptive": pl.Boolean(),
}


def key_of(row: Row) -> Key:
    return row.get("parent_trace_id") or row["problem_id"], row["sample_index"], row["attempt"]


def unit_expr() -> pl.Expr:
    """The unit of each row of `traces`."""
    return pl.coalesce("parent_trace_id", "problem_id").alias("unit")


@dataclass(frozen=True)
class Chunk:
    """A fixed set of (unit, sample, attempt), committed as one part; of an adaptive chunk, some.

    `places` maps units to their index in the series given to `Family.open_rows`, if they occur.
    """

    chunk_id: str
    version: Version
    items: tuple[tuple[str, int, int, int], ...]  # unit, start, stop, attempt
    adaptive: bool = False
    places: dict[str, int] = field(default_factory=dict)

    @property
    def keys(self) -> tuple[Key, ...]:
        return tuple(
            (u, sample, attempt)
            for u, start, stop, attempt in self.items
            for sample in range(start, stop)
        )

    @property
    def committed(self) -> bool:
        return self.version.has(self.chunk_id) or self.version.sealed


class Family:
    """Plan, parts and claims of the traces that share everything that determines their text."""

    def __init__(
        self,
        warehouse: Warehouse,
        family: str,
        facts: dict[str, Any] | None = None,
        chunk_rows: int = CHUNK_ROWS,
        claims: Claims | None = None,
        flush: float = BATCH_SECONDS,
    ) -> None:
        self.chunk_rows = chunk_rows
        self.warehouse = warehouse
        self.family = family
        self.facts = facts or {}
        _allow_files()
        self.jobs = warehouse.root / JOBS / family
        self.logs = warehouse.root / LOGS / family
        self.claims = claims or claims_of(warehouse.root)
        self.flush = flush
        self._plans: dict[Path, pl.DataFrame] = {}
        self._hashes: dict[int, str] = {}

    # -- the plan --------------------------------------------------------------------------------

    def plan(self) -> pl.DataFrame:
        """All planned samples: PLAN_COLUMNS, for samples start to stop - 1."""
        paths = files(self.jobs, PLANS)
        for path in paths:
            if path not in self._plans:  # a plan never changes
                self._plans[path] = _plan_file(path)
        if not paths:
            return pl.DataFrame(schema=PLAN_COLUMNS)
        return pl.concat(self._plans[path] for path in paths).select(list(PLAN_COLUMNS))

    def extend(self, units: pl.Series, samples: int, first: int | None = None) -> int:
        """Plan samples 0 to samples - 1 of each unit, except those planned before.

        Returns the number of new samples. `first` makes the plan adaptive: about `first` samples of
        each unit are expected, and at most `samples`.
        """

        def missing(planned: pl.DataFrame) -> pl.DataFrame:
            held = self._held(planned.filter(pl.col("attempt") == 0), first is not None)
            wanted = pl.DataFrame({"unit": units}, schema={"unit": pl.String}).unique(
                maintain_order=True
            )
            return (
                wanted.join(held, on="unit", how="left", maintain_order="left")
                .select("unit", start=pl.col("stop").fill_null(0), stop=pl.lit(samples, pl.Int64))
                .filter(pl.col("start") < pl.col("stop"))
                .with_columns(attempt=pl.lit(0, pl.Int64), adaptive=pl.lit(first is not None))
            )

        return self._append(missing, first)

    def _held(self, planned: pl.DataFrame, adaptive: bool) -> pl.DataFrame:
        """The end of the plan of each unit: unit, stop.

        Samples that a committed adaptive chunk does not hold are free again. While it is
        open its end is unknown, and nothing more of its units is planned; an adaptive plan waits
        for all chunks of its units.
        """
        if not adaptive and not planned["adaptive"].any():
            return planned.group_by("unit").agg(pl.col("stop").max())
        open_ended = self._lacking(planned) & (pl.lit(adaptive) | pl.col("adaptive"))
        waits = planned.filter(open_ended).select("unit", stop=pl.lit(FOREVER, pl.Int64))
        done = (
            self.committed(["problem_id", "parent_trace_id", "sample_index", "attempt"])
            .filter(pl.col("attempt") == 0)
            .group_by(unit_expr())
            .agg(pl.col("sample_index").max())
            .select("unit", stop=pl.col("sample_index").cast(pl.Int64) + 1)
            .collect(engine="streaming")
        )
        plain = planned.filter(~pl.col("adaptive")).select("unit", "stop")
        return pl.concat([waits, done, plain]).group_by("unit").agg(pl.col("stop").max())

    def redo(self, keys: pl.DataFrame) -> int:
        """Plan one more attempt of these (unit, sample_index, last attempt). Returns how many."""

        def missing(planned: pl.DataFrame) -> pl.DataFrame:
            wanted = keys.select(
                "unit",
                start=pl.col("sample_index").cast(pl.Int64),
                stop=pl.col("sample_index").cast(pl.Int64) + 1,
                attempt=pl.col("attempt").cast(pl.Int64) + 1,
                adaptive=pl.lit(False),
            )
            return wanted.join(
                planned, on=["unit", "start", "attempt"], how="anti", maintain_order="left"
            )

        return self._append(missing)

    def _append(self, missing: Any, first: int | None = None) -> int:
        make_folder(self.jobs)
        while True:
            planned = self.plan()
            new = missing(planned)
            if new.is_empty():
                return 0
            last = planned["plan"].max() if len(planned) else 0
            number = int(last or 0) + 1  # type: ignore[arg-type]
            new = _chunked(new, self.chunk_rows, first).select(
                pl.lit(number, pl.Int64).alias("plan"),
                pl.concat_str(
                    pl.lit(f"{number:05d}-"), pl.col("chunk").cast(pl.String).str.zfill(7)
                ).alias("chunk_id"),
                "unit",
                "start",
                "stop",
                "attempt",
                "adaptive",
            )
            with disk_errors(self.warehouse.root):
                target = self.jobs / f"plan-{number:06d}.parquet"
                if publish_file(self.warehouse.root, target, new.write_parquet):
                    return int((new["stop"] - new["start"]).sum())

    def version(self, plan: int) -> Version:
        """The version directory that holds the chunks of one plan."""
        return self.warehouse.version(
            "traces", self.family, f"{plan:06d}-{self._plan_hash(plan)}", **self.facts
        )

    def _plan_hash(self, plan: int) -> str:
        if plan not in self._hashes:
            self._hashes[plan] = plan_hash(self.jobs / f"plan-{plan:06d}.parquet")
        return self._hashes[plan]

    def open_rows(self, units: pl.Series, samples: int) -> pl.DataFrame:
        """Rows of the plan in open chunks that hold any of these units and samples.

        The column `place` is the index of the unit in `units`; null for units of other jobs that
        share a chunk.
        """
        planned = self.plan()
        wanted = pl.DataFrame({"unit": units}, schema={"unit": pl.String}).with_row_index("place")
        planned = planned.filter(self._lacking(planned)).join(
            wanted, on="unit", how="left", maintain_order="left"
        )
        chunks = (
            planned.filter(pl.col("place").is_not_null(), pl.col("start") < samples)
            .select("chunk_id")
            .unique()
        )
        return planned.join(chunks, on="chunk_id", how="semi", maintain_order="left")

    def _lacking(self, planned: pl.DataFrame) -> pl.Expr:
        """Whether the chunk of a row of the plan is not committed yet."""
        versions = {plan: self.version(plan) for plan in planned["plan"].unique().sort()}
        # The parts of a sealed version may have been merged into another one.
        sealed = [plan for plan, version in versions.items() if version.sealed]
        unsealed = [v for plan, v in versions.items() if plan not in set(sealed)]
        done = pl.Series([part_name(p) for v in unsealed for p in v.parts()], dtype=pl.String)
        return ~pl.col("chunk_id").is_in(done.implode()) & ~pl.col("plan").is_in(sealed)

    def chunks(self, rows: pl.DataFrame) -> Iterator[Chunk]:
        """The chunks of these rows of the plan, one at a time; in order if claims keep
        processes apart, else from a random chunk on, so that processes seldom meet.
        """
        versions = {plan: self.version(plan) for plan in rows["plan"].unique()}
        # the rows of a chunk are adjacent
        counts = rows.select(pl.col("chunk_id").rle()).unnest("chunk_id")["len"].to_list()
        places = list(zip(accumulate(counts, initial=0), counts, strict=False))
        for at, count in places if self.claims.shared else rotated(places):
            items = rows.slice(at, count)
            plan, chunk_id, adaptive = items.select("plan", "chunk_id", "adaptive").row(0)
            units = items.filter(pl.col("place").is_not_null()).select("unit", "place")
            keys = tuple(items.select("unit", "start", "stop", "attempt").iter_rows())
            yield Chunk(chunk_id, versions[plan], keys, adaptive, dict(units.iter_rows()))

    def committed(self, columns: list[str]) -> pl.LazyFrame:
        """Committed rows of the whole family."""
        versions = self.warehouse.versions("traces", self.family)
        if not versions:
            return Version(self.warehouse.root, "traces", self.family, "none").read(columns)
        return pl.concat([v.read(columns) for v in versions])

    def open_logs(self) -> list[Path]:
        """Logs of chunks that are not committed.

        Other logs are removed: a process was killed between the commit and their removal, and their
        rows are in a part.
        """
        planned = self.plan().unique("chunk_id")
        done = set(planned.filter(~self._lacking(planned))["chunk_id"])
        logs = chunks_with_logs(self.logs)
        remove([path for chunk, path in logs if chunk in done])
        return [path for chunk, path in logs if chunk not in done and path.suffix == ".log"]

    def seal(self) -> list[Version]:
        """Seal every plan whose chunks are all committed. Returns all sealed versions."""
        self.open_logs()
        chunks = self.plan().select("plan", "chunk_id").unique()
        sealed = []
        for (plan,), rows in chunks.group_by(["plan"], maintain_order=True):
            version = self.version(int(plan))
            if version.sealed or len(version.parts()) >= len(rows):
                version.seal()
                sealed.append(version)
        return sealed

    # -- claims ----------------------------------------------------------------------------------

    def claim(self, chunk: Chunk) -> ChunkLog | None:
        """Claim a chunk. Returns None if another process holds it or it is committed already."""
        claim = self.claims.take(f"{self.family}/{chunk.chunk_id}")
        if claim is None:
            return None
        if chunk.committed:
            claim.release(done=True)
            return None
        return ChunkLog(self, chunk, claim)


def plan_hash(path: Path) -> str:
    """Hash of a plan file `<family>/plan-<number>.parquet`, in the name of its version."""
    number = int(path.stem.removeprefix("plan-"))
    return digest(path.parent.name, number, zlib.crc32(read_bytes(path)))[:12]


@cache
def _allow_files() -> None:
    """Raise the limit of open files: hundreds of chunks may be open, with two files each."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _plan_file(path: Path) -> pl.DataFrame:
    """One plan file. Those of earlier versions call the unit `problem_id`; none is adaptive."""
    try:
        frame = pl.read_parquet(read_bytes(path) if is_remote(path) else path, glob=False)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise damaged(path, "the plan cannot be read") from error
    frame = frame.rename({"problem_id": "unit"}, strict=False)
    return frame if "adaptive" in frame.columns else frame.with_columns(adaptive=pl.lit(False))


def _chunked(items: pl.DataFrame, rows: int, first: int | None = None) -> pl.DataFrame:
    """Give each (unit, range) a chunk number, so that chunks have about this many rows.

    Long ranges are split. With `first` they are not, since the samples of a unit are decided
    together; a unit then counts as `first` rows.
    """
    size = pl.col("stop") - pl.col("start")
    if first is not None:
        size = pl.min_horizontal(size, pl.lit(first, pl.Int64))
    else:
        items = (
            items.with_columns(start=pl.int_ranges("start", "stop", rows), end=pl.col("stop"))
            .explode("start")
            .with_columns(stop=pl.min_horizontal("end", pl.col("start") + rows))
        )
    return items.with_columns(chunk=(size.cum_sum() - size) // rows)


# -- the log of a claimed chunk ------------------------------------------------------------------


class ChunkLog:
    """Rows of a claimed chunk: appended as they finish, soon durable, committed when complete.

    Rows are not kept in memory, which long traces with their tokens would fill; the logs are read
    again for the commit.
    """

    def __init__(self, family: Family, chunk: Chunk, claim: Claim) -> None:
        self.family, self.chunk = family, chunk
        self._claim: Claim | None = claim
        self._log: Log | None = None
        self.done: set[Key] = {key_of(row) for row in self.rows()}

    def rows(self) -> Iterator[Row]:
        """The finished rows of the chunk, from all processes; the first row of a key counts.

        A row that no part can hold does not count: its key is sampled again.
        """
        if self._log is not None:
            self._log.flush()
        paths = logs_of(self.family.logs, self.chunk.chunk_id)
        wanted = set(self.chunk.keys) if paths else set()
        for row in filter(fits, replay(paths)):
            if key_of(row) in wanted:
                wanted.remove(key_of(row))
                yield row

    @property
    def missing(self) -> list[Key]:
        return [key for key in self.chunk.keys if key not in self.done]

    @property
    def complete(self) -> bool:
        return len(self.done) == sum(stop - start for _, start, stop, _ in self.chunk.items)

    def append(self, row: Row) -> None:
        """Store a finished row. The first row of a key counts; later ones are ignored."""
        if key_of(row) in self.done:
            return
        if self._log is None:
            self._log = open_log(self.family.logs, self.chunk.chunk_id, self.family.flush)
        self._log.append(line_of(row))
        self.done.add(key_of(row))

    def commit(self, rows: Any) -> bool:
        """Publish the rows of the complete chunk. Returns False if another process had done so."""
        published = self.chunk.version.publish(self.chunk.chunk_id, rows)
        self.close(committed=True)
        remove(logs_of(self.family.logs, self.chunk.chunk_id))
        return published

    def close(self, committed: bool = False) -> None:
        """Make all appended rows durable and release the claim."""
        log, claim = self._log, self._claim
        self._log = self._claim = None
        try:
            if log is not None:
                log.close()
        finally:
            if claim is not None:
                claim.release(committed)


_RANGES = {"INTEGER": 1 << 31, "BIGINT": 1 << 63}


@cache
def _integers() -> dict[str, int]:
    """Integer columns of `traces`, and the first number too large for each."""
    types = schemas.types("traces")
    return {name: _RANGES[kind] for name, kind in types.items() if kind in _RANGES}


def fits(row: Any) -> bool:
    """Whether a row of a log has a key, and whole numbers that its columns can hold.

    Rows of today's engines do. Earlier versions logged a server's numbers unchecked.
    """
    if not isinstance(row, dict) or not {"problem_id", "sample_index", "attempt"} <= row.keys():
        return False
    return all(
        isinstance(value, int) and -limit <= value < limit
        for name, limit in _integers().items()
        if (value := row.get(name)) is not None
    )
