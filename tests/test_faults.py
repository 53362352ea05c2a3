"""Faults of the machine, for the commands that write without training: kills, full and read-only
disks, no descriptors, a wrong clock, odd paths. Afterwards the same command finishes, the rows are
those of an uninterrupted run, and `curate check` is clean.

`curate merge` is not among them: see tests/warehouse/test_merge.py.

CURATE_KILLS: kills of each command (2 by default; 20 for a thorough run). Generation,
training and whole pipelines have separate tests: tests/generate/test_faults.py,
tests/train/test_kill.py, tests/kills.py.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest

from curate.warehouse import Warehouse
from curate.warehouse.check import check

KILLS = int(os.environ.get("CURATE_KILLS", "2"))
ROWS = 120
COMMANDS = {
    "import": ["import", "{data}", "verifier=math"],
    "annotate": ["annotate"],
    "filter": ["filter", "unfiltered"],
    "export": ["export", "unfiltered", "--out", "{root}/out"],
    "report": ["report", "annotate=false"],
}
# the results of a command, without times
QUERIES = {
    "traces": "SELECT trace_id, attempt, problem_id, completion FROM traces ORDER BY ALL",
    "verdicts": "SELECT trace_id, verifier, verdict, extracted FROM verdicts ORDER BY ALL",
    "signals": "SELECT * FROM signals ORDER BY ALL",
    "corpora": "SELECT corpus, trace_id, prompt, completion FROM corpora ORDER BY ALL",
    "problems": "SELECT problem_id, question, reference FROM problems ORDER BY ALL",
}

# runs a command after `prepare` of this module, in a prepared process
RUNNER = """
import sys
sys.path.insert(0, sys.argv[1])
from tests import test_faults
if sys.argv[2]:
    getattr(test_faults, sys.argv[2])()
