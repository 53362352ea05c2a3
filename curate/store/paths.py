"""Operations on paths below the root of a warehouse, on a disk or in a bucket.

Each function does for a remote path what `pathlib` does for a local one; local paths cost nothing
extra. A bucket has no folders: a folder exists as long as it contains an object, and listing it
lists everything below it. So do not call these in a loop over parts.
"""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from fnmatch import fnmatchcase
from pathlib import Path
from typing import IO, NamedTuple

import polars as pl

from curate.atomic import unique_name, write_whole
from curate.store.local import STAGING
from curate.store.roots import is_remote, located, url_of

SCRATCH = "CURATE_SCRATCH"


class Stamp(NamedTuple):
    """Size in bytes and modification time in nanoseconds, which change with the file."""

    size: int
    changed: int


def stamp(path: Path) -> Stamp:
    """Return size and modification time of a file. FileNotFoundError if it does not exist."""
    if not is_remote(path):
        stat = path.stat()
        return Stamp(stat.st_size, stat.st_mtime_ns)
    store, key = located(path)
    entry = store.entry(key)
    if entry is None:
        raise FileNotFoundError(url_of(path))
    return Stamp(entry.size, int(entry.changed * 1e9))


def exists(path: Path) -> bool:
    """Whether a file or a folder has this name."""
    if not is_remote(path):
        return path.exists()
    store, key = located(path)
    return store.has(key) or bool(_below(path))


def is_file(path: Path) -> bool:
    """Whether a file has this name."""
    if not is_remote(path):
        return path.is_file()
    store, key = located(path)
    return store.has(key)


def is_folder(path: Path) -> bool:
    """Whether a folder has this name."""
    if not is_remote(path):
        return path.is_dir()
    return bool(_below(path))


def files(folder: Path, pattern: str = "*") -> list[Path]:
    """Files in a folder that match a pattern of names joined by `/`, sorted."""
    if not is_remote(folder):
        return sorted(folder.glob(pattern))
    return [path for path, _ in _below(folder) if _matches(path, folder, pattern)]


def files_below(folder: Path) -> list[Path]:
    """Every file of a folder at any depth, sorted."""
    if not is_remote(folder):
        return sorted(path for path in folder.rglob("*") if path.is_file())
    return [path for path, _ in _below(folder)]


def folders(folder: Path, pattern: str = "*") -> list[Path]:
    """Folders below a folder that match a pattern, sorted."""
    if not is_remote(folder):
        return sorted(path for path in folder.glob(pattern) if path.is_dir())
    depth = len(folder.parts) + pattern.count("/") + 1
    inside = {Path(*path.parts[:depth]) for path, _ in _below(folder) if len(path.parts) > depth}
    return sorted(path for path in inside if _matches(path, folder, pattern))


def _below(folder: Path) -> list[tuple[Path, int]]:
    """Every file at any depth below a remote folder, with its bytes."""
    root, listed = _listed.get() or (None, {})
    if root is None or len(folder.parts) <= len(root.parts) or not folder.is_relative_to(root):
        return _list(folder)
    top = root / folder.parts[len(root.parts)]
    if top not in listed:
        listed[top] = _list(top)
    return [(path, size) for path, size in listed[top] if path.is_relative_to(folder)]


def _list(folder: Path) -> list[tuple[Path, int]]:
    store, key = located(folder)
    bucket = folder.parts[: len(folder.parts) - len(key.split("/"))] if key else folder.parts
    return [(Path(*bucket, *entry.key.split("/")), entry.size) for entry in store.list(key)]


_listed: ContextVar[tuple[Path, dict[Path, list[tuple[Path, int]]]] | None] = ContextVar(
    "listed", default=None
)


@contextmanager
def listed_once(root: Path) -> Iterator[None]:
    """List each top-level folder of a bucket at most once in this block, which must only read."""
    token = _listed.set((root, {})) if is_remote(root) else None
    try:
        yield
    finally:
        if token is not None:
            _listed.reset(token)


def _matches(path: Path, folder: Path, pattern: str) -> bool:
    names, patterns = path.parts[len(folder.parts) :], pattern.split("/")
    return len(names) == len(patterns) and all(map(fnmatchcase, names, patterns))


def read_bytes(path: Path) -> bytes:
    """Return the content of a file. FileNotFoundError if it does not exist."""
    if not is_remote(path):
        return path.read_bytes()
    store, key = located(path)
    return store.get(key)


def read_text(path: Path) -> str:
    """Return the content of a UTF-8 file."""
    return read_bytes(path).decode("utf-8")


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """Open a file that is read as a whole, such as a log."""
    if not is_remote(path):
        with open(path, "rb") as handle:
            yield handle
        return
    yield io.BytesIO(read_bytes(path))


@contextmanager
def on_disk(path: Path) -> Iterator[Path]:
    """Yield a local path of the file: its own, or that of a copy deleted when the block ends."""
    if not is_remote(path):
        yield path
        return
    folder = scratch()
    folder.mkdir(parents=True, exist_ok=True)
    copy = folder / f"{unique_name()}{path.suffix}"
    try:
        copy.write_bytes(read_bytes(path))
        yield copy
    finally:
        copy.unlink(missing_ok=True)


def write(path: Path, content: str | bytes) -> None:
    """Write or replace a small file atomically."""
    if not is_remote(path):
        write_whole(path, content)
        return
    store, key = located(path)
    store.put(key, content.encode("utf-8") if isinstance(content, str) else content)


def make_folder(path: Path) -> None:
    """Create a folder and those above it. Does nothing in a bucket."""
    if not is_remote(path):
        path.mkdir(parents=True, exist_ok=True)


def remove(paths: Sequence[Path]) -> None:
    """Remove files; a missing file is not an error."""
    remote = [path for path in paths if is_remote(path)]
    for path in paths:
        if not is_remote(path):
            path.unlink(missing_ok=True)
    if remote:
        store, _ = located(remote[0])
        store.delete([located(path)[1] for path in remote])


def scan(parts: Sequence[Path], **options: object) -> pl.LazyFrame:
    """Scan Parquet files by name; brackets in a path are literal. `options` are Polars'."""
    if not parts or not is_remote(parts[0]):
        return pl.scan_parquet(list(parts), glob=False, **options)  # type: ignore[arg-type]
    names, storage = _readable(parts)
    return pl.scan_parquet(
        names,
        glob=False,
        storage_options=storage,
        credential_provider=None,
        **options,  # type: ignore[arg-type]
    )


def _readable(parts: Sequence[Path]) -> tuple[list[str], dict[str, str] | None]:
    store, _ = located(parts[0])
    readable = store.readable([located(part)[1] for part in parts])
    return readable.names, readable.options


def scratch(root: Path | None = None) -> Path:
    """A local folder for files that only this process reads: the staging folder of a warehouse on a
    disk, else `$CURATE_SCRATCH` or the system's temporary folder.
    """
    if root is not None and not is_remote(root):
        return root / STAGING
    folder = os.environ.get(SCRATCH)
    return Path(folder) if folder else Path(tempfile.gettempdir()) / "curate"
