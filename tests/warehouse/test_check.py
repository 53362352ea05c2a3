"""`curate check` detects every change, and readers never count changed files silently."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from curate.errors import CurateError
from curate.files import read_parts
from curate.filter.export import export_corpus
from curate.warehouse import Warehouse, schemas
from curate.warehouse.annotations import publish_verdicts
from curate.warehouse.check import QUARANTINE, check, describe, repair
from curate.warehouse.chunks import Family
from curate.warehouse.logs import logs_of
from curate.warehouse.merge import merge
from curate.warehouse.slices import Slices
from curate.warehouse.sql import connect


def trace(number: int) -> dict[str, object]:
    return {
        "trace_id": f"t{number}",
        "attempt": 0,
        "problem_id": f"p{number}",
        "sample_index": 0,
        "recipe": "r1-zero",
        "form": "plain",
        "finish_reason": "stop",
        "completion": "a text that is long enough to be more than a header" * 20,
    }


def verdicts(numbers: range) -> pl.DataFrame:
    row = {"attempt": 0, "verifier": "math", "verifier_version": "7", "kind": "rule"}
    return pl.DataFrame([{"trace_id": f"t{n}", "verdict": "correct", **row} for n in numbers])


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two planned chunks of traces, sealed, with verdicts; and a corpus made from them."""
    wh = Warehouse(tmp_path_factory.mktemp("check") / "wh")
    family = Family(wh, "sums")
    assert family.extend(pl.Series([f"p{n}" for n in range(100)]), 1) == 100
    version = family.version(1)
    for number, chunk in enumerate(sorted(family.plan()["chunk_id"].unique())):
        rows = [trace(n) for n in range(100) if (n >= 64) == bool(number)]
        version.publish(chunk, rows)
        publish_verdicts(wh, version, chunk, verdicts(range(64 * number, 64 + 36 * number)))
    family.seal()
    wh.versions("verdicts")[0].seal()
    row = dict.fromkeys(schemas.required("corpora"), "x") | {"trace_id": "t1"}
    kinds = schemas.types("corpora")
    row = {n: 0 if kinds[n].endswith("INTEGER") else v for n, v in row.items()}
    wh.write("corpora", "c", [row], key=1, parents=[version.ref])
    return wh.root


@pytest.fixture
def wh(written: Path, tmp_path: Path) -> Warehouse:
    shutil.copytree(written, tmp_path / "wh")
    return Warehouse(tmp_path / "wh")


def part(wh: Warehouse, table: str = "traces") -> Path:
    return sorted(p for p in wh.root.glob(f"{table}/*/*/part-*") if p.parts[-3] != "_empty")[0]


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 0xFF
    path.write_bytes(data)


def test_an_unchanged_warehouse_has_no_problems(wh: Warehouse) -> None:
    report = check(wh.root)
    assert report.damages == []
    assert report.unsummed == 0
    assert "no problems" in describe(report, wh.root)


def test_a_copy_without_checksums_or_places_passes(wh: Warehouse) -> None:
    """Warehouses of earlier versions have neither."""
    for path in wh.root.glob("*/*/*/manifest.json"):
        manifest = json.loads(path.read_text())
        for entry in manifest["parts"]:
            del entry["checksum"]
        path.write_text(json.dumps(manifest))
    report = check(wh.root)
    assert report.damages == []
    assert report.unsummed == report.parts
    assert wh.sql("SELECT count(*) FROM traces").item() == 100


# each damage: how to cause it, the file that the message names, whether a reader must notice
def _missing(wh: Warehouse) -> Path:
    path = part(wh)
    path.unlink()
    return path


def _truncated(wh: Warehouse) -> Path:
    path = part(wh)
    path.write_bytes(path.read_bytes()[:-100])
    return path


def _no_parquet(wh: Warehouse) -> Path:
    path = part(wh).parent.with_name("open") / "part-zz.parquet"
    path.parent.mkdir()
    path.write_text("a text")
    return path


def _other_columns(wh: Warehouse) -> Path:
    path = wh.root / "traces" / "foo" / "bar" / "part-0.parquet"
    path.parent.mkdir(parents=True)
    pl.DataFrame({"x": [1]}).write_parquet(path)
    return path


