"""The parts of a version, checked against its manifest on every read.

A sealed version holds exactly the parts of its manifest, each with its size. An open one holds
parts that name their own place in their footer. Anything else (a part that is missing, cut off,
copied from elsewhere, or not ours) raises one CurateError instead of changing a count silently.
Checksums take reading every byte. `verify` compares them: for `curate check`, and for what reads
whole parts and passes their rows on (corpora, merged parts, exports, training).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from curate.errors import CurateError
from curate.store import CHECKSUM, is_remote, located
from curate.store.paths import Stamp, files, folders, on_disk, read_bytes, read_text, stamp
from curate.warehouse import schemas
from curate.warehouse.names import EMPTY

MANIFEST = "manifest.json"
PARTS = "part-*.parquet"
REQUESTS = 16  # to a bucket at once
FOOTER_BYTES = 64_000  # bytes fetched for a footer, enough for most
PLACE_KEY = b"curate.part"  # in the footer: <table>/<dataset>/<version>/<file>


@dataclass(frozen=True)
class Footer:
    """Facts in the footer of a part. `place` is None in parts of older versions."""

    rows: int
    columns: frozenset[str]
    place: str | None


def damaged(path: Path, what: str) -> CurateError:
    """The error about a damaged file of a warehouse."""
    return CurateError(
        f"{path}: {what}. See all damage with `curate check`, and repair it if possible with "
        "`curate check --repair`"
    )


def read_manifest(directory: Path) -> dict[str, Any]:
    """The manifest of a version directory; empty for an open version. CurateError if unreadable."""
    path = directory / MANIFEST
    try:
        return _manifest(path, *_stamp(path))
    except (FileNotFoundError, NotADirectoryError):
        return {}


def _stamp(path: Path) -> Stamp:
    """Cache key that changes with a file. In a bucket a query would cost as much as reading, and
    only `curate check --repair` replaces parts and manifests there.
    """
    return stamp(path) if not is_remote(path) else Stamp(0, 0)


@lru_cache(maxsize=4096)
def _manifest(path: Path, size: int, mtime_ns: int) -> dict[str, Any]:
    try:
        manifest = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise damaged(path, f"the manifest cannot be read ({error})") from error
    if not isinstance(manifest, dict):
        raise damaged(path, "the manifest is not a JSON object")
    return manifest


def place_of(path: Path) -> str:
    """`<table>/<dataset>/<version>/<file>`, from the path of a part."""
    return "/".join(path.parts[-4:])


def footer(path: Path) -> Footer:
    """Read the footer of a part. CurateError if it is not whole Parquet."""
    return _footer(path, *_stamp(path))


@lru_cache(maxsize=65536)
def _footer(path: Path, size: int, mtime_ns: int) -> Footer:
    try:
        metadata = _metadata(path)
        schema = metadata.schema.to_arrow_schema()
    except (pa.ArrowException, OSError, UnicodeDecodeError, MemoryError) as error:
        raise damaged(path, f"not a whole Parquet file ({type(error).__name__})") from error
    place = (metadata.metadata or {}).get(PLACE_KEY)
    return Footer(
        metadata.num_rows, frozenset(schema.names), place.decode("utf-8") if place else None
    )


def _metadata(path: Path) -> pq.FileMetaData:
    """The footer of a Parquet file; of a remote one, no more is fetched."""
    if not is_remote(path):
        return pq.read_metadata(path)
    store, key = located(path)
    tail = store.tail(key, FOOTER_BYTES)
    # The last eight bytes: the length of the footer, and a mark.
    needed = int.from_bytes(tail[-8:-4], "little") + 8
    if needed > len(tail) == FOOTER_BYTES:
        tail = store.tail(key, needed)
    return pq.read_metadata(pa.BufferReader(tail))


def foreign(path: Path) -> str | None:
    """Why a part does not belong in its place, judged by its footer; None if it does."""
    facts, table = footer(path), path.parts[-4]
    if facts.place is not None and facts.place != place_of(path):
        return f"a copy of {facts.place}"
    key = schemas.required(table)[0]  # later columns may be younger than the part
    if key not in facts.columns:
        return f"not a part of the table {table}: it has no column {key}"
    return None


def parts(directory: Path) -> list[Path]:
    """The committed parts of a version directory, by name.

    Raises CurateError about the first part that is missing, changed or foreign.
    """
    manifest = read_manifest(directory)
    if manifest and is_remote(directory):
        # Listing a bucket takes long, nothing is merged there, and a manifest is written after its
        # parts: `curate check` compares them.
        return [directory / name for name in sorted(_listed(directory, manifest))]
    present = files(directory, PARTS)
    if not manifest:
        for path in present:
            if reason := foreign(path):
                raise damaged(path, f"a foreign file ({reason})")
        return present
    listed = _listed(directory, manifest)
    if not present and is_replaced(directory):
        return []
    if [path.name for path in present] != sorted(listed):
        # Others may have merged the dataset between the two readings.
        manifest, present = read_manifest(directory), files(directory, PARTS)
        if not present and is_replaced(directory):
            return []
    for path in present:
        if path.name not in listed:
            raise damaged(path, "a foreign file: the manifest of the version does not list it")
    for name, size in listed.items():
        _check_size(directory / name, size)
    return present


def _listed(directory: Path, manifest: dict[str, Any]) -> dict[str, int]:
    """File name to bytes, as the manifest lists them; it must be the manifest of this directory."""
    place = "/".join(directory.parts[-3:])
    ref = "/".join(str(manifest.get(key)) for key in ("table", "dataset", "version"))
    try:
        listed = {str(part["name"]): int(part["bytes"]) for part in manifest["parts"]}
    except (KeyError, TypeError, ValueError) as error:
        raise damaged(directory / MANIFEST, "the manifest lists no parts") from error
    if ref != place:
        raise damaged(directory / MANIFEST, f"a foreign file (it is the manifest of {ref})")
    return listed


def _check_size(path: Path, size: int) -> None:
    try:
        actual = path.stat().st_size
    except FileNotFoundError:
        raise damaged(path, "the part is missing") from None
    if actual != size:
        raise damaged(path, f"the part has {actual} bytes, and {size} were written")


def verify(paths: Iterable[Path]) -> None:
    """Compare the bytes of parts with their manifests. CurateError about the first that changed.

    Each part is hashed once per process. Parts of open versions, and of manifests without
    checksums, have nothing to compare with.
    """
    with ThreadPoolExecutor(4) as threads:  # hashing releases the lock of the interpreter
        for _ in threads.map(_verify, paths):
            pass


def _verify(path: Path) -> None:
    if is_remote(path):
        return  # object storage keeps checksums itself, and this would fetch every byte
    if not _as_written(path, *stamp(path)):
        raise damaged(path, "the bytes of the part have changed")


@lru_cache(maxsize=65536)
def _as_written(path: Path, size: int, mtime_ns: int) -> bool:
    manifest = read_manifest(path.parent)
    sums = {part["name"]: part.get("checksum") for part in manifest.get("parts", [])}
    return sums.get(path.name) in (None, checksum(path))


def check_pages(path: Path) -> None:
    """Read a part and compare the checksum of each page. CurateError if one has changed.

    For parts whose manifest has no checksum, or that have no manifest yet.
    """
    try:
        with (
            on_disk(path) as here,
            pq.ParquetFile(here, page_checksum_verification=True) as file,
        ):
            for _ in file.iter_batches():
                pass
    except (pa.ArrowException, OSError, UnicodeDecodeError, MemoryError) as error:
        raise damaged(path, "the bytes of the part have changed") from error


def is_replaced(directory: Path) -> bool:
    """Whether a merged version next to this one holds its rows (see merge.py)."""
    ref = "/".join(directory.parts[-3:])
    for other in folders(directory.parent):
        if other == directory:
            continue
        manifest = read_manifest(other)
        if ref in (manifest.get("parents") or []) and "merged" in (manifest.get("config") or {}):
            return True
    return False


def find_damage(root: Path) -> CurateError | None:
    """The error about the first damaged part of a warehouse; None if all are as written.

    Reads every byte of sealed versions, so call it only after a failure.
    """
    try:
        for table in schemas.TABLES:
            for directory in version_directories(root, table):
                present = parts(directory)
                for path in present:
                    footer(path)
                verify(present)
    except CurateError as error:
        return error
    return None


def version_directories(root: Path, table: str) -> list[Path]:
    """The version directories of a table, the one without rows included."""
    return folders(root / table, "*/*")


def table_parts(root: Path, table: str) -> list[Path]:
    """All parts of a table, checked, with the part without rows."""
    return parts_of(version_directories(root, table))


def parts_of(directories: Sequence[Path]) -> list[Path]:
    """The parts of several versions. Manifests in a bucket are fetched at once."""
    if directories and is_remote(directories[0]):
        with ThreadPoolExecutor(REQUESTS) as threads:
            return [part for listed in threads.map(parts, directories) for part in listed]
    return [part for directory in directories for part in parts(directory)]


def rows_of(path: Path) -> int:
    """The number of rows of a part: from the manifest where reading the footer is a request."""
    if is_remote(path):
        for part in read_manifest(path.parent).get("parts", []):
            if part["name"] == path.name:
                return int(part["rows"])
    return footer(path).rows


def forget() -> None:
    """Read manifests and footers anew, after files were removed."""
    _manifest.cache_clear()
    _footer.cache_clear()


def manifests(root: Path) -> list[Path]:
    """The manifests of all sealed versions."""
    return [path for table in schemas.TABLES for path in files(root / table, f"*/*/{MANIFEST}")]


def empty_part(root: Path, table: str) -> Path:
    """The part without rows that every table has."""
    return root / table / EMPTY / "0" / "part-empty.parquet"


def checksum(path: Path) -> str:
    """Hash of a file's bytes: BLAKE2b, 16 bytes, in hex, after its name."""
    if is_remote(path):
        return f"blake2b:{hashlib.blake2b(read_bytes(path), digest_size=16).hexdigest()}"
    with open(path, "rb") as handle:
        digest = hashlib.file_digest(handle, lambda: hashlib.blake2b(digest_size=16))
    return f"blake2b:{digest.hexdigest()}"


def written_checksum(path: Path) -> str:
    """The checksum of a part that was just published; a bucket keeps what its writer computed."""
    if is_remote(path):
        store, key = located(path)
        if noted := store.attributes(key).get(CHECKSUM):
            return noted
    return checksum(path)
