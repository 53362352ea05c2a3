"""Which device a rank trains on."""

from __future__ import annotations

import os

import torch


def pick_device(name: str = "auto") -> str:
    """Return the device called `name`; `auto` is this rank's GPU if there is one, else the CPU."""
    if name != "auto":
        return name
    return f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"
