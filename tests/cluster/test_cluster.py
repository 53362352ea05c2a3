"""Real raylets with workers, and kills of all kinds: each row appears once, and none is lost."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray", reason="needs the extra 'ray'")
pytest.importorskip("psutil")

from curate.job import Context
from curate.warehouse import Warehouse
from tests.cluster.nodes import Nodes, nodes
from tests.generate.test_faults import check, logged

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        "CURATE_TEST_LONG" not in os.environ,
        reason="three raylets need a quiet machine and minutes: set CURATE_TEST_LONG=1",
    ),
]
KILLS = 30


@pytest.fixture(scope="module")
def cluster() -> Iterator[Nodes]:
    with nodes(workers=3) as started:
        yield started


def config_of(model: str, sums: str, samples: int, **engine: object) -> dict[str, Any]:
    return {
        "recipe": "r1-zero",
        "model": model,
        "engine": {"name": "stub", "args": {"at_once": 1, "shuffle": 7, **engine}},
        "problems": {
            "sources": [{"source": "files", "path": sums, "verifier": "math"}],
            "held_out": 0,
        },
        "samples": samples,
        "sampling": {"max_tokens": 256},
    }


def command(tmp_path: Path, config: dict[str, Any], address: str, *more: str) -> list[str]:
    path = tmp_path / "job.yaml"
    path.write_text(json.dumps(config))
    cluster = [f"cluster.ray={address}", "cluster.workers=3"]
    place = ["-w", str(tmp_path / "wh")]
    return [
        sys.executable,
        "-m",
        *(more or ("curate.cli",)),
        "generate",
        str(path),
        *cluster,
        *place,
    ]


def start(arguments: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def finished(process: subprocess.Popen[str], seconds: float = 300) -> str:
    out, err = process.communicate(timeout=seconds)
    assert process.returncode == 0, err
    return out


def wait_for(condition: Any, seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "nothing happened for too long"
        time.sleep(0.1)


def wait_for_rows(root: Path, rows: int, driver: subprocess.Popen[str]) -> None:
    """Wait until a number of rows is finished, while the driver runs."""
    wait_for(lambda: len(logged(root)) > rows or driver.poll() is not None)
    assert driver.poll() is None, driver.communicate()


def test_workers_share_a_job_and_the_driver_seals_and_records(
    tmp_path: Path, stub_model: str, sums: str, cluster: Nodes
) -> None:
    config = config_of(stub_model, sums, 30, slow=0.005)
    out = finished(start(command(tmp_path, config, cluster.address)))
    assert out.startswith("1200 traces (1200 new): 1200 complete")
    check(tmp_path / "wh", samples=30)
    wh = Warehouse(tmp_path / "wh")
    assert all(version.sealed for version in wh.versions("traces"))
    kind, rows, stored = wh.sql("SELECT kind, rows, config FROM jobs").row(0)
    assert (kind, rows) == ("generate", 1200)
    assert "cluster" not in json.loads(stored)
    assert not cluster.actors(), "workers outlive the job"
    # The same command again does nothing, and one machine resumes where the cluster stopped.
    again = finished(start(command(tmp_path, config, cluster.address)))
    assert again.startswith("1200 traces (0 new)")


@pytest.mark.skipif("CURATE_TEST_LONG" not in os.environ, reason="minutes: set CURATE_TEST_LONG=1")
@pytest.mark.parametrize("desk", ["curate.cli", "tests.cluster.desks"])
def test_kills_of_workers_machines_and_drivers(
    tmp_path: Path, stub_model: str, sums: str, cluster: Nodes, desk: str
) -> None:
    """With claims, and with a desk that separates nobody."""
    samples, root = 150, tmp_path / "wh"
    config = config_of(stub_model, sums, samples, slow=0.02)
    arguments = command(tmp_path, config, cluster.address, desk)
    luck, durable = random.Random(desk), set[str]()
    kills = {"worker": 0, "machine": 0, "driver": 0}
    driver = start(arguments)
    while sum(kills.values()) < KILLS // 2:
        wait_for_rows(root, len(durable) + 20, driver)
        time.sleep(luck.uniform(0.0, 0.5))
        durable = logged(root)
        turn = sum(kills.values()) % 5
        if turn == 4:
            driver.send_signal(signal.SIGKILL)
            driver.communicate()
            kills["driver"] += 1
            wait_for(lambda: not cluster.actors(), 60)
            driver = start(arguments)
        elif turn == 2:
            cluster.kill_one()
            cluster.add()
            kills["machine"] += 1
        elif cluster.kill_actor(luck.randrange(3)):
            kills["worker"] += 1
        assert durable <= logged(root), "finished rows were lost by a kill"
    assert min(kills.values()) >= 3, kills
    assert 0 < len(logged(root)) < 40 * samples, "the job ended before the kills did"
    driver.send_signal(signal.SIGKILL)
    driver.communicate()
    fast = config_of(stub_model, sums, samples, slow=0)
    finished(start(command(tmp_path, fast, cluster.address)))
    assert durable <= logged(root)
    check(root, kills=KILLS, samples=samples)


def test_ctrl_c_leaves_no_worker_and_the_same_command_finishes(
    tmp_path: Path, stub_model: str, sums: str, cluster: Nodes
) -> None:
    config = config_of(stub_model, sums, 60, slow=0.02)
    driver = start(command(tmp_path, config, cluster.address))
    wait_for(lambda: len(logged(tmp_path / "wh")) > 50)
    driver.send_signal(signal.SIGINT)
    _, err = driver.communicate(timeout=60)
    assert driver.returncode == 1
    assert "run the same command to resume" in err
    assert "Traceback" not in err
    wait_for(lambda: not cluster.actors(), 30)
    fast = config_of(stub_model, sums, 60, slow=0)
    finished(start(command(tmp_path, fast, cluster.address)))
    check(tmp_path / "wh", kills=5, samples=60)


def test_annotation_evaluation_and_filter_give_the_result_of_one_machine(
    tmp_path: Path, stub_model: str, sums: str, cluster: Nodes
) -> None:
    from curate import api

    places = {"here": tmp_path / "here", "there": tmp_path / "there"}
    spread = {"ray": cluster.address, "workers": 2}
    rows: dict[str, list[Any]] = {}
    for name, root in places.items():
        more: dict[str, Any] = {"cluster": spread} if name == "there" else {}
        config = config_of(stub_model, sums, 8) | {"chunk": 20}
        api.generate(config.pop("recipe"), warehouse=root, **config, **more)
        api.annotate(warehouse=root, **more)
        api.filter("rejection", warehouse=root, **more)
        table = api.evaluate(
            warehouse=root,
            models=[{"label": "stub", "model": stub_model}],
            problems=config["problems"],
            split=None,
            samples=2,
            engine={"name": "stub"},
            **more,
        )
        columns = ["model", "metric", "k", "value", "low", "high"]
        wh = Warehouse(root)
        annotated = wh.sql(
            "SELECT trace_id, verdict, extracted, readable, words, characters FROM annotated "
            "ORDER BY trace_id"
        )
        corpus = wh.sql("SELECT trace_id FROM corpora ORDER BY trace_id")
        rows[name] = [table.select(columns).rows(), annotated.rows(), corpus.rows()]
        assert corpus.height > 0
    assert rows["here"] == rows["there"]
    assert not cluster.actors()


def test_a_failing_worker_gives_one_message(
    tmp_path: Path, stub_model: str, sums: str, cluster: Nodes
) -> None:
    config = config_of(stub_model, sums, 2) | {"engine": {"name": "stub", "args": {"nonsense": 1}}}
    driver = start(command(tmp_path, config, cluster.address))
    _, err = driver.communicate(timeout=120)
    assert driver.returncode in (1, 2)
    assert "nonsense" in err
    assert "Traceback" not in err


def test_a_missing_cluster_gives_one_message(tmp_path: Path, stub_model: str, sums: str) -> None:
    config = config_of(stub_model, sums, 2)
    driver = start(command(tmp_path, config, "127.0.0.1:9"))
    _, err = driver.communicate(timeout=120)
    assert driver.returncode == 2
    assert "no Ray cluster answers at '127.0.0.1:9'" in err
    assert "Traceback" not in err
    with Context(tmp_path / "wh") as context:
        assert context.crew is None
