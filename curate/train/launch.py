"""One training by several processes: `torchrun` in a child, which runs the command that a user would type.

    curate train KIND -c CONFIG -w WAREHOUSE      on every rank

The run's identity does not depend on how many ranks there are, so that whoever started the child finds the finished run
in the warehouse as if it had trained by itself, and another number of ranks goes on where this one was killed.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from curate.errors import CurateError, UsageError

TRAINED = ("sft", "distill", "grpo")


def launch(
    kind: str, config: Mapping[str, Any], warehouse: Path, processes: int, where: str
) -> None:
    """Train `kind` by so many ranks on this machine, and come back when it is done.

    Raises UsageError where there are fewer GPUs than ranks, CurateError where a rank failed: it has said why.
    """
    gpus = gpu_count()
    if 0 < gpus < processes:
        raise UsageError(
            f"{where}: processes is {processes}, and this machine has {gpus} GPUs: name no more than those"
        )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.yaml"
        path.write_text(json.dumps(dict(config), default=str), encoding="utf-8")
        ranks = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            f"--nproc-per-node={processes}",
        ]
        command = [*ranks, "-m", "curate.cli", "train", kind, "-c", str(path), "-w", str(warehouse)]
        # What the ranks print goes where progress goes: stdout is for the results of this process.
        child = subprocess.Popen(command, stdout=sys.stderr, preexec_fn=_die_with_parent)
        try:
            code = child.wait()
        except BaseException:
            child.terminate()  # torchrun ends its ranks
            child.wait()
            raise
    if code:
        raise CurateError(
            f"{where}: training by {processes} processes ended with {code}; the first error above is its cause. What "
            "was committed is kept: run the same command again, and it goes on from the last checkpoint"
        )


def gpu_count() -> int:
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def _die_with_parent() -> None:
    """Where this process is killed, Linux ends torchrun, and torchrun its ranks: no two runs write one checkpoint."""
    import ctypes
    import signal

    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
