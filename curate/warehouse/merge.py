"""Merging small parts: the sealed versions of a dataset become one version of large parts.

The merged version is built aside, in a copy of the dataset's directory in which the old versions
keep their manifests (lineage still ends in them) and lose their parts. Then the two directories are
swapped in one system call: no reader ever sees a row twice. A reader that lists the dataset at that
very moment, or opens files it listed before, may miss some and must list again. Annotations of
traces are merged part by part in the same way: nothing is annotated again.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from curate.atomic import disk_errors, exchange, fsync_dir, unique_name
from curate.errors import CurateError, UsageError
from curate.store import is_remote, url_of
from curate.warehouse.annotations import datasets_about
from curate.warehouse.identity import digest
from curate.warehouse.names import STAGING, TRASH, part_name
from curate.warehouse.parts import MANIFEST, footer, verify
from curate.warehouse.store import Version, Warehouse

# Rows of a merged part: large enough to scan well, small enough to hold in memory with their text.
PART_ROWS = 50_000

Groups = list[list[tuple[str, str]]]  # for each merged part: (old version, part name) in order


def merge(
    warehouse: Warehouse, table: str, dataset: str, part_rows: int = PART_ROWS
) -> Version | None:
    """Replace all sealed versions of a dataset by one with large parts, and return it.

    Returns None if nothing can be merged, or a job is still writing (an open version of the dataset
    or of annotations about it). Rows, their order by version and part, and lineage do not change.
    """
    if is_remote(warehouse.root):
        raise UsageError(
            f"{url_of(warehouse.root)}: merging exchanges directories, which object storage has "
            "not: take larger parts with chunk=1000 instead"
        )
    versions = [v for v in warehouse.versions(table, dataset) if v.parts()]
    parts = [path for version in versions for path in version.parts()]
    if len(parts) < 2 or not all(v.sealed for v in versions):
        return None
    groups = _grouped(versions, part_rows)
    if len(groups) >= len(parts):
        return None
    name = "merged-" + digest([v.ref for v in versions])[:16]
    names = [v.version for v in versions]
    about = list(datasets_about(warehouse, dataset, names)) if table == "traces" else []
    if not all(version.sealed for about_traces, _ in about for version in about_traces):
        return None
    verify(parts)  # before anything is swapped
    # Annotations first: a run that is killed in between merges the rest when it is repeated. In the
    # other order the traces would be merged and their annotations never.
    for about_traces, places in about:
        if any(version.parts() for version in about_traces):
            first = about_traces[0]
            _swap(warehouse, first.table, first.dataset, places, groups, f"{dataset}.{name}")
    return _swap(warehouse, table, dataset, {n: n for n in names}, groups, name)


def _grouped(versions: Sequence[Version], part_rows: int) -> Groups:
    """Group neighbouring parts up to `part_rows` rows."""
    groups: Groups = []
    rows = part_rows
    for version in versions:
        for path in version.parts():
            count = footer(path).rows
            if rows + count > part_rows or not groups:
                groups.append([])
                rows = 0
            groups[-1].append((version.version, part_name(path)))
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
    """Rebuild the directory of a dataset with a merged version, and swap it with the old one.

    `places` maps versions of this dataset to the versions that `groups` names.
    """
    root = warehouse.root
    live = root / table / dataset
    aside = root / STAGING / f"merge-{unique_name()}" / table / dataset
    directory = {version: live / place for place, version in places.items()}
    replaced = [v for v in warehouse.versions(table, dataset) if v.version in places]
    # Built as a version of another warehouse, so that parts are written and sealed as everywhere.
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
                verify(paths)  # a new checksum of the merged part would hide damage
                built.publish(f"{number:05d}", pl.read_parquet(paths, glob=False))
        built.seal()
        for old in live.iterdir():
            (aside / old.name).mkdir(exist_ok=True)
            for path in old.iterdir():
                if old.name not in places or path.name == MANIFEST:
                    os.link(path, aside / old.name / path.name)
            fsync_dir(aside / old.name)
        fsync_dir(aside)
        if not exchange(aside, live):
            raise CurateError(
                "merging parts needs Linux with glibc 2.28 or newer; nothing was changed"
            )
        fsync_dir(live.parent)
        _rescue(aside, live, set(places))
        trash = root / TRASH / f"{table}-{dataset}-{unique_name()}"
        trash.parent.mkdir(exist_ok=True)
        os.rename(aside, trash)
    return Version(root, table, dataset, name)


def _rescue(old: Path, live: Path, replaced: set[str]) -> None:
    """Link parts that another job published into the old directory while it was being copied."""
    for version in old.iterdir():
        for path in version.iterdir() if version.name not in replaced else []:
            target = live / version.name / path.name
            if not target.exists():
                target.parent.mkdir(exist_ok=True)
                os.link(path, target)
