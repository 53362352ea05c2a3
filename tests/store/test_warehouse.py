"""A warehouse in a bucket gives the rows of one on a disk, and loses nothing to kills."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from curate import api
from curate.errors import UsageError
from curate.job import Context
from curate.store import open_store, parse_root
from curate.store.paths import files, read_bytes, remove
from curate.warehouse import Warehouse
from curate.warehouse import check as checking
from curate.warehouse.logs import every_log, replay
from curate.warehouse.parts import forget

LONG = pytest.mark.skipif(
    "CURATE_TEST_LONG" not in os.environ, reason="minutes: set CURATE_TEST_LONG=1"
)
pytestmark = [pytest.mark.timeout(600), LONG]
SAMPLES = 24  # times 40 problems
KILLS = 4  # on each server


def config_of(model: str, sums: str, samples: int = 4, **engine: object) -> dict[str, Any]:
    return {
        "model": model,
        "engine": {"name": "stub", "args": {"shuffle": 7, **engine}},
        "problems": {
            "sources": [{"source": "files", "path": sums, "verifier": "math"}],
            "held_out": 0.2,
        },
        "samples": samples,
        "chunk": 50,
        "sampling": {"max_tokens": 256},
    }


def curate(*arguments: str) -> str:
    """Run a command, and return what it prints."""
    command = [sys.executable, "-m", "curate.cli", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def data_side(root: str, model: str, sums: str, out: Path) -> dict[str, Any]:
    """Run the stages of a pipeline before training; return the visible result of each."""
    config = config_of(model, sums)
    generated = api.generate("r1-zero", warehouse=root, **config)
    again = api.generate("r1-zero", warehouse=root, **config)
    annotated = api.annotate(warehouse=root)
    kept = api.filter("rejection", warehouse=root)
    exported = api.export("rejection", out / "corpus.jsonl", warehouse=root)
    table = api.evaluate(
        warehouse=root,
        models=[{"label": "stub", "model": model}],
        problems=config["problems"],
        samples=2,
        engine={"name": "stub"},
    )
    imported = api.import_traces(str(out / "corpus.jsonl"), warehouse=root, name="again")
    wh = Warehouse(root)
    rows = {
        name: wh.sql(f"SELECT {columns} FROM {name} ORDER BY ALL").rows()
        for name, columns in {
            "traces": "trace_id, attempt, problem_id, prompt, completion, finish_reason, dataset",
            "problems": "problem_id, question, reference, split",
            "annotated": "trace_id, verdict, extracted, readable, words, well_formed, dataset",
            "corpora": "trace_id, problem_id",
            "funnel": "rule, position, source, traces, drops_first",
            "manifests WHERE \"table\" <> 'jobs'": '"table", dataset, version, rows',
        }.items()
    }
    return {
        **rows,
        "counts": [generated.rows, again.rows, annotated.rows, kept.rows, exported, imported.rows],
        "export": (out / "corpus.jsonl").read_text(),
        "evaluation": table.select("model", "metric", "k", "value", "low", "high").rows(),
    }


@pytest.mark.slow
@pytest.mark.parametrize("bucket", ["moto", "localbucket"], indirect=True)
def test_the_data_side_of_a_pipeline_is_the_same_row_for_row(
    tmp_path: Path, stub_model: str, sums: str, bucket: str
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    here = data_side(str(tmp_path / "wh"), stub_model, sums, tmp_path / "a")
    there = data_side(bucket, stub_model, sums, tmp_path / "b")
    assert here["counts"][0] == 132
    for name, rows in here.items():
        assert there[name] == rows, name
    assert there["traces"]
    wh = Warehouse(bucket)
    assert not every_log(wh.root)
    report = checking.check(wh.root)
    assert report.damages == []
    assert (report.parts, report.unsummed) == (checking.check(tmp_path / "wh").parts, 0)
    trace = there["traces"][0][0]
    local = ["-w", str(tmp_path / "wh")]
    assert curate("show", trace, "-w", bucket) == curate("show", trace, *local)
    assert curate("lineage", trace, "-w", bucket) == curate("lineage", trace, *local)
    query = "SELECT verdict, count(*) FROM annotated GROUP BY 1 ORDER BY 1"
    assert curate("sql", query, "-w", bucket) == curate("sql", query, *local)
    assert "no problems" in curate("check", "-w", bucket)
    curate("report", "-w", bucket)
    assert open_store(wh.root).get("report.html").startswith(b"<!")


def parts_of_traces(wh: Warehouse) -> list[Path]:
    paths = files(wh.root / "traces", "*/*/part-*.parquet")
    return [path for path in paths if "_empty" not in path.parts]


def finished(root: Path) -> set[str]:
    """Trace ids in logs and parts of a bucket."""
    ids = {row["trace_id"] for row in replay(every_log(root))}
    for part in files(root / "traces", "*/*/part-*.parquet"):
        ids |= set(pl.read_parquet(read_bytes(part), columns=["trace_id"])["trace_id"])
    return ids


@pytest.mark.slow
@pytest.mark.parametrize("bucket", ["moto", "localbucket"], indirect=True)
def test_kills_lose_and_repeat_nothing(
    tmp_path: Path, stub_model: str, sums: str, bucket: str
) -> None:
    config = config_of(stub_model, sums, SAMPLES, slow=0.01, at_once=1)
    path = tmp_path / "job.yaml"
    data = {**config, "recipe": "r1-zero", "flush": 0.5, "live": False}
    data["problems"]["held_out"] = 0
    path.write_text(json.dumps(data))
    command = [sys.executable, "-m", "curate.cli", "generate", str(path), "-w", bucket]
    root, kills, durable = parse_root(bucket), 0, set[str]()
    while kills < KILLS:
        processes = [
            subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
            for _ in range(1 + kills % 2)
        ]
        deadline = time.monotonic() + 90
        while len(finished(root)) < len(durable) + 30 and time.monotonic() < deadline:
            assert any(process.poll() is None for process in processes)
            time.sleep(0.2)
        known = finished(root)
        for process in processes:
            kills += process.poll() is None
            process.send_signal(signal.SIGKILL)
            process.wait()
            assert process.stderr is not None
            process.stderr.close()
        assert durable <= known <= finished(root), "what was durable was lost by a kill"
        durable = known
    assert 0 < len(durable) < 40 * SAMPLES
    both = [
        subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for process in both:
        _, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
    rows = Warehouse(bucket).sql("SELECT trace_id, problem_id, sample_index FROM traces")
    assert rows.height == rows["trace_id"].n_unique() == 40 * SAMPLES
    assert durable <= set(rows["trace_id"])
    assert not every_log(root)
    assert checking.check(root).damages == []


def test_a_lost_part_gives_one_message_and_repair_reopens_its_version(
    stub_model: str, sums: str, bucket: str
) -> None:
    api.generate("r1-zero", warehouse=bucket, **config_of(stub_model, sums))
    wh = Warehouse(bucket)
    lost = parts_of_traces(wh)[0]
    remove([lost])
    forget()
    report = checking.check(wh.root)
    assert [damage.path for damage in report.damages] == [lost]
    assert "the part is missing" in checking.describe(report, wh.root)
    moved = checking.repair(wh.root, report.damages)
    assert [path.name for path in moved] == ["manifest.json"]
    assert checking.check(wh.root).damages == []
    again = api.generate("r1-zero", warehouse=bucket, **config_of(stub_model, sums))
    assert again.rows in (50, 32)
    assert wh.sql("SELECT count(*), count(DISTINCT trace_id) FROM traces").row(0) == (132, 132)


def test_changed_bytes_are_reported(stub_model: str, sums: str, bucket: str) -> None:
    api.generate("r1-zero", warehouse=bucket, **config_of(stub_model, sums))
    wh = Warehouse(bucket)
    part = parts_of_traces(wh)[0]
    store, key = open_store(wh.root), part.relative_to(wh.root).as_posix()
    content = bytearray(store.get(key))
    content[len(content) // 2] ^= 1
    store.put(key, bytes(content))
    report = checking.check(wh.root)
    assert [damage.what for damage in report.damages] == ["the bytes of the part have changed"]


def test_commands_that_need_a_file_system_say_so(
    tmp_path: Path, stub_model: str, sums: str, bucket: str
) -> None:
    from curate.warehouse.merge import merge

    wh = Warehouse(bucket).create()
    with pytest.raises(UsageError, match="chunk=1000"):
        merge(wh, "traces", "x")
    with pytest.raises(UsageError, match="is exported to this machine"):
        api.export("x", "s3://curate/out", warehouse=bucket)
    pytest.importorskip("torch")
    from curate.train.checkpoints import Checkpoints

    with pytest.raises(UsageError, match="needs a warehouse on a file system"):
        Checkpoints(wh.root, "run")
    assert not Path("s3:").exists()


def test_no_file_is_written_under_a_remote_name(
    stub_model: str, sums: str, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = set(os.listdir(tmp_path))
    with Context(bucket) as context:
        assert not context.warehouse.exists()
    api.generate("r1-zero", warehouse=bucket, **config_of(stub_model, sums))
    api.annotate(warehouse=bucket)
    api.filter("unfiltered", warehouse=bucket)
    assert set(os.listdir(tmp_path)) == before


def test_queries_read_the_bucket_of_the_warehouse_only(
    stub_model: str, sums: str, bucket: str, tmp_path: Path
) -> None:
    wh = Warehouse(bucket)
    api.generate("r1-zero", warehouse=bucket, **config_of(stub_model, sums))
    assert wh.sql("SELECT count(*) FROM traces").item() == 132
    other = open_store(parse_root("s3://curate/other"))
    pl.DataFrame({"a": [1]}).write_parquet(tmp_path / "x.parquet")
    other.put("x.parquet", (tmp_path / "x.parquet").read_bytes())
    for place in ("s3://curate/other/x.parquet", str(tmp_path / "x.parquet")):
        with pytest.raises(Exception, match=r"[Pp]ermission|disabled"):
            wh.sql(f"SELECT * FROM read_parquet('{place}')")
