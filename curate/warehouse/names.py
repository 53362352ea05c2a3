"""Names inside a warehouse, and the one function that publishes a file under its name.

<root>/<table>/<dataset>/<version>/part-<name>.parquet
<root>/_staging/    files being written, outside every glob
<root>/_trash/      directories that a merge replaced
<root>/<table>/_empty/0/part-empty.parquet    a part without rows, so that no glob is empty
"""

from __future__ import annotations

import datetime as dt
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from curate.atomic import fsync_dir, fsync_file, unique_name
from curate.errors import UsageError

STAGING = "_staging"
TRASH = "_trash"
EMPTY = "_empty"


def is_warehouse(root: Path) -> bool:
    """Whether a directory has the layout of a warehouse."""
    return (root / "traces" / EMPTY).is_dir()


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
    """Stage a file, fsync it and link it under its name. Returns False if the name exists; the
    first one stays."""
    staging = root / STAGING
    staging.mkdir(parents=True, exist_ok=True)
    staged = staging / f"{unique_name()}{target.suffix}"
    try:
        write(staged)
        fsync_file(staged)
        try:
            os.link(staged, target)
        except FileExistsError:
            # On NFS a repeated request can report EEXIST for the link that this very call created.
            return os.path.samefile(staged, target)
        fsync_dir(target.parent)
        return True
    finally:
        staged.unlink(missing_ok=True)
