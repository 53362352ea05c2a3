"""SIGKILL at several moments; another process resumes, and reaches the same weights bit for bit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from curate.warehouse import Warehouse
from tests.train.test_sft import weights_of

CODE = "import sys; from tests.train.ranks import until_killed; until_killed(*sys.argv[1:])"


def run(model: Path, warehouse: Path, at: str) -> int:
    root = Path(__file__).parents[2]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
    command = [sys.executable, "-c", CODE, str(model), str(warehouse), at]
    return subprocess.run(
        command, cwd=root, env=environment, capture_output=True, timeout=240
    ).returncode


@pytest.mark.slow
def test_a_run_killed_and_resumed_in_another_process_ends_in_the_same_weights(
    tiny_dir: Path, tmp_path: Path
) -> None:
    assert run(tiny_dir, tmp_path / "whole", "never") == 0
    for at in ("step:1", "sample:2", "step:3"):
        assert run(tiny_dir, tmp_path / "broken", at) == -signal.SIGKILL
    assert run(tiny_dir, tmp_path / "broken", "never") == 0
    whole, broken = Warehouse(tmp_path / "whole"), Warehouse(tmp_path / "broken")
    paths = [wh.root / wh.sql("SELECT path FROM models")["path"][0] for wh in (whole, broken)]
    first, second = map(weights_of, paths)
    assert all(torch.equal(first[k], second[k]) for k in first)
    query = (
        "SELECT trace_id, completion, reward, advantage "
        "FROM traces JOIN rollouts USING (trace_id) ORDER BY ALL"
    )
    assert whole.sql(query).equals(broken.sql(query))
    losses = "SELECT step, name, value FROM metrics WHERE name NOT LIKE '%second%' ORDER BY ALL"
    assert whole.sql(losses).equals(broken.sql(losses))
