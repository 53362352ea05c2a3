"""Logs of open chunks: rows that are finished, durable soon after, until their chunk is a part.

    <root>/_logs/<family>/<chunk>.<writer>.log            on a disk: fsynced each second
    <root>/_logs/<family>/<chunk>/<writer>-<number>.log   in a bucket: a batch each `flush` seconds

Each process writes separate logs, so nothing has to be locked, and reads those of all. A line is
a checksum and a row as JSON.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import threading
import zlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

from curate.atomic import disk_errors, fsync_dir, unique_name
from curate.errors import CurateError
from curate.store import is_remote, located
from curate.store.paths import files, make_folder, opened

# Rows are durable at most this long after they finish: on a disk (the contract is two seconds) and
# in a bucket, where each batch is a request and an object.
FLUSH_SECONDS = 1.0
BATCH_SECONDS = 10.0
UPLOADS = 8  # batches on their way at once

Row = dict[str, Any]


class Log(Protocol):
    """Log to which one process appends the finished rows of one chunk."""

    def append(self, line: bytes) -> None:
        """Add a line; it becomes durable within the seconds of its kind of log."""

    def flush(self) -> None:
        """Make every line so far visible to `replay`."""

    def close(self) -> None:
        """Make every line durable, and end."""


def open_log(folder: Path, chunk: str, seconds: float = BATCH_SECONDS) -> Log:
    """A new log of a chunk of the family whose logs are in `folder`."""
    if is_remote(folder):
        return _Batches(folder / chunk, seconds)
    return _File(folder / f"{chunk}.{unique_name()}.log")


def logs_of(folder: Path, chunk: str) -> list[Path]:
    """The logs of one chunk, by all processes."""
    if is_remote(folder):
        return files(folder / chunk, "*.log")
    return files(folder, f"{chunk}.*.log")


def chunks_with_logs(folder: Path) -> list[tuple[str, Path]]:
    """Every log, and every lock, of a family, with its chunk."""
    if is_remote(folder):
        return [(path.parent.name, path) for path in files(folder, "*/*.log")]
    return [(path.name.partition(".")[0], path) for path in files(folder, "*.lo*")]


def every_log(root: Path) -> list[Path]:
    """The logs of all families of a warehouse."""
    return files(root / "_logs", "*/*/*.log" if is_remote(root) else "*/*.log")


# -- lines ---------------------------------------------------------------------------------------


def line_of(row: Row) -> bytes:
    """A row as a line of a log. Lone surrogates, which no column can hold, become question
    marks."""
    text = json.dumps(row, separators=(",", ":"), ensure_ascii=False, default=str)
    body = text.encode("utf-8", "replace")
    return b"%08x %s\n" % (zlib.crc32(body), body)


def is_whole(line: bytes) -> bool:
    """Whether a line of a log is as it was written: checksum, a space, JSON, a line break."""
    return len(line) > 10 and line.endswith(b"\n") and line[:8] == b"%08x" % zlib.crc32(line[9:-1])


def replay(paths: Iterable[Path]) -> Iterator[Row]:
    """The whole rows of logs. A torn or damaged line is skipped: its row is generated again."""
    for path in paths:
        with contextlib.suppress(FileNotFoundError), opened(path) as handle:
            for line in handle:
                if is_whole(line):
                    yield json.loads(line[9:-1])


# -- on a disk -----------------------------------------------------------------------------------


class _File:
    """A file that is appended to, made durable by a thread that all logs share."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with disk_errors(path.parent):
            make_folder(path.parent)
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
            self._handle = os.open(path, flags, 0o644)
            _fsyncs.add(self._handle, path.parent)

    def append(self, line: bytes) -> None:
        with disk_errors(self.path.parent):
            written = os.write(self._handle, line)
            if written != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
        _fsyncs.check()

    def flush(self) -> None:
        """Do nothing: other processes read the same pages."""

    def close(self) -> None:
        try:
            _fsyncs.remove(self._handle)
            with disk_errors(self.path.parent):
                os.fsync(self._handle)
        finally:
            os.close(self._handle)


class _Fsyncs:
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


_fsyncs = _Fsyncs()


# -- in a bucket ---------------------------------------------------------------------------------


class _Batches:
    """Lines in memory, which a thread that all logs share uploads every `seconds` seconds."""

    def __init__(self, folder: Path, seconds: float) -> None:
        self.folder, self.name = folder, unique_name()
        self._lines: list[bytes] = []
        self._number = 0
        self._guard = threading.Lock()  # of the lines
        self._sending = threading.Lock()  # batches of one log go up in order
        _uploads.add(self, seconds)

    def append(self, line: bytes) -> None:
        with self._guard:
            self._lines.append(line)
        _uploads.check()

    def flush(self) -> None:
        with self._sending:
            with self._guard:
                lines, self._lines = self._lines, []
            if not lines:
                return
            store, key = located(self.folder / f"{self.name}-{self._number:06d}.log")
            try:
                store.put(key, b"".join(lines))
            except BaseException:
                with self._guard:  # the next flush tries them again
                    self._lines[:0] = lines
                raise
            self._number += 1

    def close(self) -> None:
        _uploads.remove(self)
        self.flush()


class _Uploads:
    """A thread that uploads what is new in all open logs."""

    def __init__(self) -> None:
        self._logs: dict[_Batches, float] = {}
        self._guard = threading.Lock()
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    def add(self, log: _Batches, seconds: float) -> None:
        with self._guard:
            self._logs[log] = seconds
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, name="curate-upload", daemon=True)
                self._thread.start()

    def remove(self, log: _Batches) -> None:
        with self._guard:
            self._logs.pop(log, None)

    def check(self) -> None:
        """Re-raise a failure of the thread: the job must stop if rows cannot be made durable."""
        if self._error is not None:
            error, self._error = self._error, None
            raise CurateError(f"finished rows could not be uploaded: {error}") from error

    def _run(self) -> None:
        stop = threading.Event()
        with ThreadPoolExecutor(UPLOADS, thread_name_prefix="curate-upload") as threads:
            while True:
                with self._guard:
                    logs, pause = list(self._logs), min(self._logs.values(), default=1.0)
                try:
                    for failure in threads.map(_flushed, logs):
                        self._error = failure or self._error
                except RuntimeError:  # the interpreter is ending
                    return
                stop.wait(pause)


def _flushed(log: _Batches) -> Exception | None:
    """Flush a log; the error if that fails."""
    try:
        log.flush()
    except Exception as error:
        return error
    return None


_uploads = _Uploads()
