"""A stage of a pipeline by several ranks: two on CPUs (gloo), started by `curate run` itself."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from curate.errors import CurateError, UsageError
from curate.job import Context
from curate.pipeline.config import load_pipeline
from curate.pipeline.drawing import planned
from curate.pipeline.runner import Pipeline
from curate.train import launch as module
from curate.warehouse import Warehouse


def pipeline(folder: Path, model: Path, sums: str, **grpo: Any) -> Path:
    compute = {"precision": "fp32", "device": "cpu"}
    config = {
        "name": "ranks",
        "engine": {"name": "transformers", "dtype": "float32"},
        "stages": {
            "problems": {
                "do": "problems",
                "sources": [{"source": "files", "path": sums, "verifier": "math"}],
            },
            "solutions": {
                **{"do": "generate", "recipe": "cold-start", "source": "solutions", "limit": 8},
                **{"problems": "@problems", "template": "plain"},
            },
            "corpus": {
                "do": "filter",
                "rules": "unfiltered",
                "traces": ["@solutions"],
                "template": "plain",
            },
            "sft": {
                **{
                    "do": "sft",
                    "model": str(model),
                    "corpus": "@corpus",
                    "batch_size": 4,
                    "compute": compute,
                },
                **{"processes": 2},
            },
            "grpo": {
                **{
                    "do": "grpo",
                    "model": "@sft",
                    "problems": "@problems",
                    "template": "plain",
                    "form": "plain",
                },
                **{
                    "steps": 1,
                    "prompts": 2,
                    "samples": 4,
                    "sampling": {"max_tokens": 8},
                    "compute": compute,
                },
                **{
                    "rewards": {"tests.train.test_launch:letters": 1.0},
                    "processes": 2,
                    "optim": {"lr": 1e-3},
                },
                **grpo,
            },
        },
    }
    path = folder / "ranks.yaml"
    path.write_text(json.dumps(config))
    return path


def letters(frame: Any) -> Any:
    """Reward that differs within a group, even for a model with random weights."""
    return frame["completion"].str.count_matches("[a-z]").cast(float) / 8


@pytest.fixture
def calm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.chdir(Path(__file__).parents[2])


@pytest.mark.slow
def test_two_ranks_give_the_result_of_one_and_finish_the_stage_for_any_number(
    tiny_dir: Path, tmp_path: Path, sums: str, calm: None
) -> None:
    path = pipeline(tmp_path, tiny_dir, sums)
    one = ["stages.sft.processes=1", "stages.grpo.processes=1"]
    outcomes = []
    for name, overrides in (("two", []), ("one", one)):
        config, stages = load_pipeline(path, overrides)
        assert [s.processes for s in stages] == [1, 1, 1] + ([1, 1] if overrides else [2, 2])
        with Context(tmp_path / name) as context:
            line = Pipeline(config, stages, context)
            if not overrides:
                sizes = [p.size for p in planned(line)][3:]
                assert sizes == [
                    "1 epoch of the kept traces, 2 processes",
                    "1 round of 2 x 4 = 8 rollouts, 2 processes",
                ]
            done = line.run()
            wh = context.warehouse
            losses = wh.sql("SELECT step, value FROM metrics WHERE name = 'loss' ORDER BY ALL")[
                "value"
            ].to_list()
            outcomes.append((done["sft"].facts["run_id"], losses))
            texts = wh.sql(
                "SELECT count(*) AS n, max(abs(advantage)) AS most "
                "FROM traces JOIN rollouts USING (trace_id)"
            )
            assert texts.row(0)[0] == 8
            assert texts["most"][0] > 0
    (run_two, two), (run_one, alone) = outcomes
    assert run_two == run_one
    assert two == pytest.approx(alone, abs=1e-4)
    # the number of ranks is not part of the config
    config, stages = load_pipeline(path, one)
    with Context(tmp_path / "two") as context:
        assert all(p.state == "done" for p in planned(Pipeline(config, stages, context)))


@pytest.mark.skipif("CURATE_TEST_LONG" not in os.environ, reason="minutes: set CURATE_TEST_LONG=1")
@pytest.mark.slow
def test_two_nodes_make_what_one_machine_makes(
    tiny_dir: Path, tmp_path: Path, sums: str, calm: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each node runs the same command on one warehouse; their ranks meet at an address."""
    path = pipeline(tmp_path, tiny_dir, sums)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        monkeypatch.setenv("MASTER_PORT", str(probe.getsockname()[1]))
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    losses = []
    for name, nodes in (("two", 2), ("one", 1)):
        data = ["--only", "problems", "--only", "solutions", "--only", "corpus"]
        command = [sys.executable, "-m", "curate.cli", "run", str(path), "-w", str(tmp_path / name)]
        subprocess.run([*command, *data], check=True, capture_output=True)
        train = ["stages.sft.processes=1", f"stages.sft.nodes={nodes}", "--only", "sft"]
        started = [
            subprocess.Popen([*command, *train], stderr=subprocess.PIPE, text=True)
            for _ in range(nodes)
        ]
        errors = [process.communicate(timeout=250)[1] for process in started]
        assert [process.returncode for process in started] == [0] * nodes, errors
        query = "SELECT run_id, step, value FROM metrics WHERE name = 'loss' ORDER BY ALL"
        losses.append(Warehouse(tmp_path / name).sql(query))
    two, one = losses
    assert two.select("run_id", "step").rows() == one.select("run_id", "step").rows()
    assert two["value"].to_list() == pytest.approx(one["value"].to_list(), abs=1e-4)


