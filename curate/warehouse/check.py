"""`curate check`: compare every file of a warehouse with its record, and repair what can be
repaired.

It checks parts (present, whole, in their place, unchanged by checksum), manifests, plans, logs of
running jobs, lineage, and that no row occurs twice. Repair never deletes: damaged and foreign files
move to `_quarantine/`, under the same relative path. A version that lost a part is reopened, so
that the command that wrote it can write the part again; annotations about lost traces are moved as
well, because a trace that is sampled again may have another text.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from curate.atomic import disk_errors, is_inside
from curate.errors import CurateError, UsageError
from curate.progress import counted
from curate.store import is_remote, url_of
from curate.store.paths import (
    exists,
    files,
    files_below,
    folders,
    is_file,
    listed_once,
    on_disk,
    opened,
    read_bytes,
    read_text,
    remove,
    stamp,
    write,
)
from curate.warehouse import schemas
from curate.warehouse.annotations import TABLES as ANNOTATIONS
from curate.warehouse.annotations import part_key
from curate.warehouse.chunks import PLAN_COLUMNS, PLANS, plan_hash
from curate.warehouse.logs import every_log, is_whole
from curate.warehouse.names import EMPTY, JOBS, is_warehouse
from curate.warehouse.parts import (
    MANIFEST,
    PARTS,
    check_pages,
    checksum,
    footer,
    foreign,
    forget,
    is_replaced,
    manifests,
    read_manifest,
    version_directories,
)
from curate.warehouse.sql import connect

QUARANTINE = "_quarantine"
_PLANNED = re.compile(r"(\d{6})-([0-9a-f]{12})")  # a version that holds the chunks of a plan


@dataclass(frozen=True)
class Damage:
    """One fault. `moves` go to quarantine on repair; a fault without moves cannot be
    repaired.

    `lost`: a part of traces whose rows are gone, so that its annotations must go too.
    """

    path: Path
    what: str
    moves: tuple[Path, ...] = ()
    lost: Path | None = None
    rewrite: bool = False  # a log, whose whole lines stay
    advice: str = ""

    @property
    def mendable(self) -> bool:
        return bool(self.moves) or self.rewrite


@dataclass
class Report:
    """Damages, and the amount of data that was checked."""

    damages: list[Damage] = field(default_factory=list)
    versions: int = 0
    parts: int = 0
    unsummed: int = 0  # parts of manifests that hold no checksums yet


def check(root: Path) -> Report:
    """Verify a warehouse by reading every byte of it. UsageError if it does not exist."""
    if not is_warehouse(root):
        raise UsageError(f"no warehouse at {url_of(root)}: name one with --warehouse")
    report = Report()
    with listed_once(root):
        for table in schemas.TABLES:
            report.damages += _strays(root, table)
            for directory in version_directories(root, table):
                report.damages += _version(directory, report)
        report.damages += _plans(root)
        report.damages += _logs(root)
        report.damages += _lineage(root)
        report.damages += _records(root)
    if not report.damages:  # rows can be counted only if all parts can be read
        report.damages += _duplicates(root)
    return report


def describe(report: Report, root: Path) -> str:
    """One line per problem, and a summary."""
    lines = [f"{_relative(d.path, root)}: {d.what}{_advice(d)}" for d in report.damages]
    summary = f"{counted(report.versions, 'version')}, {counted(report.parts, 'part')}"
    if report.unsummed:
        summary += f" ({report.unsummed} written without a checksum)"
    listed = counted(len(report.damages), "problem") if report.damages else "no problems"
    lines.append(f"{summary}: {listed}")
    return "\n".join(lines)


def _advice(damage: Damage) -> str:
    if damage.advice:
        return f"; {damage.advice}"
    return "" if damage.mendable else "; restore it from a copy"


# -- versions ------------------------------------------------------------------------------------


def _strays(root: Path, table: str) -> Iterator[Damage]:
    """Files where only directories belong."""
    for path in sorted([*files(root / table, "*"), *files(root / table, "*/*")]):
        if is_file(path) or path.is_symlink():
            yield Damage(path, "a foreign file", (path,))


def _version(directory: Path, report: Report) -> Iterator[Damage]:
    report.versions += 1
    manifest_path = directory / MANIFEST
    try:
        manifest = read_manifest(directory)
    except CurateError as error:
        yield Damage(manifest_path, _reason(error), (manifest_path,))
        manifest = {}
    present = files(directory)
    for path in present:
        if path.name != MANIFEST and not re.fullmatch(r"part-.+\.parquet", path.name):
            yield Damage(path, "a foreign file", (path,))
    paths = [path for path in present if re.fullmatch(r"part-.+\.parquet", path.name)]
    report.parts += len(paths)
    if not manifest:
        yield from _open_version(paths)
        return
    ref, place = "/".join(_names(manifest)), "/".join(directory.parts[-3:])
    if ref != place:
        yield Damage(directory, f"a foreign directory: its manifest is that of {ref}", (directory,))
        return
    newest = schemas.schema_version(directory.parts[-3])
    if int(manifest.get("schema_version") or 0) > newest:
        advice = "update curate"
        yield Damage(manifest_path, "written by a newer version of curate", advice=advice)
        return
    if not paths and is_replaced(directory):
        return
    yield from _sealed_version(directory, manifest, paths, report)


def _names(manifest: dict[str, Any]) -> list[str]:
    return [str(manifest.get(key)) for key in ("table", "dataset", "version")]


def _open_version(paths: Iterable[Path]) -> Iterator[Damage]:
    for path in paths:
        try:
            reason = foreign(path)
            check_pages(path)
        except CurateError as error:
            yield Damage(path, _reason(error), (path,), lost=path)
            continue
        if reason is not None:
            yield Damage(path, f"a foreign file: {reason}", (path,))


def _sealed_version(
    directory: Path, manifest: dict[str, Any], paths: list[Path], report: Report
) -> Iterator[Damage]:
    listed = {str(part["name"]): part for part in manifest.get("parts", [])}
    for path in paths:
        if path.name not in listed:
            yield Damage(path, "a foreign file: the manifest does not list it", (path,))
    for name, part in listed.items():
        path = directory / name
        reason = _changed(path, part)
        report.unsummed += "checksum" not in part
        if reason is not None:
            yield Damage(path, reason, *_reopened(directory, manifest, path))


def _changed(path: Path, part: dict[str, Any]) -> str | None:
    """Reason why a part differs from its manifest entry; None if it does not."""
    if not is_file(path) or path.is_symlink():
        return "the part is missing"
    size = stamp(path).size
    if size != part["bytes"]:
        return f"the part has {size} bytes, and {part['bytes']} were written"
    if part.get("checksum") not in (None, checksum(path)):
        return "the bytes of the part have changed"
    try:
        rows = footer(path).rows
        if "checksum" not in part:
            check_pages(path)
    except CurateError as error:
        return _reason(error)
    return None if rows == part["rows"] else f"the part has {rows} rows, not {part['rows']}"


def _reopened(
    directory: Path, manifest: dict[str, Any], part: Path
) -> tuple[tuple[Path, ...], Path | None]:
    """Files to move so that a version can be written again; none if that is unsafe."""
    lost = part if directory.parts[-3] == "traces" else None
    moves = [part] if exists(part) or part.is_symlink() else []
    if "merged" not in (manifest.get("config") or {}):
        return (*moves, directory / MANIFEST), lost
    if len(manifest["parts"]) > 1:
        # Chunks were merged across plans: opening them again would write the other parts twice.
        return (), None
    return _with_replaced(directory, manifest), lost


def _with_replaced(directory: Path, manifest: dict[str, Any]) -> tuple[Path, ...]:
    """A merged version, and the manifests of the versions that it replaced."""
    root = directory.parents[2]
    replaced = [root / ref / MANIFEST for ref in manifest.get("parents", [])]
    return (directory, *(path for path in replaced if exists(path)))


def _reason(error: CurateError) -> str:
    """The middle of a message `<path>: <reason>. See …`."""
    return str(error).split(": ", 1)[-1].split(". See all damage", 1)[0]


# -- plans, logs, lineage, rows ------------------------------------------------------------------


def _plans(root: Path) -> Iterator[Damage]:
    """Check that plans are numbered without gaps, readable, and match their versions."""
    for family in folders(root / JOBS):
        chunks: dict[int, set[str]] = {}
        for number, path in enumerate(files(family, PLANS), 1):
            if path.name != f"plan-{number:06d}.parquet":
                yield Damage(path, f"plan {number} of the family is missing")
                break
            try:
                with on_disk(path) as file:
                    frame = pl.read_parquet(file, glob=False)
                absent = set(PLAN_COLUMNS) - {"adaptive", "unit"} - set(frame.columns)
            except (pl.exceptions.PolarsError, OSError) as error:
                yield Damage(path, f"the plan cannot be read ({str(error).splitlines()[0]})")
                continue
            if absent:
                yield Damage(path, f"the plan has no column {', '.join(sorted(absent))}")
                continue
            chunks[number] = set(frame["chunk_id"])
        for directory in folders(root / "traces" / family.name):
            match = _PLANNED.fullmatch(directory.name)
            if match is not None:
                yield from _planned_version(family, directory, int(match.group(1)), chunks)


def _planned_version(
    family: Path, directory: Path, number: int, chunks: dict[int, set[str]]
) -> Iterator[Damage]:
    path = family / f"plan-{number:06d}.parquet"
    if not exists(path):
        yield Damage(directory, f"its plan {path.name} is missing")
    elif number in chunks:
        if plan_hash(path) != directory.name.partition("-")[2]:
            yield Damage(path, f"the plan is not the one that {directory.name} was written for")
            return
        for part in files(directory, PARTS):
            name = part.stem.removeprefix("part-")
            if name != "empty" and name not in chunks[number]:
                yield Damage(part, "a foreign file: the plan has no such chunk", (part,))


def _logs(root: Path) -> Iterator[Damage]:
    """Check that lines of logs are whole. A torn last line is the trace of a killed process."""
    for path in every_log(root):
        with opened(path) as handle:
            whole = [is_whole(line) for line in handle]
        bad = [number for number, good in enumerate(whole[:-1], 1) if not good]
        if bad:
            what = f"{len(bad)} of {len(whole)} lines are damaged, the first one is line {bad[0]}"
            yield Damage(path, what, rewrite=True)


def _lineage(root: Path) -> Iterator[Damage]:
    """Check that every parent of a version still has its manifest or is being written."""
    present = {d for table in schemas.TABLES for d in version_directories(root, table)}
    for path in manifests(root):
        try:
            manifest = json.loads(read_text(path))
        except (ValueError, RecursionError):
            continue  # reported with its version
        for parent in manifest.get("parents") or [] if isinstance(manifest, dict) else []:
            names = str(parent).split("/")
            if len(names) == 3 and names[0] in schemas.TABLES and root / parent not in present:
                yield Damage(path, f"made from {parent}, which is not in the warehouse")


def _records(root: Path) -> Iterator[Damage]:
    """Check that records of finished stages are JSON. Without its record a stage runs again."""
    for path in _records_of(root):
        try:
            json.loads(read_text(path))
        except (ValueError, RecursionError) as error:
            yield Damage(path, f"the record of a stage cannot be read ({error})", (path,))


def _duplicates(root: Path) -> Iterator[Damage]:
    """Check that no trace occurs twice, and no version of a verifier judges it twice."""
    keys = {
        "traces": "trace_id, attempt",
        "verdicts": "trace_id, attempt, verifier, verifier_version",
    }
    with connect(root, views=False) as connection:
        for table, key in keys.items():
            rows = connection.execute(
                f"SELECT count(*), any_value(trace_id) FROM "
                f"(SELECT {key} FROM {table} GROUP BY ALL HAVING count(*) > 1)"
            ).fetchone()
            if rows and rows[0]:
                yield Damage(
                    root / table, f"{rows[0]} rows occur more than once, such as of trace {rows[1]}"
                )


# -- repair --------------------------------------------------------------------------------------


def repair(root: Path, damages: Iterable[Damage]) -> list[Path]:
    """Move damaged and foreign files to quarantine; reopen versions that lost a part.

    Returns the paths that were moved or rewritten. Damage without a remedy is left alone.
    """
    moved = []
    for damage in damages:
        if damage.rewrite:
            _rewrite_log(root, damage.path)
            moved.append(damage.path)
        moves = list(damage.moves)
        if damage.lost is not None:
            moves += _annotations_of(root, damage.lost)
        # A manifest of somebody else may name any place as a parent.
        moves = [p for p in moves if ".." not in p.parts and is_inside(p.parent, root)]
        moves += _stage_records(root, moves)
        for path in moves:
            if exists(path) or path.is_symlink():
                _quarantine(root, path)
                moved.append(path)
    forget()
    return moved


def _annotations_of(root: Path, part: Path) -> Iterator[Path]:
    """Parts of annotations about a lost part of traces, and the manifests that seal them."""
    version, name = part_key(part)
    for table in ANNOTATIONS:
        for directory in folders(root / table, f"*/{version}"):
            if directory.parent.name == EMPTY or not exists(directory / name):
                continue
            manifest = read_manifest(directory)
            if "merged" in (manifest.get("config") or {}):
                yield from _with_replaced(directory, manifest)
            else:
                yield from (directory / name, directory / MANIFEST)


def _stage_records(root: Path, moves: Iterable[Path]) -> list[Path]:
    """Records of pipeline stages whose result is opened again: they would count it as done."""
    refs = {
        "/".join(path.parent.relative_to(root).parts) for path in moves if path.name == MANIFEST
    }
    texts = {path: read_bytes(path).decode("utf-8", "replace") for path in _records_of(root)}
    return [path for path, text in texts.items() if any(ref in text for ref in refs)]


def _records_of(root: Path) -> list[Path]:
    return files(root / "_runs", "*/*.json")


def _quarantine(root: Path, path: Path) -> None:
    target = root / QUARANTINE / path.relative_to(root)
    if is_remote(root):
        for file in [path] if is_file(path) else files_below(path):
            write(root / QUARANTINE / file.relative_to(root), read_bytes(file))
            remove([file])
        return
    with disk_errors(root):
        target.parent.mkdir(parents=True, exist_ok=True)
        number = 1
        while target.exists() or target.is_symlink():
            target = target.with_name(f"{path.name}.{number}")
            number += 1
        os.rename(path, target)


def _rewrite_log(root: Path, path: Path) -> None:
    """Keep the whole lines of a log; the damaged file goes to quarantine."""
    damaged = read_bytes(path)
    content = b"".join(line for line in damaged.splitlines(keepends=True) if is_whole(line))
    write(root / QUARANTINE / path.relative_to(root), damaged)
    write(path, content)


def _relative(path: Path, root: Path) -> Path:
    return path.relative_to(root) if path.is_relative_to(root) else path
