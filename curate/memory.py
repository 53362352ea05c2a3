"""How much memory a job may hold: a setting such as `2GB`, and what is known of the process itself."""

from __future__ import annotations

import ctypes
import re
from functools import cache

from curate.errors import UsageError

DEFAULT = "2GB"
# What Python, Polars, DuckDB and the plugins take before any data is read, in MB.
BASE = 400


def megabytes(text: str, least: int) -> float:
    """MB of `500MB` or `2GB`; `UsageError` for anything else, and below `least`."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([MG])i?B\s*", text)
    if found is None:
        raise UsageError(f"memory: {text}: write 500MB or 2GB")
    size = float(found.group(1)) * (1000 if found.group(2) == "G" else 1)
    if size < least:
        raise UsageError(f"memory: {text}: at least {least}MB are needed")
    return size


def text_bytes(memory: str) -> int:
    """Bytes of text that annotation may hold at once: a part as read, as annotated, as written, and its signals."""
    return int(min(64 << 20, (megabytes(memory, 600) - BASE) * 1_000_000 / 12))


@cache
def keep_level() -> None:
    """Lets all threads of this process allocate from two arenas, where the C library is glibc.

    By default each thread may have its own, and what one part of the data freed there is not used for the next: over a
    hundred parts, annotation grew from 0.8 to 1.4 GB.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 2)


_M_ARENA_MAX = -8  # malloc.h
