"""Versions of datasets: directories of immutable Parquet parts, and a manifest that seals them.

    <root>/<table>/<dataset>/<version>/part-<name>.parquet    whole at every instant
                                       manifest.json          written last: it seals the version
    <root>/_staging/               files being written, outside every glob
    <root>/_jobs/, _logs/          plans and private logs of running jobs (chunks.py)

A part is written aside and published by put-if-absent (curate/store: link(2) on a disk, a
conditional PUT in a bucket), which never overwrites: a reader sees whole parts only, and a second
writer of the same part learns that it exists. So writes are idempotent and need no lock.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from curate.atomic import disk_errors, is_abandoned, is_inside
from curate.errors import CurateError, UsageError, did_you_mean
from curate.store import is_remote, parse_root, url_of
from curate.store.paths import folders, is_file, make_folder, scan, stamp
from curate.version import code_version
from curate.warehouse import parts as part_files
from curate.warehouse import schemas
from curate.warehouse.identity import digest
from curate.warehouse.names import (
    EMPTY,
    STAGING,
    TRASH,
    check_name,
    is_warehouse,
    now,
    publish_file,
)
from curate.warehouse.parts import MANIFEST, PLACE_KEY
from curate.warehouse.sql import query

# Rows per row group: a single huge group cannot be scanned in parallel.
ROW_GROUP = 20_000


@dataclass(frozen=True)
class Version:
    """One version of one dataset of a table: `traces/<dataset>/<version>`.

    `facts` (parents, config, model_hash, seed, …) go into the manifest.
    """

    root: Path
    table: str
    dataset: str
    version: str
    facts: dict[str, Any] = field(default_factory=dict, compare=False)

    @property
    def ref(self) -> str:
        """Name of the version in parents and lineage."""
        return f"{self.table}/{self.dataset}/{self.version}"

    @property
    def path(self) -> Path:
        return self.root / self.table / self.dataset / self.version

    @property
    def manifest(self) -> dict[str, Any]:
        """The manifest that seals the version; empty while it is open."""
        return part_files.read_manifest(self.path)

    @property
    def sealed(self) -> bool:
        return is_file(self.path / MANIFEST)

    def part(self, name: str) -> Path:
        return self.path / f"part-{name}.parquet"

    def has(self, name: str) -> bool:
        return is_file(self.part(name))

    def parts(self) -> list[Path]:
        """The committed parts, by name. CurateError if one is missing, damaged or foreign."""
        return part_files.parts(self.path)

    def read(self, columns: Sequence[str] | None = None) -> pl.LazyFrame:
        """All committed rows; of an open version, the rows so far.

        CurateError if a part is not as it was written, down to its bytes.
        """
        parts = self.parts()
        part_files.verify(parts)
        if parts:
            frame = scan(parts, missing_columns="insert", extra_columns="ignore")
        else:
            empty = pl.from_arrow(schemas.arrow_schema(self.table).empty_table())
            frame = pl.DataFrame(empty).lazy()
        return frame.select(columns) if columns else frame

    def publish(self, name: str, rows: Any) -> bool:
        """Commit one part, completely and once. Returns False if a part of that name exists
        already.

        Raises CurateError on a full disk or rows that do not fit the schema; no part is ever half
        written.
        """
        target = self.part(check_name("part", name))
        if is_file(target):
            return False
        if self.sealed:
            raise CurateError(f"{self.ref} is sealed: a new part needs a new version")
        data = schemas.conform(self.table, rows)
        place = f"{self.ref}/{target.name}"
        with disk_errors(self.root):
            make_folder(self.path)
            return publish_file(
                self.root, target, lambda staged: _write_parquet(data, place, staged)
            )

    def seal(self) -> dict[str, Any]:
        """Write the manifest: the version is complete and never changes again.

        Sealing a second time keeps the first manifest. Returns it.
        """
        if self.sealed:
            return self.manifest
        with disk_errors(self.root):
            make_folder(self.path)
            if not self.parts():
                self.publish("empty", [])
            with ThreadPoolExecutor(4) as threads:  # hashing releases the lock of the interpreter
                parts = list(threads.map(_part_facts, self.parts()))
            facts = dict(self.facts)
            manifest = {
                "table": self.table,
                "dataset": self.dataset,
                "version": self.version,
                "schema_version": schemas.schema_version(self.table),
                "rows": sum(p["rows"] for p in parts),
                "parts": parts,
                "parents": list(facts.pop("parents", [])),
                "config": facts.pop("config", None),
                "model_hash": facts.pop("model_hash", None),
                "seed": facts.pop("seed", None),
                "code_version": code_version(),
                "sealed_at": self._next_seal().isoformat(),
                "facts": facts,
            }
            text = json.dumps(manifest, indent=1, default=str)
            publish_file(
                self.root, self.path / MANIFEST, lambda staged: staged.write_text(text, "utf-8")
            )
        return self.manifest

    def _next_seal(self) -> dt.datetime:
        """The time of sealing: now, but later than the seal of every other version of the dataset.

        The newest version counts, and the clock may have jumped back since the last one.
        """
        times = [
            dt.datetime.fromisoformat(str(manifest["sealed_at"]))
            for path in folders(self.path.parent)
            if (manifest := part_files.read_manifest(path)).get("sealed_at")
        ]
        return max([now(), *(time + dt.timedelta(microseconds=1) for time in times)])


def _part_facts(path: Path) -> dict[str, Any]:
    return {
        "name": path.name,
        "rows": part_files.footer(path).rows,
        "bytes": stamp(path).size,
        "checksum": part_files.written_checksum(path),
    }


def _write_parquet(data: pa.Table, place: str, path: Path) -> None:
    """Write a part that names its own place, with a checksum per page.

    A part without rows gets no row group: `datasets` takes the size of the first group as its batch
    size.
    """
    schema = data.schema.with_metadata({PLACE_KEY: place.encode("utf-8")})
    with pq.ParquetWriter(path, schema, compression="zstd", write_page_checksum=True) as writer:
        if data.num_rows:
            writer.write_table(data.cast(schema), row_group_size=ROW_GROUP)


class Warehouse:
    """A directory of tables, or a bucket (`s3://bucket/path`). Reading needs no server; the first
    write lays the tables out.
    """

    def __init__(self, root: str | Path = "warehouse") -> None:
        self.root = parse_root(root)
        self._laid_out = False  # stays true: parts without rows are never removed

    def __repr__(self) -> str:
        return f"Warehouse({url_of(self.root)!r})"

    def exists(self) -> bool:
        return is_warehouse(self.root)

    def create(self) -> Warehouse:
        """Lay out the tables, each with a part without rows, so that no query finds no files."""
        if self._laid_out or (self.exists() and not self._missing_tables()):
            self._laid_out = is_remote(self.root)
            return self
        with disk_errors(self.root):
            make_folder(self.root)
            # traces last: `exists` looks for its empty part
            for table in sorted(self._missing_tables(), key=lambda t: t == "traces"):
                version = Version(self.root, table, EMPTY, "0")
                version.publish("empty", [])
                version.seal()
        return self

    def _missing_tables(self) -> list[str]:
        places = {table: self.root / table / EMPTY / "0" / MANIFEST for table in schemas.TABLES}
        return [table for table, path in places.items() if not is_file(path)]

    def version(self, table: str, dataset: str, version: str, **facts: Any) -> Version:
        """A version to publish into. Creates the warehouse if necessary."""
        if table not in schemas.TABLES:
            raise UsageError(f"no table '{table}': choose one of {', '.join(schemas.TABLES)}")
        self.create()
        names = check_name("dataset", dataset), check_name("version", version)
        return Version(self.root, table, *names, facts)

    def write(self, table: str, dataset: str, rows: Any, *, key: Any, **facts: Any) -> Version:
        """Write and seal a version in one go.

        Its name is the hash of `key`, which holds everything that determines the rows.
        """
        version = self.version(table, dataset, digest(key)[:16], **facts)
        if not version.sealed:
            version.publish("0", rows)
            version.seal()
        return version

    def versions(
        self, table: str, dataset: str | None = None, *, sealed: bool | None = None
    ) -> list[Version]:
        """Versions of a table or dataset: by time of sealing, open ones last.

        The empty version of each table is left out.
        """
        versions = []
        for path in part_files.version_directories(self.root, table):
            if path.parent.name != EMPTY and dataset in (None, path.parent.name):
                version = Version(self.root, table, path.parent.name, path.name)
                if sealed is None or version.sealed == sealed:
                    versions.append(version)
        return sorted(versions, key=lambda v: (v.manifest.get("sealed_at", "9"), v.ref))

    def latest(self, table: str, dataset: str) -> Version:
        """The newest sealed version, or the one that `name@version` names. UsageError if absent."""
        name, _, prefix = dataset.partition("@")
        for version in reversed(self.versions(table, name, sealed=True)):
            if not prefix or version.version.startswith(prefix):
                return version
        names = sorted({v.dataset for v in self.versions(table, sealed=True)})
        raise UsageError(
            f"no {table} called '{dataset}' in {url_of(self.root)}"
            + (f": there are {', '.join(names[:12])}" if names else f": the table {table} is empty")
            + did_you_mean(name, names)
        )

    def sql(self, text: str, params: Sequence[Any] = ()) -> pl.DataFrame:
        """The result of one read-only query over the views, which reads nothing else."""
        return query(self.root, text, params)

    def clean(self, older_than: float = 24 * 3600.0) -> int:
        """Remove the remains of killed writers: staged files and trash. Returns the number of
        files.

        Every job does so when it starts. Files whose writer is alive stay, whatever the clock says;
        files of other machines go when they are older than `older_than` seconds. Only names that a
        writer gives count, and symbolic links are not followed: a warehouse may come from anybody.
        """
        removed = 0
        if is_remote(self.root):
            return removed
        for pattern in (f"{STAGING}/*", f"{TRASH}/*", ".*.partial"):
            for path in self.root.glob(pattern):
                with contextlib.suppress(OSError):
                    if is_inside(path.parent, self.root) and is_abandoned(path, older_than):
                        whole = path.is_dir() and not path.is_symlink()
                        shutil.rmtree(path) if whole else path.unlink()
                        removed += 1
        return removed