def _copied(wh: Warehouse) -> Path:
    path = part(wh).with_name("part-copy.parquet")
    shutil.copyfile(part(wh), path)
    return path


def _linked(wh: Warehouse) -> Path:
    path = part(wh).with_name("part-link.parquet")
    path.symlink_to(part(wh))
    return path


def _copied_elsewhere(wh: Warehouse) -> Path:
    path = wh.root / "traces" / "other" / "v" / part(wh).name
    path.parent.mkdir(parents=True)
    shutil.copyfile(part(wh), path)
    return path


def _copied_version(wh: Warehouse) -> Path:
    target = part(wh).parent.with_name("again")
    shutil.copytree(part(wh).parent, target)
    return target / "manifest.json"


def _broken_manifest(wh: Warehouse) -> Path:
    path = part(wh).with_name("manifest.json")
    path.write_text(path.read_text()[:50])
    return path


def _deep_manifest(wh: Warehouse) -> Path:
    path = part(wh).with_name("manifest.json")
    path.write_text("[" * 100_000)
    return path


SEEN: list[Callable[[Warehouse], Path]] = [
    _missing,
    _truncated,
    _no_parquet,
    _other_columns,
    _copied,
    _linked,
    _copied_elsewhere,
    _copied_version,
    _broken_manifest,
    _deep_manifest,
]


@pytest.mark.parametrize("damage", SEEN)
def test_reading_names_the_file_and_repair_leaves_a_clean_warehouse(
    wh: Warehouse, damage: Callable[[Warehouse], Path]
) -> None:
    path = damage(wh)
    with pytest.raises(CurateError, match="curate check") as caught:
        wh.sql("SELECT count(*) FROM traces")
    assert path.name in str(caught.value)
    report = check(wh.root)
    assert report.damages
    repair(wh.root, report.damages)
    assert check(wh.root).damages == []
    rows = wh.sql("SELECT count(*), count(DISTINCT trace_id) FROM traces").row(0)
    lost = damage in (_missing, _truncated)
    assert rows == ((36, 36) if lost else (100, 100))


