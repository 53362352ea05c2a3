"""Real processes, killed for real with SIGKILL: nothing finished is lost, nothing appears twice."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pytest

from curate.job import Context
from curate.warehouse import Warehouse

pytestmark = pytest.mark.slow
SAMPLES = 150  # times 40 problems
KILLS = 50
STEERED_KILLS = 12


def command(tmp_path: Path, model: str, sums: str, **engine: object) -> list[str]:
    config = {
        "recipe": "r1-zero",
        "model": model,
        "engine": {"name": "stub", "args": {"slow": 0.01, "at_once": 1, "shuffle": 7, **engine}},
        "problems": {
            "sources": [{"source": "files", "path": sums, "verifier": "math"}],
            "held_out": 0,
        },
        "samples": SAMPLES,
        "sampling": {"max_tokens": 256},
    }
    return generate(tmp_path, config)


def generate(tmp_path: Path, config: dict[str, Any]) -> list[str]:
    path = tmp_path / "job.yaml"
    path.write_text(json.dumps(config))
    return [sys.executable, "-m", "curate.cli", "generate", str(path), "-w", str(tmp_path / "wh")]


def start(arguments: list[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
    )


def logged(root: Path) -> set[str]:
    """Trace ids in logs and parts: the rows that a killed process had finished."""
    from curate.warehouse.logs import replay

    ids = {row["trace_id"] for row in replay(root.glob("_logs/*/*.log"))}
    for part in root.glob("traces/*/*/part-*.parquet"):
        ids |= set(pl.read_parquet(part, columns=["trace_id"])["trace_id"])
    return ids


def check(root: Path, kills: int = 0, samples: int = SAMPLES) -> None:
    """Check that each (problem, sample) exists once, with the text of an uninterrupted run; read by
    three clients.
    """
    wh = Warehouse(root)
    rows = wh.sql(
        "SELECT trace_id, problem_id, sample_index, attempt, completion, prompt, seed FROM traces"
    )
    assert rows.height == 40 * samples, f"{40 * samples - rows.height} rows lost or doubled"
    assert rows["trace_id"].n_unique() == rows.height
    assert rows.select("problem_id", "sample_index").n_unique() == rows.height
    from curate.engines import EngineConfig, open_engine
    from curate.records import Request, Sampling

    engine = open_engine(EngineConfig(name="stub"), "stub")
    batch = [
        Request(t, prompt, seed, Sampling(max_tokens=256, stop=("</answer>",)))
        for t, prompt, seed in rows.select("trace_id", "prompt", "seed").iter_rows()
    ]
    undisturbed = {done.request_id: done.text for done in engine.generate(batch)}
    assert undisturbed == dict(rows.select("trace_id", "completion").iter_rows())
    glob = f"{root}/traces/*/*/*.parquet"
    assert duckdb.sql(f"SELECT count(*), count(DISTINCT trace_id) FROM '{glob}'").fetchall() == [
        (rows.height,) * 2
    ]
    assert pl.scan_parquet(glob).select(pl.len()).collect().item() == rows.height
    assert not list(root.glob("_logs/*/*.log"))
    # A kill between writing and linking leaves a staged file, outside every glob: at most one per
    # kill, removed with age.
    assert len(list(root.glob("_staging/*"))) <= kills
    old = time.time() - 25 * 3600
    for staged in root.glob("_staging/*"):
        os.utime(staged, (old, old))
    with Context(root):
        assert not list(root.glob("_staging/*"))


def wait_for_work(root: Path, running: list[subprocess.Popen[bytes]]) -> None:
    """Wait until a log of one of these processes appears, which means that rows finish."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if any(works(root, process) for process in running):
            return
        time.sleep(0.02)


def works(root: Path, process: subprocess.Popen[bytes]) -> bool:
    """Whether this process has a log."""
    return any(root.glob(f"_logs/*/*-{process.pid}-*.log"))


def kill(process: subprocess.Popen[bytes]) -> int:
    """SIGKILL a process that we started. Returns 1 if it was still running."""
    running = process.poll() is None
    if running:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert process.returncode in (0, -signal.SIGKILL), process.stderr.read().decode()
    process.stderr.close()
    return int(running)


def test_fifty_kills_at_random_points(tmp_path, stub_model, sums):
    arguments, root = command(tmp_path, stub_model, sums), tmp_path / "wh"
    luck, kills, progress = random.Random(0), 0, []
    durable: set[str] = set()
    while kills < KILLS:
        # by turns one process alone, and two on the same job
        running = [start(arguments) for _ in range(1 + len(progress) % 2)]
        # mostly some time into the work, sometimes while the process is still starting or planning
        if luck.random() < 0.8:
            wait_for_work(root, running)
        time.sleep(luck.uniform(0.0, 0.6))
        kills += sum(kill(process) for process in running)
        now = logged(root)
        assert durable <= now, f"{len(durable - now)} finished rows were lost by a kill"
        progress.append(len(now) - len(durable))
        durable = now
    assert sum(n > 0 for n in progress) >= 10, (
        "most kills fell before the first row: the test shows little"
    )
    assert 0 < len(durable) < 40 * SAMPLES, (
        "the job ended before the kills did: the test shows little"
    )
    last = subprocess.run(
        command(tmp_path, stub_model, sums, slow=0), capture_output=True, text=True
    )
    assert last.returncode == 0, last.stderr
    check(root, kills)