from curate import cli
sys.argv = ["curate", *sys.argv[3:]]
cli.main()
"""


def start(name: str, root: Path, data: Path, prepare: str = "") -> subprocess.Popen[str]:
    values = {"data": data, "root": root.parent}
    arguments = [a.format(**values) for a in COMMANDS[name]] + ["-w", str(root)]
    here = str(Path(__file__).parents[1])
    return subprocess.Popen(
        [sys.executable, "-c", RUNNER, here, prepare, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def run(name: str, root: Path, data: Path, prepare: str = "") -> tuple[int, str]:
    """Exit code and output of a command."""
    process = start(name, root, data, prepare)
    output, _ = process.communicate()
    return process.returncode, output


def rows(root: Path) -> dict[str, pl.DataFrame]:
    warehouse = Warehouse(root)
    return {table: warehouse.sql(query) for table, query in QUERIES.items()}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "traces.jsonl"
    records = [
        {
            "question": f"What is {n} + {n}?",
            "completion": f"<think> I add {n} and {n}. That is {2 * n}. </think>"
            f" <answer> {2 * n + (n % 3 == 0)} </answer>",
            "reference": str(2 * n),
        }
        for n in range(ROWS)
    ]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.fixture(scope="module")
def calm(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, float]]:
    """For each command the warehouse before it, and its uninterrupted duration."""
    folder = tmp_path_factory.mktemp("calm")
    root = folder / "wh"
    before: dict[str, tuple[Path, float]] = {}
    for name in COMMANDS:
        copy = folder / f"before-{name}"
        if root.exists():
            shutil.copytree(root, copy)
        began = time.monotonic()
        code, output = run(name, root, data)
        assert code == 0, output
        before[name] = (copy, time.monotonic() - began)
    before["end"] = (root, 0.0)
    return before


def prepared(calm: dict[str, tuple[Path, float]], name: str, root: Path) -> Path:
    if calm[name][0].exists():
        shutil.copytree(calm[name][0], root)
    return root


def check_result(calm: dict[str, tuple[Path, float]], name: str, root: Path) -> None:
    names = list(COMMANDS)
    after = names[names.index(name) + 1] if name != names[-1] else "end"
    expected, actual = rows(calm[after][0]), rows(root)
    assert all(actual[table].equals(expected[table]) for table in QUERIES)
    assert actual["traces"].height == ROWS
    assert check(root).damages == []


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_kills_lose_and_repeat_nothing(
    calm: dict[str, tuple[Path, float]], data: Path, tmp_path: Path, name: str
) -> None:
    root, draw, killed = prepared(calm, name, tmp_path / "wh"), random.Random(name), 0
    for _ in range(8 * KILLS):
        process = start(name, root, data)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(draw.uniform(0.2, 1.0) * calm[name][1])
        running = process.poll() is None
        if running:
            os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        assert process.returncode in (0, -signal.SIGKILL), output
        killed += running
        if killed == KILLS:
            break
        if not running:  # it ended before the kill: repeat from the start
            shutil.rmtree(root, ignore_errors=True)
            prepared(calm, name, root)
    assert killed == KILLS, "most kills missed: the test shows little"
    code, output = run(name, root, data)
    assert code == 0, output
    check_result(calm, name, root)


def few_descriptors() -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["import", "annotate", "filter"])
def test_without_descriptors_there_is_one_message_and_nothing_is_lost(
    calm: dict[str, tuple[Path, float]], data: Path, tmp_path: Path, name: str
) -> None:
    root = prepared(calm, name, tmp_path / "wh")
    code, output = run(name, root, data, "few_descriptors")
    assert code == 0 or "Traceback" not in output, output
    code, output = run(name, root, data)
    assert code == 0, output
    check_result(calm, name, root)


def a_day_back() -> None:
    _shift(-86_400)


def a_day_ahead() -> None:
    _shift(86_400)


def _shift(seconds: float) -> None:
    """A wrong clock, as this process sees it."""
    import curate.atomic
    from curate.warehouse import store

    real = time.time
    time.time = lambda: real() + seconds
    curate.atomic.time.time = time.time
    store.now = lambda: dt.datetime.now(dt.UTC) + dt.timedelta(seconds=seconds)


@pytest.mark.slow
@pytest.mark.parametrize("clock", ["a_day_back", "a_day_ahead"])
def test_a_clock_that_is_a_day_off_changes_no_result(
    calm: dict[str, tuple[Path, float]], data: Path, tmp_path: Path, clock: str
) -> None:
    root = prepared(calm, "annotate", tmp_path / "wh")
    for name in ("annotate", "filter"):
        code, output = run(name, root, data, clock)
        assert code == 0, output
    check_result(calm, "filter", root)


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["new[1] *?", 'it\'s a "ü" 空 {a,b}'])
def test_a_path_may_hold_any_character(data: Path, tmp_path: Path, folder: str) -> None:
    root = tmp_path / folder / "wh"
    copy = tmp_path / folder / "data [2].jsonl"
    copy.parent.mkdir()
    shutil.copyfile(data, copy)
    for name in COMMANDS:
        code, output = run(name, root, copy)
        assert code == 0, (name, output)
    assert rows(root)["corpora"].height == ROWS
    assert check(root).damages == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system in memory whose size and mode can be changed; needs root."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "curate-test", str(disk)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("cannot mount a file system here")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def remount(disk: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(disk)], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_a_full_or_read_only_disk_is_one_message_and_the_command_finishes_later(
    calm: dict[str, tuple[Path, float]], data: Path, small_disk: Path, name: str
) -> None:
    remount(small_disk, "size=64m")
    root = prepared(calm, name, small_disk / "wh")
    used = subprocess.run(["du", "-sk", root.parent], capture_output=True, text=True, check=True)
    # an export needs very little room, so it gets none
    size = int(used.stdout.split()[0]) + (0 if name == "export" else 8)
    for options in (f"size={size}k", "ro,size=64m"):
        remount(small_disk, options)
        code, output = run(name, root, data)
        errors = [line for line in output.splitlines() if line.startswith("error:")]
        assert "Traceback" not in output
        assert code == 1, output
        assert len(errors) == 1
        assert "full" in errors[0] or "cannot write" in errors[0]
        remount(small_disk, "rw,size=64m")
    code, output = run(name, root, data)
    assert code == 0, output
    check_result(calm, name, root)
