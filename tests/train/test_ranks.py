"""One rank or two (gloo), weights held whole or sharded (FSDP2): the same losses, and the same model."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from curate.warehouse import Warehouse  # noqa: E402
from tests.train.test_sft import corpus, weights_of  # noqa: E402

CODE = "import sys; from tests.train.ranks import main; main(*sys.argv[1:])"


def launch(ranks: int, kind: str, model: Path, warehouse: Path, fsdp: bool) -> None:
    """What `torchrun --nproc-per-node=ranks` does: one process a rank, told its place by the environment."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    root = Path(__file__).parents[2]
    processes = []
    for rank in range(ranks):
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        environment = (
            os.environ | {k: str(v) for k, v in place.items()} | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
        )
        command = [sys.executable, "-c", CODE, kind, str(model), str(warehouse), str(int(fsdp))]
        processes.append(
            subprocess.Popen(
                command, env=environment, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
        )
    try:
        outputs = [process.communicate(timeout=240)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert all(p.returncode == 0 for p in processes), "\n".join(text[-2000:] for text in outputs)


@pytest.fixture(scope="module")
def alone(tiny_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The same runs by one process."""
    found = {}
    for kind in ("sft", "grpo"):
        wh = Warehouse(tmp_path_factory.mktemp(f"alone-{kind}"))
        corpus(wh)
        launch(1, kind, tiny_dir, wh.root, False)
        found[kind] = outcome(wh)
    return found


def outcome(wh: Warehouse) -> tuple[dict[str, list[float]], dict[str, Any]]:
    rows = wh.sql(
        "SELECT name, list(value ORDER BY step) AS v FROM metrics WHERE name IN ('loss', 'grad_norm') GROUP BY name"
    )
    path = wh.sql("SELECT path FROM models")["path"][0]
    return dict(rows.iter_rows()), weights_of(wh.root / path)


@pytest.mark.slow
@pytest.mark.parametrize("fsdp", [False, True], ids=["whole", "fsdp"])
@pytest.mark.parametrize("kind", ["sft", "grpo"])
def test_two_ranks_train_as_one(tiny_dir: Path, tmp_path: Path, alone: dict[str, Any], kind: str, fsdp: bool) -> None:
    wh = Warehouse(tmp_path)
    corpus(wh)
    launch(2, kind, tiny_dir, wh.root, fsdp)
    metrics, weights = outcome(wh)
    expected, plain = alone[kind]
    assert len(metrics["loss"]) == len(expected["loss"]) > 1
    for name in ("loss", "grad_norm"):
        assert metrics[name] == pytest.approx(expected[name], rel=1e-4, abs=1e-6), name
    assert plain.keys() == weights.keys()
    # Adam divides by the gradient's size: where that is near nothing, rounding decides the direction of a step
    apart = sum(float((weights[k] - plain[k]).abs().sum()) for k in plain) / sum(v.numel() for v in plain.values())
    assert apart < 1e-5
