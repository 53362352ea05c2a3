"""The memory limit of a job: parse a setting such as `2GB`, and tune the allocator."""

from __future__ import annotations

import ctypes
import re
from functools import cache

from curate.errors import UsageError

DEFAULT = "2GB"
# MB that Python, Polars, DuckDB and the plugins take before any data is read.
BASE = 400
_M_ARENA_MAX = -8  # malloc.h


def megabytes(text: str, least: int) -> float:
    """Return the MB of `500MB` or `2GB`. UsageError for anything else, and for less than `least`
    MB."""
    match = re.fullmatch(r"\s*(\d{1,9}(?:\.\d{1,9})?)\s*([MG])i?B\s*", text)
    if match is None:
        raise UsageError(f"memory: {text}: write 500MB or 2GB")
    size = float(match.group(1)) * (1000 if match.group(2) == "G" else 1)
    if size < least:
        raise UsageError(f"memory: {text}: at least {least}MB are needed")
    return size


def text_bytes(memory: str) -> int:
    """Bytes of text that annotation may hold at once.

    A part exists as read, as annotated and as written, next to its signals: about twelve times its
    text.
    """
    return int(min(64 << 20, (megabytes(memory, 600) - BASE) * 1_000_000 / 12))


@cache
def limit_malloc_arenas() -> None:
    """Let all threads of this process allocate from two arenas, if the C library is glibc.

    By default each thread may have its own arena, and memory freed in one is not used by another:
    over a hundred parts, annotation grew from 0.8 to 1.4 GB.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 2)
