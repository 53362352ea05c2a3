"""Versions of datasets: directories of immutable Parquet parts, and a manifest that seals them.

    <root>/<table>/<dataset>/<version>/part-<name>.parquet    whole at every instant
                                       manifest.json          written last: the version is complete
    <root>/_staging/                                          files being written, outside every glob
    <root>/_jobs/, _logs/                                     plans and private logs of running jobs (chunks.py)

A part is written in `_staging`, fsynced, and published with link(2), which never overwrites: a
reader sees whole parts only, and a second writer of the same part learns that it is there. So
writes are idempotent and need no lock.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from curate.atomic import disk_errors, is_abandoned
from curate.errors import CurateError, UsageError
from curate.warehouse import schemas
from curate.warehouse.files import EMPTY, STAGING, TRASH, check_name, now, publish_file
from curate.warehouse.identity import code_version, digest

if TYPE_CHECKING:
    import polars as pl

# 20,000 rows a row group: one huge group cannot be scanned in parallel.
ROW_GROUP = 20_000


@dataclass(frozen=True)
class Version:
    """One version of one dataset of a table: `traces/<dataset>/<version>`."""

    root: Path
    table: str
    dataset: str
    version: str
    facts: dict[str, Any] = field(default_factory=dict, compare=False)

    @property
    def ref(self) -> str:
        """How parents and lineage name it."""
        return f"{self.table}/{self.dataset}/{self.version}"

    @property
    def path(self) -> Path:
        return self.root / self.table / self.dataset / self.version

    @property
    def manifest(self) -> dict[str, Any]:
        """What seals the version; empty while it is open."""
        try:
            return json.loads((self.path / "manifest.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}

    @property
    def sealed(self) -> bool:
        return (self.path / "manifest.json").exists()

    def part(self, name: str) -> Path:
        return self.path / f"part-{name}.parquet"

    def has(self, name: str) -> bool:
        return self.part(name).exists()

    def parts(self) -> list[Path]:
        """The committed parts, by name."""
        return sorted(self.path.glob("part-*.parquet"))

    def read(self, columns: Sequence[str] | None = None) -> pl.LazyFrame:
        """All committed rows; an open version gives those so far."""
        import polars as pl

        parts = self.parts()
        if parts:
            frame = pl.scan_parquet(parts, missing_columns="insert", extra_columns="ignore")
        else:
            frame = pl.from_arrow(schemas.arrow_schema(self.table).empty_table()).lazy()  # type: ignore[union-attr]
        return frame.select(columns) if columns else frame

    def publish(self, name: str, rows: Any) -> bool:
        """Commit one part: all of it, once. False where a part of that name was there already.

        Raises CurateError on a full disk or rows that do not fit the schema; nothing is half
        written.
        """
        target = self.part(check_name("part", name))
        if target.exists():
            return False
        if self.sealed:
            raise CurateError(f"{self.ref} is sealed: a new part makes a new version")
        data = schemas.conform(self.table, rows)
        with disk_errors(self.root):
            self.path.mkdir(parents=True, exist_ok=True)
            return publish_file(
                self.root,
                target,
                lambda staged: _write_parquet(data, staged),
            )

    def seal(self) -> dict[str, Any]:
        """Write the manifest: the version is complete and never changes again. Sealing twice keeps
        the first."""
        import pyarrow.parquet as pq

        if self.sealed:
            return self.manifest
        with disk_errors(self.root):
            self.path.mkdir(parents=True, exist_ok=True)
            if not self.parts():
                self.publish("empty", [])
            parts = [
                {"name": p.name, "rows": pq.read_metadata(p).num_rows, "bytes": p.stat().st_size}
                for p in self.parts()
            ]
            manifest = {
                "table": self.table,
                "dataset": self.dataset,
                "version": self.version,
                "schema_version": schemas.schema_version(self.table),
                "rows": sum(p["rows"] for p in parts),
                "parts": parts,
                "parents": list(self.facts.get("parents", [])),
                "config": self.facts.get("config"),
                "model_hash": self.facts.get("model_hash"),
                "seed": self.facts.get("seed"),
                "code_version": code_version(),
                "sealed_at": now().isoformat(),
                "facts": {
                    k: v
                    for k, v in self.facts.items()
                    if k not in ("parents", "config", "model_hash", "seed")
                },
            }
            text = json.dumps(manifest, indent=1, default=str)
            publish_file(
                self.root,
                self.path / "manifest.json",
                lambda staged: staged.write_text(text, "utf-8"),
            )
        return self.manifest


def _write_parquet(data: Any, path: Path) -> None:
    """A part without rows gets no row group: `datasets` takes the size of the first one as its
    batch size."""
    import pyarrow.parquet as pq

    with pq.ParquetWriter(path, data.schema, compression="zstd") as writer:
        if data.num_rows:
            writer.write_table(data, row_group_size=ROW_GROUP)


class Warehouse:
    """A directory of tables. Reading needs nothing running; opening it for the first write lays it
    out."""

    def __init__(self, root: str | Path = "warehouse") -> None:
        self.root = Path(root).absolute()

    def __repr__(self) -> str:
        return f"Warehouse({str(self.root)!r})"

    def exists(self) -> bool:
        return (self.root / "traces" / EMPTY).is_dir()

    def create(self) -> Warehouse:
        """Lay out the tables, each with an empty part, so that no query over a table without rows
        fails."""
        if self.exists() and not self._missing_tables():
            return self
        with disk_errors(self.root):
            self.root.mkdir(parents=True, exist_ok=True)
            # traces last: its empty part says that the rest is there
            for table in sorted(self._missing_tables(), key=lambda t: t == "traces"):
                version = Version(self.root, table, EMPTY, "0")
                version.path.mkdir(parents=True, exist_ok=True)
                version.publish("empty", [])
                version.seal()
        return self

    def _missing_tables(self) -> list[str]:
        return [
            t
            for t in schemas.TABLES
            if not (self.root / t / EMPTY / "0" / "manifest.json").exists()
        ]

    def version(self, table: str, dataset: str, version: str, **facts: Any) -> Version:
        """A version to publish into. `facts` (parents, config, model_hash, seed, …) go into its
        manifest."""
        if table not in schemas.TABLES:
            raise UsageError(f"no table '{table}': choose one of {', '.join(schemas.TABLES)}")
        self.create()
        return Version(
            self.root, table, check_name("dataset", dataset), check_name("version", version), facts
        )

    def write(self, table: str, dataset: str, rows: Any, *, key: Any, **facts: Any) -> Version:
        """A sealed version in one go. Its name is the hash of `key`, which holds all that
        determines the rows."""
        version = self.version(table, dataset, digest(key)[:16], **facts)
        if not version.sealed:
            version.publish("0", rows)
            version.seal()
        return version

    def versions(
        self, table: str, dataset: str | None = None, *, sealed: bool | None = None
    ) -> list[Version]:
        """Versions that are there, oldest seal first and open ones last; the empty one of each
        table left out."""
        found = []
        for path in (self.root / table).glob(f"{dataset or '*'}/*"):
            if path.is_dir() and path.parent.name != EMPTY:
                version = Version(self.root, table, path.parent.name, path.name)
                if sealed is None or version.sealed == sealed:
                    found.append(version)
        return sorted(found, key=lambda v: (v.manifest.get("sealed_at", "9"), v.ref))

    def latest(self, table: str, dataset: str) -> Version:
        """The newest sealed version, or the one that `name@version` names. UsageError where there
        is none."""
        name, _, wanted = dataset.partition("@")
        for version in reversed(self.versions(table, name, sealed=True)):
            if not wanted or version.version.startswith(wanted):
                return version
        known = sorted({v.dataset for v in self.versions(table, sealed=True)})
        raise UsageError(
            f"no {table} called '{dataset}' in {self.root}"
            + (f": there are {', '.join(known[:12])}" if known else f": the table {table} is empty")
        )

    def sql(self, query: str, params: Sequence[Any] = ()) -> pl.DataFrame:
        """The answer to one read-only query over the views (see warehouse/sql.py)."""
        from curate.warehouse.sql import connect

        with connect(self) as connection:
            return connection.sql(query, params=list(params)).pl()

    def clean(self, older_than: float = 24 * 3600.0) -> int:
        """Remove what killed writers left: staged files and trash older than so many seconds.
        Returns how many.

        Every job does so when it begins. By age, since a process id says nothing on a directory
        that machines share.
        """
        limit = time.time() - older_than
        removed = 0
        for folder in (self.root / STAGING, self.root / TRASH):
            for path in folder.glob("*"):
                with contextlib.suppress(OSError):
                    if path.stat().st_mtime < limit:
                        shutil.rmtree(path) if path.is_dir() else path.unlink()
                        removed += 1
        for path in self.root.glob(".*.partial"):
            if is_abandoned(path, older_than):
                path.unlink(missing_ok=True)
                removed += 1
        return removed