@pytest.mark.parametrize("table", ["traces", "verdicts", "corpora"])
def test_a_changed_byte_is_detected_anywhere(wh: Warehouse, table: str) -> None:
    size = part(wh, table).stat().st_size
    for place in range(4, size - 8, size // 7):
        flip(part(wh, table), place)
        damages = check(wh.root).damages
        assert [d.path for d in damages] == [part(wh, table)]
        assert "bytes of the part have changed" in damages[0].what
        flip(part(wh, table), place)
    assert check(wh.root).damages == []


def test_annotation_does_not_read_texts_whose_bytes_have_changed(wh: Warehouse) -> None:
    """Pages carry checksums, which pyarrow compares when it reads them part by part."""
    path, whole = part(wh), part(wh).read_bytes()
    expected = pl.concat(read_parts(path))
    silent = 0
    for place in range(4, len(whole) - 8, len(whole) // 40):
        flip(path, place)
        with contextlib.suppress(CurateError):
            silent += not pl.concat(read_parts(path)).equals(expected)
        path.write_bytes(whole)
    assert silent == 0


def decide(wh: Warehouse) -> None:
    with connect(wh.root) as connection:
        for _ in Slices(connection, wh.root, rows=50):
            connection.sql("SELECT count(*) FROM annotated").fetchall()


# functions that pass rows on, and the tables they read
PASSED_ON: dict[str, tuple[str, Callable[[Warehouse], object]]] = {
    "a filter": ("traces", decide),
    "a filter, of verdicts": ("verdicts", decide),
    "a merge": ("traces", lambda wh: merge(wh, "traces", "sums")),
    "a merge, of verdicts": ("verdicts", lambda wh: merge(wh, "traces", "sums")),
    "training": ("corpora", lambda wh: wh.latest("corpora", "c").read().collect()),
    "an export": ("corpora", lambda wh: export_corpus(wh, "c", wh.root.parent / "out")),
}


@pytest.mark.parametrize("name", PASSED_ON)
def test_a_flip_that_leaves_a_readable_page_is_not_passed_on(wh: Warehouse, name: str) -> None:
    table, act = PASSED_ON[name]
    path = part(wh, table)
    before = {p: p.read_bytes() for p in wh.root.rglob("part-*.parquet")}
    flip(path, 50)  # inside the first page; the footer is whole, and the size stays
    before[path] = path.read_bytes()
    with pytest.raises(CurateError, match=rf"{path.name}: the bytes of the part have changed"):
        act(wh)
    parts = {p: p.read_bytes() for p in wh.root.rglob("part-*.parquet")}
    assert {p: b for p, b in parts.items() if "_staging" not in p.parts} == before
    assert not list((wh.root.parent / "out").glob("data/*"))


def test_a_flip_in_an_open_version_is_detected_by_its_pages(wh: Warehouse) -> None:
    path = part(wh)
    path.with_name("manifest.json").unlink()
    assert check(wh.root).damages == []
    flip(path, 50)
    assert [d.path for d in check(wh.root).damages] == [path]


def test_a_lost_chunk_is_planned_again_and_its_verdicts_go_with_it(wh: Warehouse) -> None:
    flip(part(wh), 50)
    name = part(wh).name
    repair(wh.root, check(wh.root).damages)
    family = Family(wh, "sums")
    units = pl.Series([f"p{n}" for n in range(100)])
    open_rows = family.open_rows(units, 1)
    assert set(open_rows["unit"]) == {f"p{n}" for n in range(64)}
    assert wh.sql("SELECT count(*) FROM verdicts").item() == 36
    assert sorted(p.name for p in (wh.root / QUARANTINE).rglob("part-*")) == [name, name]


def test_a_flip_in_a_merged_part_is_reported_and_nothing_is_written_twice(wh: Warehouse) -> None:
    merged = merge(wh, "traces", "sums")
    assert merged is not None
    assert check(wh.root).damages == []
    (path,) = merged.parts()
    flip(path, 50)
    repair(wh.root, check(wh.root).damages)
    assert check(wh.root).damages == []
    assert wh.sql("SELECT count(*) FROM traces").item() == 0
    assert Family(wh, "sums").open_rows(pl.Series(["p1", "p99"]), 1)["chunk_id"].n_unique() == 2


def test_lines_of_logs_are_checked_and_a_torn_last_line_is_normal(wh: Warehouse) -> None:
    family = Family(wh, "more")
    family.extend(pl.Series([f"p{n}" for n in range(3)]), 1)
    (chunk,) = family.chunks(family.open_rows(pl.Series([f"p{n}" for n in range(3)]), 1))
    log = family.claim(chunk)
    assert log is not None
    for number in range(3):
        log.append(trace(number))
    log.close()
    (path,) = logs_of(family.logs, chunk.chunk_id)
    with open(path, "ab") as handle:
        handle.write(b"01234567 {torn")
    assert check(wh.root).damages == []
    flip(path, 40)
    (damage,) = check(wh.root).damages
    assert "1 of 4 lines" in damage.what
    repair(wh.root, [damage])
    assert check(wh.root).damages == []
    again = family.claim(chunk)
    assert again is not None
    assert len(again.missing) == 1
    again.close()


def test_plans_and_lineage_are_checked(wh: Warehouse) -> None:
    plan = wh.root / "_jobs" / "sums" / "plan-000001.parquet"
    content = plan.read_bytes()
    pl.read_parquet(plan).head(3).write_parquet(plan)
    (damage,) = check(wh.root).damages
    assert "not the one that" in damage.what
    plan.write_bytes(content)
    shutil.rmtree(part(wh).parents[1])
    damages = check(wh.root).damages
    assert any("made from traces/sums/" in d.what for d in damages)
    assert not any(d.mendable for d in damages)


def test_rows_that_occur_twice_are_reported(wh: Warehouse) -> None:
    wh.write("traces", "again", [trace(1)], key=3)
    (damage,) = check(wh.root).damages
    assert "occur more than once, such as of trace t1" in damage.what
