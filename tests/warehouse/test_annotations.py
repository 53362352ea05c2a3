"""Addresses of verdicts and signals."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from curate.warehouse import Warehouse
from curate.warehouse.annotations import (
    address,
    dataset_name,
    datasets_about,
    part_key,
    parts_about,
    publish_verdicts,
    signals_folder,
)

TRACE = {
    "trace_id": "t",
    "attempt": 0,
    "problem_id": "p",
    "sample_index": 0,
    "recipe": "r1-zero",
    "form": "plain",
    "finish_reason": "stop",
}


def verdicts(**values: object) -> pl.DataFrame:
    row = {"trace_id": "t", "attempt": 0, "verifier": "math", "verifier_version": "7"}
    return pl.DataFrame([{**row, "kind": "rule", "verdict": "correct", **values}])


def test_each_verifier_and_version_has_a_separate_directory(tmp_path: Path) -> None:
    wh = Warehouse(tmp_path)
    traces = wh.write("traces", "sums", [TRACE], key=1)
    rows = pl.concat([verdicts(), verdicts(verifier="mine.checks:Sums", verifier_version="")])
    published = publish_verdicts(wh, traces, "0", rows)
    place = f"sums.{traces.version}"
    assert [v.ref for v in published] == [
        f"verdicts/math@7/{place}",
        f"verdicts/mine.checks.Sums@0/{place}",
    ]
    assert all(v.has("0") for v in published)


def test_a_published_verdict_stays(tmp_path: Path) -> None:
    wh = Warehouse(tmp_path)
    traces = wh.write("traces", "sums", [TRACE], key=1)
    publish_verdicts(wh, traces, "0", verdicts())
    publish_verdicts(wh, traces, "0", verdicts(verdict="wrong"))
    assert wh.sql("SELECT verdict FROM verdicts").rows() == [("correct",)]


def test_parts_are_sorted_by_the_part_of_traces_they_are_about(tmp_path: Path) -> None:
    wh = Warehouse(tmp_path)
    traces = wh.write("traces", "sums", [TRACE], key=1)
    (about,) = publish_verdicts(wh, traces, "0", verdicts())
    consensus = wh.write("verdicts", "consensus@1", verdicts(verifier="consensus"), key=2)
    (part,) = traces.parts()
    parts = parts_about([part], [*about.parts(), *consensus.parts()])
    assert parts == {part_key(part): about.parts(), None: consensus.parts()}


def test_all_datasets_about_a_version_of_traces_are_listed(tmp_path: Path) -> None:
    wh = Warehouse(tmp_path)
    traces = wh.write("traces", "sums", [TRACE], key=1)
    (math,) = publish_verdicts(wh, traces, "0", verdicts())
    shape = address(wh, "signals", traces, "shape", 3)
    shape.publish("0", [{"trace_id": "t", "attempt": 0}])
    wh.write("verdicts", "consensus@1", verdicts(verifier="consensus"), key=2)
    listed = [versions for versions, _ in datasets_about(wh, "sums", [traces.version])]
    assert [v for versions in listed for v in versions] == [math, shape]


def test_the_newest_version_of_a_group_of_signals_counts(tmp_path: Path) -> None:
    assert signals_folder(tmp_path, "shape") == "_empty"
    for version in (9, 10):
        (tmp_path / "signals" / dataset_name("shape", version)).mkdir(parents=True)
    assert signals_folder(tmp_path, "shape") == "shape@10"
