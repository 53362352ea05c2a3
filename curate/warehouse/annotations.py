"""Addresses of verdicts and signals, and the publication of parts about traces.

A part of traces never changes, so its measurements and verdicts are parts of the same name:

    traces/<dataset>/<version>/part-<name>.parquet
    signals/<group>@<version>/<dataset>.<version>/part-<name>.parquet
    verdicts/<verifier>@<version>/<dataset>.<version>/part-<name>.parquet

A part that exists is never written again; a new signal or a better verifier has its own directory
and adds only its own parts. Parts that are not about a single part of traces (a consensus over
many) have versions that match none. This module is the only one that spells these names.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import polars as pl

from curate.store.paths import folders
from curate.warehouse.identity import digest
from curate.warehouse.names import EMPTY

if TYPE_CHECKING:
    from curate.warehouse.store import Version, Warehouse

Table = Literal["verdicts", "signals"]
TABLES: tuple[Table, ...] = ("verdicts", "signals")
NO_VERSION = "0"  # of a verifier that does not exist (yet)

PartKey = tuple[str, str]  # version and file name of every part about one part of traces


def dataset_name(producer: str, version: str | int | None) -> str:
    """Directory of a verifier or a group of signals. A dotted path `package.module:Class` loses its
    colon."""
    return f"{producer.replace(':', '.').replace('/', '.')}@{version or NO_VERSION}"


def version_name(traces: Version) -> str:
    """Version that annotations of these traces have in every dataset."""
    return f"{traces.dataset}.{traces.version}"


def address(
    warehouse: Warehouse,
    table: Table,
    traces: Version,
    producer: str,
    version: str | int | None,
    parents: Iterable[str] = (),
) -> Version:
    """The version that holds the results of `producer`, in this version, about these traces."""
    return warehouse.version(
        table,
        dataset_name(producer, version),
        version_name(traces),
        parents=[traces.ref, *parents],
    )


def joint_address(
    warehouse: Warehouse,
    table: Table,
    traces: Sequence[Version],
    producer: str,
    version: str | int | None,
    key: object,
) -> Version:
    """The version that holds the results of `producer` about several versions of a dataset.

    Its name matches no single version of traces; `key` is everything that determines its rows.
    """
    return warehouse.version(
        table,
        dataset_name(producer, version),
        f"{traces[0].dataset}.{digest(key)[:16]}",
        parents=[one.ref for one in traces],
    )


def publish_verdicts(
    warehouse: Warehouse, traces: Version, part: str, verdicts: pl.DataFrame
) -> list[Version]:
    """Store the verdicts of one committed part of traces; parts that exist stay as they are.

    `verdicts` has the columns of the table `verdicts`; it may hold several verifiers, one version
    is returned for each.
    """
    versions = []
    for (verifier, version), rows in verdicts.group_by(
        ["verifier", "verifier_version"], maintain_order=True
    ):
        target = address(warehouse, "verdicts", traces, str(verifier), str(version or NO_VERSION))
        target.publish(part, rows)
        versions.append(target)
    return versions


def part_key(traces_part: Path) -> PartKey:
    """Version and file name of every part about this part of traces."""
    return f"{traces_part.parts[-3]}.{traces_part.parts[-2]}", traces_part.name


def parts_about(
    traces_parts: Iterable[Path], annotations: Iterable[Path]
) -> dict[PartKey | None, list[Path]]:
    """Group parts of verdicts or signals by the part of traces that they are about; None: about
    several."""
    keys = {part_key(part) for part in traces_parts}
    result: dict[PartKey | None, list[Path]] = defaultdict(list)
    for path in annotations:
        key = (path.parts[-2], path.name)
        result[key if key in keys else None].append(path)
    return result


def datasets_about(
    warehouse: Warehouse, traces: str, versions: Iterable[str]
) -> Iterator[tuple[list[Version], dict[str, str]]]:
    """For each dataset of annotations: its versions about these versions of a traces dataset.

    The second item maps the version of an annotation to the version of the traces.
    """
    names = {f"{traces}.{version}": version for version in versions}
    for table in TABLES:
        for path in folders(warehouse.root / table, "*@*"):
            yield (
                [v for v in warehouse.versions(table, path.name) if v.version in names],
                names,
            )


def signals_folder(root: Path, group: str) -> str:
    """Directory of the newest version of a group of signals, inside `signals/`; older versions do
    not count."""
    numbers = [p.name.rpartition("@")[2] for p in folders(root / "signals", f"{group}@*")]
    newest = max((int(number) for number in numbers if number.isdigit()), default=None)
    return EMPTY if newest is None else dataset_name(group, newest)