def test_kills_change_no_decision_of_a_steered_job(tmp_path, stub_model, sums):
    """Two processes at any time, on problems that get different numbers of samples."""
    config = {
        "recipe": "rejection",
        "model": stub_model,
        "engine": {"name": "stub", "args": {"slow": 0.01, "shuffle": 7, "right": 0.3}},
        "problems": {
            "sources": [{"source": "files", "path": sums, "verifier": "math"}],
            "held_out": 0,
        },
        "samples": 60,
        "adaptive": {"keep": 8, "first": 8},
        "sampling": {"max_tokens": 256},
    }
    arguments, root = generate(tmp_path, config), tmp_path / "wh"
    luck, kills, steered = random.Random(1), 0, 0
    durable: set[str] = set()
    while kills < STEERED_KILLS:
        running = [start(arguments) for _ in range(2)]
        wait_for_work(root, running)
        time.sleep(luck.uniform(0.0, 1.2))
        kills += sum(kill(process) for process in running)
        now = logged(root)
        assert durable <= now, f"{len(durable - now)} finished rows were lost by a kill"
        steered += len(now) > len(durable)
        durable = now
    assert steered >= 3, "most kills fell before the first row: the test shows little"
    config["engine"]["args"]["slow"] = 0
    last = subprocess.run(generate(tmp_path, config), capture_output=True, text=True)
    assert last.returncode == 0, last.stderr
    (tmp_path / "undisturbed").mkdir()
    subprocess.run(generate(tmp_path / "undisturbed", config), check=True, capture_output=True)
    columns = "trace_id, problem_id, sample_index, attempt, completion"
    query = f"SELECT {columns} FROM traces ORDER BY trace_id, attempt"
    rows = Warehouse(root).sql(query)
    assert rows.equals(Warehouse(tmp_path / "undisturbed" / "wh").sql(query))
    assert durable <= set(rows["trace_id"])
    counts = rows.group_by("problem_id").agg(pl.len(), pl.col("sample_index").max() + 1)
    assert (counts["len"] == counts["sample_index"]).all()
    assert counts["len"].n_unique() > 3
    verdicts = Warehouse(root).sql("SELECT trace_id FROM verdicts")["trace_id"]
    assert sorted(verdicts) == rows["trace_id"].to_list(), (
        "each was judged once, and the verdict kept"
    )
    assert not list(root.glob("_logs/*/*.log"))


def engine_of(process: subprocess.Popen[bytes]) -> int:
    """Process id of the engine of a job."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rsplit(")", 1)[1].split()[1])
            if (
                parent == process.pid
                and "curate.engines.child" in (stat.parent / "cmdline").read_text()
            ):
                return int(stat.parent.name)
        except OSError:
            continue  # it ended meanwhile
    raise AssertionError("the job has no engine")


@pytest.mark.vllm
@pytest.mark.timeout(600)
def test_kills_of_jobs_on_vllm_with_two_writers(tmp_path, sums):
    """Three jobs are killed, then the engine of the remaining one, which starts it again."""
    pytest.importorskip("vllm")
    from curate.engines.testing.tiny import make_tiny_model

    config = {
        "recipe": "r1-zero",
        "model": str(make_tiny_model(tmp_path / "tiny", scale=0.3, max_len=1024)),
        "engine": {
            "name": "vllm",
            "memory": 0.25,
            "max_model_len": 1024,
            "in_flight": 8,
            "args": {"max_num_seqs": 4},
        },
        "problems": {
            "sources": [{"source": "files", "path": sums, "verifier": "math"}],
            "held_out": 0,
        },
        "samples": 16,
        "sampling": {"max_tokens": 48},
    }
    arguments, root = generate(tmp_path, config), tmp_path / "wh"
    durable: dict[str, str] = {}
    for survivors in (0, 1):
        running = [start(arguments) for _ in range(2)]
        deadline = time.monotonic() + 240
        while not all(works(root, process) for process in running) and time.monotonic() < deadline:
            assert all(process.poll() is None for process in running), (
                running[0].stderr.read().decode()
            )
            time.sleep(0.05)
        time.sleep(2)
        assert [kill(process) for process in running[survivors:]] == [1] * (2 - survivors), (
            "a job ended before its kill"
        )
        now = texts(root)
        assert durable.items() <= now.items(), "a kill lost or changed a finished row"
        assert len(now) > len(durable)
        durable = now
    os.kill(engine_of(running[0]), signal.SIGKILL)
    _, output = running[0].communicate(timeout=240)
    assert running[0].returncode == 0, output.decode()
    assert "the engine died and is started again" in output.decode()
    rows = Warehouse(root).sql(
        "SELECT trace_id, problem_id, sample_index, completion, error FROM traces"
    )
    assert rows.height == rows["trace_id"].n_unique() == 40 * 16
    assert rows.select("problem_id", "sample_index").n_unique() == rows.height
    assert rows["error"].null_count() == rows.height
    assert durable.items() <= dict(rows.select("trace_id", "completion").iter_rows()).items()
    assert not list(root.glob("_logs/*/*.log"))


def texts(root: Path) -> dict[str, str]:
    """Completions by trace, in logs and parts."""
    from curate.warehouse.logs import replay

    texts = {row["trace_id"]: row["completion"] for row in replay(root.glob("_logs/*/*.log"))}
    for part in root.glob("traces/*/*/part-*.parquet"):
        texts |= dict(pl.read_parquet(part, columns=["trace_id", "completion"]).iter_rows())
    return texts


def test_two_processes_share_one_job(tmp_path, stub_model, sums):
    arguments, root = command(tmp_path, stub_model, sums, slow=0.002), tmp_path / "wh"
    both = [start(arguments) for _ in range(2)]
    for process in both:
        assert process.wait(120) == 0, process.stderr.read().decode()
        process.stderr.close()
    check(root)


NO_CLAIMS = """
import sys, time
from curate import cli, job

