"""Merging small parts: the sealed versions of a dataset become one version of large parts, never a
mixture.

The merged version is built aside, in a copy of the dataset's directory in which the old versions
keep their manifests (lineage still ends in them) and lose their parts. Then the two directories
change places in one system call: no reader ever sees a row twice. A reader that lists the dataset
in that very moment, or opens files it listed before, may miss some and must list again. What was
measured of traces moves along, part by part: nothing is annotated again.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from curate.atomic import disk_errors, exchange, fsync_dir, unique_name
from curate.errors import CurateError
from curate.warehouse.annotations import datasets_about
from curate.warehouse.files import STAGING, TRASH
from curate.warehouse.identity import digest
from curate.warehouse.store import Version, Warehouse

# Rows of a merged part: large enough to scan well, small enough to hold in memory with their text.
PART_ROWS = 50_000

Groups = list[list[tuple[str, str]]]  # for each merged part: (old version, part name) in order


def merge(
    warehouse: Warehouse, table: str, dataset: str, part_rows: int = PART_ROWS
) -> Version | None:
    """One version in the place of all sealed ones; None where there is nothing to gain or a job
    still writes.

    Rows, their order by version and part, and lineage stay.
    """
    versions = [v for v in warehouse.versions(table, dataset) if v.parts()]
    parts = [(v.version, p.stem.removeprefix("part-")) for v in versions for p in v.parts()]
    if len(parts) < 2 or not all(v.sealed for v in versions):
        return None
    groups = _grouped(versions, part_rows)
    if len(groups) >= len(parts):
        return None
    name = "merged-" + digest([v.ref for v in versions])[:16]
    merged = _swap(
        warehouse, table, dataset, {v.version: v.version for v in versions}, groups, name
    )
    if table == "traces":
        for annotations, places in datasets_about(
            warehouse, dataset, [v.version for v in versions]
        ):
            found = [v for v in annotations if v.parts()]
            if found and all(v.sealed for v in found):
                first = found[0]
                _swap(warehouse, first.table, first.dataset, places, groups, f"{dataset}.{name}")
    return merged


def _grouped(versions: Sequence[Version], part_rows: int) -> Groups:
    """Neighbouring parts together, up to `part_rows` rows."""
    import pyarrow.parquet as pq

    groups: Groups = []
    rows = part_rows
    for version in versions:
        for path in version.parts():
            count = pq.read_metadata(path).num_rows
            if rows + count > part_rows or not groups:
                groups.append([])
                rows = 0
            groups[-1].append((version.version, path.stem.removeprefix("part-")))
            rows += count
    return groups


def _swap(
    warehouse: Warehouse,
    table: str,
    dataset: str,
    places: dict[str, str],
    groups: Groups,
    name: str,
) -> Version:
    """Build the dataset's directory anew with a merged version called `name`, and put it in the old
    one's place.

    `places` maps versions of this dataset to the versions that `groups` speaks of.
    """
    import polars as pl

    root = warehouse.root
    live = root / table / dataset
    aside = root / STAGING / f"merge-{unique_name()}" / table / dataset
    directory = {wanted: live / version for version, wanted in places.items()}
    replaced = [v for v in warehouse.versions(table, dataset) if v.version in places]
    # built as a version of a warehouse of its own, so that every part is written and sealed by the
    # one way there is
    facts = {"parents": [v.ref for v in replaced], "config": {"merged": len(replaced)}}
    built = Version(aside.parent.parent, table, dataset, name, facts)
    with disk_errors(root):
        for number, group in enumerate(groups):
            paths = [
                directory[version] / f"part-{part}.parquet"
                for version, part in group
                if version in directory
            ]
            paths = [path for path in paths if path.exists()]
            if paths:
                built.publish(f"{number:05d}", pl.read_parquet(paths))
        built.seal()
        for old in live.iterdir():
            (aside / old.name).mkdir(exist_ok=True)
            for path in old.iterdir():
                if old.name not in places or path.name == "manifest.json":
                    os.link(path, aside / old.name / path.name)
            fsync_dir(aside / old.name)
        fsync_dir(aside)
        _exchange(aside, live)
        fsync_dir(live.parent)
        _rescue(aside, live, set(places))
        trash = root / TRASH / f"{table}-{dataset}-{unique_name()}"
        trash.parent.mkdir(exist_ok=True)
        os.rename(aside, trash)
    return Version(root, table, dataset, name)


def _rescue(old: Path, live: Path, replaced: set[str]) -> None:
    """Parts that another job published into the old directory while it was being copied."""
    for version in old.iterdir():
        for path in version.iterdir() if version.name not in replaced else []:
            target = live / version.name / path.name
            if not target.exists():
                target.parent.mkdir(exist_ok=True)
                os.link(path, target)


def _exchange(one: Path, other: Path) -> None:
    """Swap two directories at once; CurateError where that is impossible, and then nothing has
    changed."""
    if not exchange(one, other):
        raise CurateError("merging parts needs Linux with glibc 2.28 or newer; nothing was changed")
