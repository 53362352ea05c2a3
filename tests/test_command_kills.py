"""SIGKILL at random points of every command that writes. Afterwards the same command finishes, the
rows are those of an uninterrupted run, and `curate check` is clean.

Half of the kills fall at a random time, half at a random touch of a file. By default, three kills
of each command up to merging. With CURATE_KILLS=20 in the environment: that many kills, evaluation
and training as well, one of two processes on the same job, and two processes with the same id.
tests/test_faults.py has the other faults of the machine; tests/generate/test_faults.py,
tests/train/test_kill.py and tests/kills.py look closer at generation, training and pipelines.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pytest

pytest.importorskip("torch")

from curate.engines.testing.tiny import make_tiny_model
from curate.files import read_parts
from curate.warehouse import Warehouse
from curate.warehouse.check import check
from tests.forks import Command
from tests.kills import compare

pytestmark = pytest.mark.slow
KILLS = int(os.environ.get("CURATE_KILLS", "3"))
THOROUGH = "CURATE_KILLS" in os.environ
ROWS = 120  # imported
TRAINING = ("sft", "grpo", "distill")
# In the usual order of work. {words} are replaced by paths.
COMMANDS = {
    "generate": "generate {home}/generate.yaml",
    "import": "import {data} verifier=math",
    "annotate": "annotate",
    "filter": "filter unfiltered",
    "export": "export unfiltered --out {root}-export",
    "merge": "merge",
    "report": "report annotate=false",
    "evaluate": "evaluate -c {home}/evaluate.yaml",
    "sft": "train sft -c {home}/sft.yaml",
    "grpo": "train grpo -c {home}/grpo.yaml",
    "distill": "train distill -c {home}/distill.yaml",
}
if not THOROUGH:
    COMMANDS = dict(list(COMMANDS.items())[: list(COMMANDS).index("merge") + 1])
# Several processes may work on the same job; two trainers of one run may not.
SHARED = [name for name in COMMANDS if name not in TRAINING]


@dataclass
class Calm:
    """Uninterrupted runs: for each command the warehouse before and after it, and its duration by
    the clock and in touches of files."""

    home: Path
    data: Path
    seconds: dict[str, float]
    touches: dict[str, int]

    def before(self, name: str) -> Path:
        return self.home / "states" / str(list(COMMANDS).index(name))

    def after(self, name: str) -> Path:
        return self.home / "states" / str(list(COMMANDS).index(name) + 1)

    def prepare(self, name: str, root: Path) -> Path:
        """Put the warehouse into the state before a command."""
        shutil.rmtree(root, ignore_errors=True)
        shutil.rmtree(f"{root}-export", ignore_errors=True)
        if self.before(name).exists():
            shutil.copytree(self.before(name), root)
        return root

    def start(self, name: str, root: Path, data: Path | None = None, **how: object) -> Command:
        places = {"home": self.home, "data": data or self.data, "root": root}
        words = [word.format(**places) for word in COMMANDS[name].split(" ")]
        folder = root.parent
        folder.mkdir(parents=True, exist_ok=True)
        return Command([*words, "-w", str(root)], folder, **how)  # type: ignore[arg-type]

    def run(self, name: str, root: Path, **how: object) -> tuple[int, str]:
        """Exit code and output."""
        command = self.start(name, root, **how)  # type: ignore[arg-type]
        code = command.wait()
        assert code is not None
        return code, command.output

    def verify(self, name: str, root: Path) -> None:
        """Check that rows, files and checksums are those of an uninterrupted run."""
        assert check(root).damages == []
        compare(Warehouse(self.after(name)), Warehouse(root))
        if name == "export":
            (path,) = Path(f"{root}-export").glob("data/train-*")
            rows = pl.concat(read_parts(path))
            assert rows.height == Warehouse(root).sql("SELECT count(*) FROM corpora").item()
        if name == "report":
            (path,) = root.glob("*.html")
            assert path.read_text().rstrip().endswith("</html>")


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Calm:
    home = tmp_path_factory.mktemp("calm")
    result = Calm(home, write_inputs(home), {}, {})
    root = home / "wh"
    for number, name in enumerate(COMMANDS):
        began = time.monotonic()
        command = result.start(name, root)
        assert command.wait() == 0, command.output
        result.seconds[name] = time.monotonic() - began
        result.touches[name] = command.touches
        shutil.copytree(root, home / "states" / str(number + 1))
    return result


def write_inputs(home: Path) -> Path:
    """Configs, two models, problems, and traces to import; returns the path of the traces."""
    records = [
        {
            "question": f"What is {n} + {n}?",
            "completion": f"<think> I add {n} and {n}. That is {2 * n}. </think>"
            f" <answer> {2 * n + (n % 3 == 0)} </answer>",
            "reference": str(2 * n),
        }
        for n in range(ROWS)
    ]
    data = home / "traces.jsonl"
    data.write_text("".join(json.dumps(record) + "\n" for record in records))
    sums = [{"question": f"What is {n} + 7?", "reference": str(n + 7)} for n in range(20)]
    (home / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in sums))
    size: dict[str, Any] = {
        "hidden": 16,
        "layers": 1,
        "heads": 2,
        "kv_heads": 1,
        "max_len": 1024,
        "scale": 0.3,
    }
    models = [str(make_tiny_model(home / name, seed=i, **size)) for i, name in enumerate("ab")]

    def problems(held_out: int, verifier: str) -> dict[str, object]:
        source = {"source": "files", "path": str(home / "sums.jsonl"), "verifier": verifier}
        return {"sources": [source], "held_out": held_out}

    mixture = [{"corpus": "unfiltered", "share": 0.06}]
    training = {
        "model": models[0],
        "compute": {"precision": "fp32", "device": "cpu"},
        "checkpoint": {"every": 1},
    }
    configs: dict[str, dict[str, object]] = {
        "generate": {
            "recipe": "r1-zero",
            "model": models[0],
            "engine": {"name": "stub", "args": {"slow": 0.002, "shuffle": 7}},
            "problems": problems(0, "math"),
            "samples": 8,
            "sampling": {"max_tokens": 256},
        },
        "evaluate": {
            "models": [{"label": m[-1], "model": m} for m in models],
            "problems": problems(8, "math"),
            "samples": 4,
            "sampling": {"max_tokens": 256},
            "engine": {"name": "stub", "args": {"slow": 0.002}},
            "resamples": 100,
        },
        "sft": training | {"corpus": mixture, "batch_size": 4},
        "grpo": training
        | {
            "template": "plain",
            "form": "plain",
            "problems": problems(0, "exact"),
            "engine": {"name": "transformers", "dtype": "float32"},
            "steps": 3,
            "prompts": 2,
            "samples": 2,
            "rewards": {"tests.kills:letters": 1.0},
            "sampling": {"max_tokens": 4},
        },
        "distill": training
        | {
            "teacher": models[1],
            "corpus": mixture,
            "batch_size": 4,
            "kind": "forward",
        },
    }
    for name, config in configs.items():
        (home / f"{name}.yaml").write_text(json.dumps(config))
    return data


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.timeout(1800)
def test_kills_lose_and_repeat_nothing(calm: Calm, tmp_path: Path, name: str) -> None:
    draw, killed, finished = random.Random(name), 0, 0
    root = calm.prepare(name, tmp_path / "wh")
    for number in range(8 * KILLS):
        if killed == KILLS:
            break
        if number % 2:
            code = calm.start(name, root, dies_at=draw.randint(1, calm.touches[name])).wait()
        else:
            command = calm.start(name, root)
            command.wait(draw.uniform(0, calm.seconds[name]))
            code = command.kill()
        assert code in (0, -signal.SIGKILL), command.output
        killed += code != 0
        if code == 0:  # it ended before the kill: repeat from the start
            finished += 1
            calm.verify(name, root)
            calm.prepare(name, root)
        elif root.exists() and Warehouse(root).exists():
            assert check(root).damages == [], "a kill is no damage"
    assert killed == KILLS, "most kills missed: the test shows little"
    code, output = calm.run(name, root)
    assert code == 0, output
    calm.verify(name, root)
    print(f"{name}: {killed} kills, {finished} runs that ended before theirs")


@pytest.mark.skipif(not THOROUGH, reason="CURATE_KILLS is not set")
@pytest.mark.parametrize("name", SHARED)
def test_one_of_two_processes_is_killed(calm: Calm, tmp_path: Path, name: str) -> None:
    draw = random.Random(f"two of {name}")
    for _ in range(max(1, KILLS // 3)):
        root = calm.prepare(name, tmp_path / "wh")
        both = [calm.start(name, root) for _ in range(2)]
        both[0].wait(draw.uniform(0, calm.seconds[name]))
        codes = both[0].kill(), both[1].wait()
        assert codes in ((0, 0), (-signal.SIGKILL, 0)), both[1].output
        code, output = calm.run(name, root)
        assert code == 0, output
        calm.verify(name, root)


@pytest.fixture
def namespaces() -> list[str]:
    """Command that runs another one as process 1 of a new namespace; needs root."""
    command = ["unshare", "--pid", "--fork", "--mount-proc"]
    if os.geteuid() or subprocess.run([*command, "true"], capture_output=True).returncode:
        pytest.skip("cannot make a namespace of processes here")
    return command


@pytest.mark.skipif(not THOROUGH, reason="CURATE_KILLS is not set")
def test_two_processes_with_the_same_pid_do_not_disturb_each_other(
    calm: Calm, namespaces: list[str], tmp_path: Path
) -> None:
    """Containers: each sees itself as process 1, and does not see the other."""
    root = tmp_path / "wh"
    code = "import os, sys; assert os.getpid() == 1; from curate import cli; cli.main()"
    words = ["generate", str(calm.home / "generate.yaml"), "engine.args.slow=0.03"]
    arguments = [*namespaces, sys.executable, "-c", code, *words, "-w", str(root)]
    both = [
        subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True, start_new_session=True)
        for _ in range(2)
    ]
    deadline = time.monotonic() + 60
    while len(writers(root)) < 2 and time.monotonic() < deadline:
        assert all(process.poll() is None for process in both)
        time.sleep(0.02)
    assert len(writers(root)) == 2, "each has a name of its own, and leaves the other's files alone"
    assert {name.rpartition("-")[2] for name in writers(root)} == {"1"}
    os.killpg(both[0].pid, signal.SIGKILL)  # `unshare` takes the namespace with it
    both[0].communicate()
    _, output = both[1].communicate(timeout=120)
    assert both[1].returncode == 0, output
    code_, output = calm.run("generate", root)
    assert code_ == 0, output
    calm.verify("generate", root)


def writers(root: Path) -> set[str]:
    """`<machine>-<pid>` of the processes that have a log of rows."""
    names = [path.name.split(".")[1] for path in root.glob("_logs/*/*.log")]
    return {name.rpartition("-")[0] for name in names}
