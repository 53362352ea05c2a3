"""Exactly once: plans, chunks, claims and logs.

A family is all traces that share what determines their text. Its *plan* is a journal of numbered
files, each published with link(2), so that two planners cannot both append the same number: whoever
loses reads again and plans what is still missing. Hence a (problem, sample, attempt) belongs to one
chunk for ever, whichever jobs ask for it.

A *chunk* is a unit of commit. Whoever works on one holds a POSIX lock on its claim, which the
kernel drops when the process dies (and which children do not inherit). Finished rows go to a
private log, fsynced within FLUSH_SECONDS; a complete chunk becomes one part under its own name.
Taking over a chunk begins with replaying its logs.

An *adaptive* plan holds, for each problem, the most samples it may take. Its owner decides from the
rows of the chunk how many of them are asked, always the first ones, and commits those; the rest may
be planned again later. So a decision needs no record of its own: whoever takes the chunk over makes
it again from the same rows.

What is planned and keyed is a *unit*: a problem, or the trace that is rewritten
(`parent_trace_id`).
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
from typing import TYPE_CHECKING, Any

from curate.atomic import disk_errors, fsync_dir, unique_name
from curate.errors import CurateError
from curate.warehouse.files import publish_file
from curate.warehouse.identity import digest
from curate.warehouse.store import Version, Warehouse

if TYPE_CHECKING:
    import polars as pl

# Rows are durable at most this long after they finish (the contract is two seconds).
FLUSH_SECONDS = 1.0
CHUNK_ROWS = 64
OPEN_FILES = 16384

Row = dict[str, Any]
Key = tuple[str, int, int]  # unit, sample_index, attempt
FOREVER = 1 << 60


def key_of(row: Row) -> Key:
    return row.get("parent_trace_id") or row["problem_id"], row["sample_index"], row["attempt"]


def unit_expr() -> pl.Expr:
    """The unit of each row of `traces`."""
    import polars as pl

    return pl.coalesce("parent_trace_id", "problem_id").alias("unit")


@dataclass(frozen=True)
class Chunk:
    """A fixed set of (unit, sample, attempt), committed as one part of one version (of an adaptive
    one, some of them).

    `places` are the units' places in the frame that `Family.open_rows` was given, where they occur
    in it.
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
    """The traces that share everything that determines their text: their plan, their parts, their
    claims."""

    def __init__(
        self, warehouse: Warehouse, family: str, facts: dict[str, Any] | None = None
    ) -> None:
        self.warehouse = warehouse
        self.family = family
        self.facts = facts or {}
        _allow_files()
        self.jobs = warehouse.root / "_jobs" / family
        self.logs = warehouse.root / "_logs" / family

    # -- the plan --------------------------------------------------------------------------------

    def plan(self) -> pl.DataFrame:
        """All that was ever planned: plan, chunk_id, unit, start, stop, attempt, adaptive (samples
        start..stop-1)."""
        import polars as pl

        columns: dict[str, Any] = {"plan": pl.Int64, "chunk_id": pl.String, "unit": pl.String}
        columns |= {
            "start": pl.Int64,
            "stop": pl.Int64,
            "attempt": pl.Int64,
            "adaptive": pl.Boolean,
        }
        files = sorted(self.jobs.glob("plan-*.parquet"))
        if not files:
            return pl.DataFrame(schema=columns)
        return pl.concat(_plan_file(path) for path in files).select(list(columns))

    def extend(self, units: pl.Series, samples: int, first: int | None = None) -> int:
        """Plan samples 0..samples-1 of each unit, as far as no plan holds them. Returns how many
        are new.

        `first` makes the plan adaptive: some `first` samples of each unit are expected, and
        `samples` is the most.
        """
        import polars as pl

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
        """How far each unit is planned: unit, stop.

        What an adaptive chunk left out when it was committed is free again. As long as it is open,
        nobody knows where it will end, and nothing more of its units is planned; an adaptive plan
        waits for every chunk of its units.
        """
        import polars as pl

        if not adaptive and not planned["adaptive"].any():
            return planned.group_by("unit").agg(pl.col("stop").max())
        open_ended = self._lacking(planned) & (pl.lit(adaptive) | pl.col("adaptive"))
        waits = planned.filter(open_ended).select("unit", stop=pl.lit(FOREVER, pl.Int64))
        asked = self.committed(["problem_id", "parent_trace_id", "sample_index", "attempt"])
        asked = (
            asked.filter(pl.col("attempt") == 0)
            .group_by(unit_expr())
            .agg(pl.col("sample_index").max())
        )
        done = asked.select("unit", stop=pl.col("sample_index").cast(pl.Int64) + 1).collect(
            engine="streaming"
        )
        plain = planned.filter(~pl.col("adaptive")).select("unit", "stop")
        return pl.concat([waits, done, plain]).group_by("unit").agg(pl.col("stop").max())

    def redo(self, keys: pl.DataFrame) -> int:
        """Plan one more attempt of these (unit, sample_index, attempt: the last one made). Returns
        how many."""
        import polars as pl

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
        import polars as pl

        self.jobs.mkdir(parents=True, exist_ok=True)
        while True:
            planned = self.plan()
            new = missing(planned)
            if new.is_empty():
                return 0
            number = int(planned["plan"].max() or 0) + 1 if len(planned) else 1  # type: ignore[arg-type]
            new = _chunked(new, first).select(
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
        data = (self.jobs / f"plan-{plan:06d}.parquet").read_bytes()
        return digest(self.family, plan, zlib.crc32(data))[:12]

    def open_rows(self, units: pl.Series, samples: int) -> pl.DataFrame:
        """Rows of the plan whose chunk is not committed and holds something of the wanted units and
        samples.

        The column `place` is the unit's place in `units`; null for units of other jobs that share a
        chunk.
        """
        import polars as pl

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
        import polars as pl

        versions = {plan: self.version(plan) for plan in planned["plan"].unique().sort()}
        # the parts of a sealed version may have been merged into another
        sealed = [plan for plan, version in versions.items() if version.sealed]
        there = [v for plan, v in versions.items() if plan not in set(sealed)]
        done = pl.Series(
            [p.stem.removeprefix("part-") for v in there for p in v.parts()], dtype=pl.String
        )
        return ~pl.col("chunk_id").is_in(done.implode()) & ~pl.col("plan").is_in(sealed)

    def chunks(self, rows: pl.DataFrame) -> Iterator[Chunk]:
        """The chunks of these rows of the plan, in its order, one at a time."""
        import polars as pl

        versions = {plan: self.version(plan) for plan in rows["plan"].unique()}
        # the rows of a chunk stand together
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
        import polars as pl

        versions = self.warehouse.versions("traces", self.family)
        if not versions:
            return Version(self.warehouse.root, "traces", self.family, "none").read(columns)
        return pl.concat([v.read(columns) for v in versions])

    def open_logs(self) -> list[Path]:
        """Logs of chunks that are not committed. Others, of a process that was killed between the
        commit and their removal, are removed: their rows stand in a part."""
        planned = self.plan().unique("chunk_id")
        done = set(planned.filter(~self._lacking(planned))["chunk_id"])
        left = []
        for path in self.logs.glob("*.lo*"):
            if path.name.partition(".")[0] in done:
                path.unlink(missing_ok=True)
            elif path.suffix == ".log":
                left.append(path)
        return left

    def seal(self) -> list[Version]:
        """Seal every plan whose chunks are all committed; returns the versions of the family that
        are sealed."""
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
        """Take a chunk over: None where another process has it or it is committed already."""
        self.logs.mkdir(parents=True, exist_ok=True)
        lock = _lock(self.logs / f"{chunk.chunk_id}.lock")
        if lock is None:
            return None
        if chunk.committed:
            lock.release()
            return None
        return ChunkLog(self, chunk, lock)


@cache
def _allow_files() -> None:
    """Enough open files: where lengths vary hundreds of chunks are open at once, two files each."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _plan_file(path: Path) -> pl.DataFrame:
    """One plan; those of earlier versions call the unit `problem_id` and know no adaptive chunks."""
    import polars as pl

    frame = pl.read_parquet(path)
    frame = frame.rename({"problem_id": "unit"}, strict=False)
    return frame if "adaptive" in frame.columns else frame.with_columns(adaptive=pl.lit(False))


def _chunked(items: pl.DataFrame, first: int | None = None) -> pl.DataFrame:
    """Gives each (unit, range) a chunk number so that a chunk has about CHUNK_ROWS rows; splits
    long ranges.

    With `first` a unit counts that many rows, and keeps its whole range: its samples are decided on
    together.
    """
    import polars as pl

    size = pl.col("stop") - pl.col("start")
    if first is not None:
        size = pl.min_horizontal(size, pl.lit(first, pl.Int64))
    else:
        items = (
            items.with_columns(start=pl.int_ranges("start", "stop", CHUNK_ROWS), end=pl.col("stop"))
            .explode("start")
            .with_columns(stop=pl.min_horizontal("end", pl.col("start") + CHUNK_ROWS))
        )
    return items.with_columns(chunk=(size.cum_sum() - size) // CHUNK_ROWS)


# -- locks ---------------------------------------------------------------------------------------


class _Lock:
    def __init__(self, path: Path, handle: int) -> None:
        self.path, self.handle = path, handle

    def release(self) -> None:
        with _held_guard:
            _held.discard(str(self.path))
            os.close(self.handle)


# POSIX locks do not exclude within one process, and closing any descriptor of the file drops them:
# hence this set.
_held: set[str] = set()
_held_guard = threading.Lock()


def _lock(path: Path) -> _Lock | None:
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
    """The rows of a claimed chunk: appended as they finish, durable in time, committed when
    complete.

    Rows are not held in memory: long traces with their tokens would fill it. The files are read
    again when the chunk is committed.
    """

    def __init__(self, family: Family, chunk: Chunk, lock: _Lock) -> None:
        self.family, self.chunk, self._lock = family, chunk, lock
        self.path = family.logs / f"{chunk.chunk_id}.{unique_name()}.log"
        self._handle: int | None = None
        self.done: set[Key] = {key_of(row) for row in self.rows()}

    def rows(self) -> Iterator[Row]:
        """The finished rows of the chunk, by whichever process; the first row of a key counts."""
        files = sorted(self.family.logs.glob(f"{self.chunk.chunk_id}.*.log"))
        wanted = set(self.chunk.keys) if files else set()
        for row in replay(files):
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
        """Keep a finished row. The first row of a key stays."""
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
        """Publish the complete chunk, whose rows the caller has put into columns. False where it
        was there already."""
        published = self.chunk.version.publish(self.chunk.chunk_id, rows)
        self.close()
        for path in self.family.logs.glob(f"{self.chunk.chunk_id}.*.log"):
            path.unlink(missing_ok=True)
        (self.family.logs / f"{self.chunk.chunk_id}.lock").unlink(missing_ok=True)
        return published

    def close(self) -> None:
        """Make what is there durable and let go of the chunk."""
        if self._handle is not None:
            _flusher.remove(self._handle)
            with disk_errors(self.family.warehouse.root):
                os.fsync(self._handle)
            os.close(self._handle)
            self._handle = None
        if self._lock is not None:
            self._lock.release()
            self._lock = None  # type: ignore[assignment]


def encoded(row: Row) -> bytes:
    """A row as JSON. Half a surrogate pair is no UTF-8, and no column could hold it."""
    return json.dumps(row, separators=(",", ":"), ensure_ascii=False, default=str).encode(
        "utf-8", "replace"
    )


def replay(paths: Iterable[Path]) -> Iterator[Row]:
    """The whole rows of logs; a torn or damaged line is left out, as it was never acknowledged."""
    for path in paths:
        with contextlib.suppress(FileNotFoundError), open(path, "rb") as handle:
            for line in handle:
                if len(line) > 10 and line.endswith(b"\n"):
                    body = line[9:-1]
                    if line[:8] == b"%08x" % zlib.crc32(body):
                        yield json.loads(body)


class _Flusher:
    """One thread that fsyncs the logs with unsynced rows, every FLUSH_SECONDS."""

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
        """Raise what fsync met: a row that cannot be made durable must stop the job."""
        if self._error is not None:
            error, self._error = self._error, None
            raise CurateError(
                f"finished rows could not be written to disk: {error.strerror}"
            ) from error

    def _run(self) -> None:
        stop = threading.Event()
        while not stop.wait(FLUSH_SECONDS):
            with self._guard:
                handles = [os.dup(h) for h in self._handles]
            for handle in handles:
                try:
                    os.fdatasync(handle)
                except OSError as error:
                    self._error = error
                finally:
                    os.close(handle)


_flusher = _Flusher()
