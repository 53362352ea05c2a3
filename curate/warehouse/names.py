"""Names inside a warehouse, and the one function that publishes a file under its name.

<root>/<table>/<dataset>/<version>/part-<name>.parquet
<root>/_staging/    files being written, outside every glob
<root>/_trash/      directories that a merge replaced
<root>/<table>/_empty/0/part-empty.parquet    a part without rows, so that no glob is empty
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from curate.atomic import unique_name
from curate.errors import UsageError
from curate.store import open_store
from curate.store.local import STAGING as STAGING
from curate.store.paths import is_folder, scratch

LOGS = "_logs"
JOBS = "_jobs"
TRASH = "_trash"
EMPTY = "_empty"


def is_warehouse(root: Path) -> bool:
    """Whether a directory has the layout of a warehouse."""
    return is_folder(root / "traces" / EMPTY)


def now() -> dt.datetime:
    """The current time in UTC."""
    return dt.datetime.now(dt.UTC)


def check_name(kind: str, name: str) -> str:
    """Return a name that is safe as a directory and in a glob; raises UsageError for any other."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,120}", name):
        raise UsageError(
            f"{kind} '{name}': use letters, digits and . _ @ + - only, and begin with a letter or "
            f"digit"
        )
    return name


def part_name(path: Path) -> str:
    """The name of a part from its path: `part-<name>.parquet`."""
    return path.stem.removeprefix("part-")


def publish_file(root: Path, target: Path, write: Callable[[Path], Any]) -> bool:
    """Write a file aside and publish it under its name, whole. Returns False if the name exists;
    the first one stays."""
    store = open_store(root)
    folder = scratch(root)
    folder.mkdir(parents=True, exist_ok=True)
    staged = folder / f"{unique_name()}{target.suffix}"
    try:
        write(staged)
        return store.put_if_absent(target.relative_to(root).as_posix(), staged)
    finally:
        staged.unlink(missing_ok=True)
