import threading
import time
from pathlib import Path

import polars as pl
import pytest

from curate.annotate import job as annotate
from curate.annotate.job import AnnotateConfig
from curate.errors import CurateError
from curate.generate import job
from curate.generate.config import generate_config
from curate.job import Context
from curate.warehouse import Warehouse
from curate.warehouse import merge as merging
from curate.warehouse.lineage import tree
from curate.warehouse.merge import merge

EVERYTHING = "SELECT * EXCLUDE (version) FROM annotated ORDER BY trace_id"


def config(stub_model, sums, **changes):
    problems = {"sources": [{"source": "files", "path": sums, "verifier": "math"}], "held_out": 0}
    base = {
        "recipe": "r1-zero",
        "model": stub_model,
        "engine": {"name": "stub"},
        "problems": problems,
        "samples": 4,
    }
    return generate_config({**base, "sampling": {"max_tokens": 256}, **changes})


@pytest.fixture
def context(tmp_path, stub_model, sums):
    """Traces of two plans in several parts, annotated."""
    with Context(tmp_path / "wh") as ctx:
        job.run(config(stub_model, sums, samples=3), ctx)
        job.run(config(stub_model, sums), ctx)
        annotate.run(AnnotateConfig(), ctx)
        yield ctx


def family(wh: Warehouse) -> str:
    return wh.versions("traces")[0].dataset


def parts(wh: Warehouse, table: str) -> list[Path]:
    return [p for p in wh.root.glob(f"{table}/*/*/part-*.parquet") if p.parts[-3] != "_empty"]


def test_no_row_changes_and_nothing_is_generated_again(context, stub_model, sums):
    wh = context.warehouse
    before, count = (
        wh.sql(EVERYTHING),
        {t: len(parts(wh, t)) for t in ("traces", "verdicts", "signals")},
    )
    merged = merge(wh, "traces", family(wh))
    assert merged.manifest["rows"] == 160
    assert len(parts(wh, "traces")) == 1 < count["traces"]
    assert len(parts(wh, "verdicts")) == 1 < count["verdicts"]
    assert len(parts(wh, "signals")) == 4 < count["signals"]
    assert wh.sql(EVERYTHING).equals(before)
    assert wh.sql("SELECT count(*) FROM verdicts").item() == 160
    assert annotate.run(AnnotateConfig(), context).rows == 0
    assert job.run(config(stub_model, sums), context).rows == 0
    assert merge(wh, "traces", family(wh)) is None
    # later rows are added, and merged next time
    assert job.run(config(stub_model, sums, samples=5), context).rows == 40
    assert annotate.run(AnnotateConfig(), context).rows == 40
    assert merge(wh, "traces", family(wh)).manifest["rows"] == 200
    assert wh.sql(
        "SELECT count(*), count(DISTINCT trace_id) FROM annotated WHERE verdict IS NOT NULL"
    ).row(0) == (
        200,
        200,
    )


def test_parts_stay_below_the_limit_and_annotations_follow_them(context):
    wh = context.warehouse
    before = wh.sql(EVERYTHING)
    merge(wh, "traces", family(wh), part_rows=100)
    for table in ("traces", "verdicts", "signals"):
        assert max(pl.read_parquet(p).height for p in parts(wh, table)) <= 100
    assert len(parts(wh, "traces")) == 2
    names = {p.name for p in parts(wh, "traces")}
    assert {p.name for p in parts(wh, "signals")} == names
    assert wh.sql(EVERYTHING).equals(before)
    assert annotate.run(AnnotateConfig(), context).rows == 0


def test_lineage_still_ends_in_problems(context):
    wh = context.warehouse
    merged = merge(wh, "traces", family(wh))
    refs = [facts["ref"] for _, facts in tree(wh, merged.ref)]
    assert sum(ref.startswith("traces/") for ref in refs) >= 3
    assert any(ref.startswith("problems/") for ref in refs)


def test_a_dataset_with_a_running_job_is_left_alone(context):
    wh = context.warehouse
    wh.version("traces", family(wh), "open").publish("a", [])
    before = sorted(parts(wh, "traces"))
    assert merge(wh, "traces", family(wh)) is None
    assert sorted(parts(wh, "traces")) == before


def test_no_reader_sees_a_row_twice(context):
    wh, seen, stop = context.warehouse, [], threading.Event()
    pattern = f"traces/{family(wh)}"

    def watch():
        while not stop.is_set():
            folder = wh.root / pattern
            try:
                seen.append(sum(pl.read_parquet(p).height for p in folder.glob("*/part-*.parquet")))
            except OSError:
                continue  # the listing had the old files, which are gone

    watcher = threading.Thread(target=watch)
    watcher.start()
    merge(wh, "traces", family(wh))
    time.sleep(0.1)
    stop.set()
    watcher.join()
    assert max(seen) == seen[0] == seen[-1] == 160


def test_a_failure_before_the_exchange_changes_nothing(context, monkeypatch):
    wh = context.warehouse
    before, files = wh.sql(EVERYTHING), sorted(parts(wh, "traces"))

    def refuse(*_):
        raise CurateError("no exchange")

    with monkeypatch.context() as patch:
        patch.setattr(merging, "exchange", refuse)
        with pytest.raises(CurateError, match="no exchange"):
            merge(wh, "traces", family(wh))
    assert sorted(parts(wh, "traces")) == files
    assert wh.sql(EVERYTHING).equals(before)
    assert merge(wh, "traces", family(wh)) is not None
    assert wh.sql(EVERYTHING).equals(before)


def test_parts_published_meanwhile_are_not_lost(context, monkeypatch):
    wh, exchange = context.warehouse, merging.exchange
    dataset = family(wh)
    row = {
        "trace_id": "late",
        "attempt": 0,
        "problem_id": "p",
        "sample_index": 9,
        "recipe": "r",
        "form": "plain",
    }

    def publish_then_exchange(one, other):
        if other.parent.name == "traces":
            wh.version("traces", dataset, "late").publish("a", [row | {"finish_reason": "stop"}])
        return exchange(one, other)

    with monkeypatch.context() as patch:
        patch.setattr(merging, "exchange", publish_then_exchange)
        merge(wh, "traces", dataset)
    assert wh.sql("SELECT count(*) FROM traces WHERE trace_id = 'late'").item() == 1
    assert wh.sql("SELECT count(*) FROM traces").item() == 161
