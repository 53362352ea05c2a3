"""Two containers on one share may have the same process ids: neither sweeps away what the other
writes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

WRITER = """
import sys, time
from pathlib import Path
from curate.atomic import whole_directory
folder = Path(sys.argv[1])
with whole_directory(folder / "checkpoints" / "run" / "step-000001") as staged:
    (staged / "trainer.pt").write_bytes(b"half")
    (folder / "begun").touch()
    while not (folder / "swept").exists():
        time.sleep(0.02)
    (staged / "trainer.pt").write_bytes(b"whole")
"""
SWEEPER = """
import sys, time
from pathlib import Path
from curate.train.checkpoints import Checkpoints
from curate.warehouse import Warehouse
folder = Path(sys.argv[1])
while not (folder / "begun").exists():
    time.sleep(0.02)
Checkpoints(folder, "run")._sweep()
Warehouse(folder).clean()
(folder / "swept").touch()
"""
NAMESPACE = ["unshare", "--pid", "--fork", "--mount-proc"]


def test_a_writer_in_another_pid_namespace_is_left_alone(tmp_path: Path) -> None:
    try:
        allowed = subprocess.run([*NAMESPACE, "true"], capture_output=True).returncode == 0
    except FileNotFoundError:
        allowed = False
    if not allowed:
        pytest.skip("process-id namespaces are not permitted here")
    processes = [
        subprocess.Popen(
            [*NAMESPACE, sys.executable, "-c", script, str(tmp_path)], stderr=subprocess.PIPE
        )
        for script in (WRITER, SWEEPER)
    ]
    errors = [process.communicate(timeout=120)[1].decode() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    written = tmp_path / "checkpoints" / "run" / "step-000001" / "trainer.pt"
    assert written.read_bytes() == b"whole"