def test_nodes_without_an_address_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    monkeypatch.delenv("SLURM_LAUNCH_NODE_IPADDR", raising=False)
    with pytest.raises(UsageError, match="stage x: nodes is 2, and no address"):
        module.rendezvous("sft", {}, "stage x", 2)
    monkeypatch.setenv("MASTER_ADDR", "node7")
    monkeypatch.setenv("WORLD_SIZE", "2")
    options = module.rendezvous("sft", {"a": 1}, "stage x", 2)
    assert "--rdzv-endpoint=node7:29400" in options
    assert options == module.rendezvous("sft", {"a": 1}, "stage x", 2), "every node must agree"
    assert "WORLD_SIZE" not in os.environ


@pytest.mark.slow
def test_a_failed_rank_is_one_message_and_ranks_die_with_their_parent(
    tiny_dir: Path, tmp_path: Path, sums: str, calm: None
) -> None:
    with pytest.raises(CurateError, match="training by 2 processes ended with exit code 1"):
        module.launch(
            "sft", {"model": str(tiny_dir), "corpus": "no-such"}, tmp_path / "wh", 2, "stage x"
        )
    path = pipeline(tmp_path, tiny_dir, sums, steps=1000, show_every=0)
    command = [sys.executable, "-m", "curate.cli", "run", str(path), "-w", str(tmp_path / "killed")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stderr is not None
    deadline = time.monotonic() + 200
    while not list((tmp_path / "killed" / "rollouts").glob("grpo/*/part-*")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.2)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    while alive(str(tmp_path / "killed")):
        assert time.monotonic() < deadline, "ranks go on without who started them"
        time.sleep(0.2)
    process.stderr.close()
    assert len(Warehouse(tmp_path / "killed").sql("SELECT * FROM rollouts")) >= 8


def alive(word: str) -> list[str]:
    """Return the processes with `word` in their command line."""
    commands = []
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            text = place.read_text()
        except OSError:
            continue
        if word in text:
            commands.append(text)
    return commands


def test_more_ranks_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "gpu_count", lambda: 1)
    with pytest.raises(UsageError, match="processes is 8, but this machine has 1 GPUs"):
        module.launch("sft", {}, tmp_path, 8, "stage sft")


@pytest.mark.parametrize(
    ("stage", "value"), [("problems", 2), ("sft", 0), ("sft", "two"), ("sft", True)]
)
def test_processes_must_be_a_number_and_belong_to_training(
    tmp_path: Path, tiny_dir: Path, sums: str, stage: str, value: Any
) -> None:
    path = pipeline(tmp_path, tiny_dir, sums)
    data = json.loads(path.read_text())
    data["stages"][stage]["processes"] = value
    path.write_text(json.dumps(data))
    with pytest.raises(UsageError, match=f"stage {stage}: processes"):
        load_pipeline(path)
