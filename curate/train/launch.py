"""Train by several processes: a child `torchrun` runs the command that a user would type.

    curate train KIND -c CONFIG -w WAREHOUSE      on every rank

A run's id does not depend on the number of ranks. The parent reads the finished run from the
warehouse as if it had trained itself, and a killed run can resume with another number of ranks.

With several nodes, each of them runs the same command on a warehouse that all share, and their
ranks meet at one of them (`MASTER_ADDR`, as Slurm scripts and Kubernetes operators set it).
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from curate.errors import CurateError, UsageError
from curate.warehouse.identity import digest

PORT = 29400  # of the rendezvous, if MASTER_PORT does not name another


def launch(
    kind: str,
    config: Mapping[str, Any],
    warehouse: Path,
    processes: int,
    where: str,
    nodes: int = 1,
) -> None:
    """Train `kind` by several ranks on this machine, together with those of other nodes if there
    are several; returns when training is done.

    Raises UsageError if there are fewer GPUs than ranks, or no address to meet at; CurateError if a
    rank failed (which has printed its error).
    """
    meeting = rendezvous(kind, config, where, nodes)
    gpus = gpu_count()
    if 0 < gpus < processes:
        raise UsageError(
            f"{where}: processes is {processes}, but this machine has {gpus} GPUs: use at most "
            f"{gpus} processes"
        )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.yaml"
        path.write_text(json.dumps(dict(config), default=str), encoding="utf-8")
        ranks = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            *meeting,
            f"--nproc-per-node={processes}",
        ]
        command = [*ranks, "-m", "curate.cli", "train", kind, "-c", str(path), "-w", str(warehouse)]
        # Ranks print to stderr, as progress does: stdout is for the results of this process.
        child = subprocess.Popen(command, stdout=sys.stderr, preexec_fn=_die_with_parent)
        try:
            code = child.wait()
        except BaseException:
            child.terminate()  # torchrun ends its ranks
            child.wait()
            raise
    if code:
        raise CurateError(
            f"{where}: training by {processes} processes ended with exit code {code}; the first "
            "error above is the cause. Committed work is kept: run the same command again to "
            "resume from the last checkpoint"
        )


def rendezvous(kind: str, config: Mapping[str, Any], where: str, nodes: int) -> list[str]:
    """Options of torchrun by which the ranks of all nodes find each other."""
    if nodes == 1:
        return ["--standalone"]
    address = os.environ.get("MASTER_ADDR") or os.environ.get("SLURM_LAUNCH_NODE_IPADDR")
    if not address:
        raise UsageError(
            f"{where}: nodes is {nodes}, and no address says where their ranks meet: set "
            "MASTER_ADDR to the name of one of the nodes (and MASTER_PORT, by default "
            f"{PORT}) for the command on every node"
        )
    # The launcher may have numbered the nodes as ranks; the ranks are those of torchrun.
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        os.environ.pop(name, None)
    port = os.environ.get("MASTER_PORT", str(PORT))
    return [
        f"--nnodes={nodes}",
        "--rdzv-backend=c10d",
        f"--rdzv-endpoint={address}:{port}",
        f"--rdzv-id=curate-{digest(kind, config)[:16]}",
    ]


def gpu_count() -> int:
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def _die_with_parent() -> None:
    """Have Linux terminate torchrun (which ends its ranks) if this process is killed.

    Otherwise a second run could write the same checkpoints.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
