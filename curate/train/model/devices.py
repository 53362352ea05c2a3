"""The device that a rank trains on, and errors about its memory."""

from __future__ import annotations

import os

import torch


def pick_device(name: str = "auto") -> str:
    """Return the device called `name`; `auto` is this rank's GPU if there is one, else the CPU."""
    if name != "auto":
        return name
    return f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that a device or the machine has no memory left."""
    text = str(error).lower()
    message = "out of memory" in text or "can't allocate memory" in text
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and message)