class NoClaims:
    shared = True
    def take(self, name):
        return self
    def release(self, done=False):
        pass
    def pause(self, seconds):
        time.sleep(seconds)

job.claims_of = lambda root: NoClaims()
sys.argv[1:] = {arguments!r}
cli.main()
"""


@pytest.mark.skipif("CURATE_TEST_LONG" not in os.environ, reason="minutes: set CURATE_TEST_LONG=1")
def test_without_claims_rows_still_appear_once(tmp_path, stub_model, sums):
    """As on a share whose locks reach no other machine: put-if-absent alone keeps rows apart."""
    arguments, root = command(tmp_path, stub_model, sums, slow=0.002), tmp_path / "wh"
    config = json.loads((tmp_path / "job.yaml").read_text())
    (tmp_path / "job.yaml").write_text(json.dumps({**config, "samples": 20}))
    script = [sys.executable, "-c", NO_CLAIMS.format(arguments=arguments[3:])]
    both = [start(script) for _ in range(2)]
    for process in both:
        assert process.wait(120) == 0, process.stderr.read().decode()
        process.stderr.close()
    check(root, samples=20)


def test_rows_finished_before_a_kill_are_not_sampled_again(tmp_path, stub_model, sums):
    root = tmp_path / "wh"
    process = start(command(tmp_path, stub_model, sums))
    deadline = time.monotonic() + 60
    while len(logged(root)) < 200 and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    process.stderr.close()
    before = logged(root)
    assert len(before) >= 200
    # an engine that fails every request: only rows that were finished can have a text
    last = subprocess.run(
        command(tmp_path, stub_model, sums, slow=0, fail=1), capture_output=True, text=True
    )
    assert last.returncode == 1, last.stderr
    assert "requests failed" in last.stderr
    kept = Warehouse(root).sql("SELECT trace_id FROM traces WHERE error IS NULL")
    assert set(kept["trace_id"]) == before


def test_complete_chunks_can_be_read_while_a_job_runs(tmp_path, stub_model, sums):
    """Stock DuckDB, Polars and Hugging Face datasets read the files; our views read them too."""
    import datasets

    arguments, root = command(tmp_path, stub_model, sums, slow=0.005), tmp_path / "wh"
    process = start(arguments)
    seen, others = [], []
    while process.poll() is None:
        if (root / "traces" / "_empty" / "0" / "manifest.json").exists():
            glob = f"{root}/traces/*/*/*.parquet"
            seen.append(
                duckdb.sql(
                    f"SELECT count(*) FROM '{glob}' WHERE completion IS NOT NULL"
                ).fetchall()[0][0]
            )
            assert Warehouse(root).sql("SELECT count(*) FROM annotated").item() >= seen[-1]
            if seen[-1] and not others:
                others.append(pl.scan_parquet(glob).select(pl.len()).collect().item())
                cache = str(tmp_path / "cache")
                others.append(
                    datasets.load_dataset("parquet", data_files=glob, cache_dir=cache)[
                        "train"
                    ].num_rows
                )
                assert process.poll() is None, (
                    "the job ended before it could be read: make it slower"
                )
                assert seen[-1] <= others[0] <= others[1]
        time.sleep(0.1)
    assert process.returncode == 0, process.stderr.read().decode()
    process.stderr.close()
    assert len(others) == 2
    assert seen == sorted(seen)
    assert any(0 < n < 40 * SAMPLES for n in seen), seen
