"""Number of cores that this process may use: on a shared node, fewer than it has."""

from __future__ import annotations

import contextlib
import os
from math import ceil
from pathlib import Path

from curate.errors import UsageError

VARIABLE = "CURATE_CORES"
# Processor time per period of this process's control group (cgroup v2, as a container sees it).
QUOTA = Path("/sys/fs/cgroup/cpu.max")


def cores() -> int:
    """Return `$CURATE_CORES`, else the cores that this process may run on, bounded by the quota of
    its container. At least 1.
    """
    setting = os.environ.get(VARIABLE)
    if setting:
        if not setting.isdigit() or int(setting) < 1:
            raise UsageError(f"{VARIABLE}={setting}: give a number of cores, 1 or more")
        return int(setting)
    available = len(os.sched_getaffinity(0))
    with contextlib.suppress(OSError, ValueError):
        quota, period = QUOTA.read_text(encoding="ascii").split()
        if quota != "max":
            available = min(available, ceil(int(quota) / int(period)))
    return max(1, available)
