"""Exactly once, also after `kill -9`: plans, chunks, claims and logs.

A *family* is all traces that share everything that determines their text. Its *plan* is a journal
of numbered files, each published with link(2), so that two planners cannot both append the same
number: the loser reads the journal again and plans what is still missing. Hence a (problem, sample,
attempt) belongs to one chunk forever, whichever jobs request it.

A *chunk* is a unit of commit. A process that works on one holds a POSIX lock on its claim, which
the kernel drops when the process dies (children do not inherit it). Finished rows go to a private
log, fsynced within FLUSH_SECONDS; a complete chunk becomes one part, named after the chunk. A
process that takes over a chunk first replays its logs.

An *adaptive* plan holds the maximum number of samples of each problem. The process that works on a
chunk decides from its rows how many samples are requested, always the first ones, and commits
those; the rest may be planned again later. A decision needs no record: a process that takes over
the chunk reaches it again from the same rows.

Plans and keys are about *units*: a problem, or the trace that is rewritten (`parent_trace_id`).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import resource
import threading
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import polars as pl

from curate.atomic import disk_errors, fsync_dir, unique_name
from curate.errors import CurateError
from curate.warehouse import schemas
from curate.warehouse.identity import digest
from curate.warehouse.names import part_name, publish_file
from curate.warehouse.parts import damaged
from curate.warehouse.store import Version, Warehouse

# Rows are durable at most this long after they finish (the contract is two seconds).
FLUSH_SECONDS = 1.0
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
    ) -> None:
        self.chunk_rows = chunk_rows
        self.warehouse = warehouse
        self.family = family
        self.facts = facts or {}
        _allow_files()
        self.jobs = warehouse.root / "_jobs" / family
        self.logs = warehouse.root / "_logs" / family

    # -- the plan --------------------------------------------------------------------------------

    def plan(self) -> pl.DataFrame:
        """All planned samples: PLAN_COLUMNS, for samples start to stop - 1."""
        files = sorted(self.jobs.glob("plan-*.parquet"))
        if not files:
            return pl.DataFrame(schema=PLAN_COLUMNS)
        return pl.concat(_plan_file(path) for path in files).select(list(PLAN_COLUMNS))

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

        Samples that an adaptive chunk left out when it was committed are free again. While it is
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
        self.jobs.mkdir(parents=True, exist_ok=True)
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
        return plan_hash(self.jobs / f"plan-{plan:06d}.parquet")

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
        """The chunks of these rows of the plan, in its order, one at a time."""
        versions = {plan: self.version(plan) for plan in rows["plan"].unique()}
        # the rows of a chunk are adjacent
        bounds = rows.select(pl.col("chunk_id").rle()).unnest("chunk_id")["len"].to_list()
        at = 0
        for count in bounds:
            items = rows.slice(at, count)
            at += count
            plan, chunk_id, adaptive = items.select("plan", "chunk_id", "adaptive").row(0)
            places = items.filter(pl.col("place").is_not_null()).select("unit", "place")
            keys = tuple(items.select("unit", "start", "stop", "attempt").iter_rows())
            yield Chunk(chunk_id, versions[plan], keys, adaptive, dict(places.iter_rows()))

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
        remaining = []
        for path in self.logs.glob("*.lo*"):
            if path.name.partition(".")[0] in done:
                path.unlink(missing_ok=True)
            elif path.suffix == ".log":
                remaining.append(path)
        return remaining

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
        with disk_errors(self.warehouse.root):
            self.logs.mkdir(parents=True, exist_ok=True)
            lock = _lock(self.logs / f"{chunk.chunk_id}.lock")
        if lock is None:
            return None
        if chunk.committed:
            lock.release()
            return None
        return ChunkLog(self, chunk, lock)


def plan_hash(path: Path) -> str:
    """Hash of a plan file `<family>/plan-<number>.parquet`, in the name of its version."""
    number = int(path.stem.removeprefix("plan-"))
    return digest(path.parent.name, number, zlib.crc32(path.read_bytes()))[:12]


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
        frame = pl.read_parquet(path, glob=False)
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


# -- locks ---------------------------------------------------------------------------------------


class _Lock:
    """An exclusive lock on a file, held until `release` or the end of the process."""

    def __init__(self, path: Path, handle: int) -> None:
        self.path, self.handle = path, handle

    def release(self) -> None:
        with _held_guard:
            _held.discard(str(self.path))
            os.close(self.handle)


# POSIX locks do not exclude each other within one process, and closing any descriptor of the file
# drops them: this set keeps track of those that this process holds.
_held: set[str] = set()
_held_guard = threading.Lock()


def _lock(path: Path) -> _Lock | None:
    """Lock a file; None if another thread or process holds it."""
    with _held_guard:
        if str(path) in _held:
            return None
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(handle)
            if error.errno in (errno.EACCES, errno.EAGAIN):
                return None
            raise
        _held.add(str(path))
        return _Lock(path, handle)


# -- logs ----------------------------------------------------------------------------------------


class ChunkLog:
    """Rows of a claimed chunk: appended as they finish, soon durable, committed when complete.

    Rows are not kept in memory, which long traces with their tokens would fill; the files are read
    again for the commit.
    """

    def __init__(self, family: Family, chunk: Chunk, lock: _Lock) -> None:
        self.family, self.chunk = family, chunk
        self._lock: _Lock | None = lock
        self.path = family.logs / f"{chunk.chunk_id}.{unique_name()}.log"
        self._handle: int | None = None
        self.done: set[Key] = {key_of(row) for row in self.rows()}

    def rows(self) -> Iterator[Row]:
        """The finished rows of the chunk, from all processes; the first row of a key counts.

        A row that no part can hold does not count: its key is sampled again.
        """
        files = sorted(self.family.logs.glob(f"{self.chunk.chunk_id}.*.log"))
        wanted = set(self.chunk.keys) if files else set()
        for row in filter(fits, replay(files)):
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
        body = encoded(row)
        line = b"%08x %s\n" % (zlib.crc32(body), body)
        with disk_errors(self.family.warehouse.root):
            if self._handle is None:
                self._handle = os.open(
                    self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644
                )
                _flusher.add(self._handle, self.path.parent)
            written = os.write(self._handle, line)
            if written != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
        self.done.add(key_of(row))
        _flusher.check()

    def commit(self, rows: Any) -> bool:
        """Publish the rows of the complete chunk. Returns False if another process had done so."""
        published = self.chunk.version.publish(self.chunk.chunk_id, rows)
        self.close()
        for path in self.family.logs.glob(f"{self.chunk.chunk_id}.*.log"):
            path.unlink(missing_ok=True)
        (self.family.logs / f"{self.chunk.chunk_id}.lock").unlink(missing_ok=True)
        return published

    def close(self) -> None:
        """Make all appended rows durable and release the claim."""
        handle, lock = self._handle, self._lock
        self._handle = self._lock = None
        try:
            if handle is not None:
                _flusher.remove(handle)
                with disk_errors(self.family.warehouse.root):
                    os.fsync(handle)
        finally:
            if handle is not None:
                os.close(handle)
            if lock is not None:
                lock.release()


def encoded(row: Row) -> bytes:
    """A row as JSON. Lone surrogates, which no column can hold, become question marks."""
    return json.dumps(row, separators=(",", ":"), ensure_ascii=False, default=str).encode(
        "utf-8", "replace"
    )


def replay(paths: Iterable[Path]) -> Iterator[Row]:
    """The whole rows of logs. A torn or damaged line is skipped: its row is generated again."""
    for path in paths:
        with contextlib.suppress(FileNotFoundError), open(path, "rb") as handle:
            for line in handle:
                if is_whole(line):
                    yield json.loads(line[9:-1])


_RANGES = {"INTEGER": 1 << 31, "BIGINT": 1 << 63}


@cache
def _integers() -> dict[str, int]:
    """Columns of `traces` that hold whole numbers, and the first number too large for each."""
    types = schemas.types("traces")
    return {name: _RANGES[kind] for name, kind in types.items() if kind in _RANGES}


def fits(row: Any) -> bool:
    """Whether a row of a log has a key, and whole numbers that its columns can hold.

    Rows of today's engines do. Earlier versions logged what a server said.
    """
    if not isinstance(row, dict) or not {"problem_id", "sample_index", "attempt"} <= row.keys():
        return False
    return all(
        isinstance(value, int) and -limit <= value < limit
        for name, limit in _integers().items()
        if (value := row.get(name)) is not None
    )


def is_whole(line: bytes) -> bool:
    """Whether a line of a log is intact: checksum, a space, JSON, a line break."""
    return len(line) > 10 and line.endswith(b"\n") and line[:8] == b"%08x" % zlib.crc32(line[9:-1])


class _Flusher:
    """A thread that makes all open logs durable every FLUSH_SECONDS."""

    def __init__(self) -> None:
        self._handles: dict[int, bool] = {}
        self._guard = threading.Lock()
        self._thread: threading.Thread | None = None
        self._error: OSError | None = None

    def add(self, handle: int, folder: Path) -> None:
        fsync_dir(folder)
        with self._guard:
            self._handles[handle] = True
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, name="curate-fsync", daemon=True)
                self._thread.start()

    def remove(self, handle: int) -> None:
        with self._guard:
            self._handles.pop(handle, None)

    def check(self) -> None:
        """Re-raise a failure of the thread: the job must stop if rows cannot be made durable."""
        if self._error is not None:
            error, self._error = self._error, None
            raise CurateError(
                f"finished rows could not be written to disk: {error.strerror}"
            ) from error

    def _run(self) -> None:
        stop = threading.Event()
        while not stop.wait(FLUSH_SECONDS):
            handles = []
            with self._guard:
                for handle in self._handles:
                    try:
                        handles.append(os.dup(handle))
                    except OSError as error:  # too many open files
                        self._error = error
            for handle in handles:
                try:
                    os.fdatasync(handle)
                except OSError as error:
                    self._error = error
                finally:
                    os.close(handle)


_flusher = _Flusher()
