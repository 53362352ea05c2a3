"""A directory as a store: an object is written to a temporary file, fsynced, and named by link."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from pathlib import Path

from curate.atomic import fsync_dir, fsync_file, unique_name, write_whole
from curate.errors import UsageError
from curate.store.base import Entry, Readable

STAGING = "_staging"
# link(2) on a file system without hard links: SMB, FUSE over object storage, some appliances.
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


class LocalStore:
    """Objects as files below `root`. Unfinished files are in `_staging`, outside every glob."""

    def __init__(self, root: Path) -> None:
        self.root, self.url = root, str(root)

    def staged(self, suffix: str = "") -> Path:
        """A path on the same file system for a file that `put_if_absent` will move."""
        staging = self.root / STAGING
        staging.mkdir(parents=True, exist_ok=True)
        return staging / f"{unique_name()}{suffix}"

    def put_if_absent(self, key: str, data: bytes | Path) -> bool:
        target = self.root / key
        staged = data if isinstance(data, Path) else self.staged(target.suffix)
        try:
            if not isinstance(data, Path):
                staged.write_bytes(data)
                target.parent.mkdir(parents=True, exist_ok=True)
            fsync_file(staged)
            try:
                os.link(staged, target)
            except FileExistsError:
                # On NFS a repeated request can report EEXIST for the link that this same call
                # created.
                return os.path.samefile(staged, target)
            except OSError as error:
                if error.errno in _NO_LINKS and os.access(target.parent, os.W_OK):
                    raise UsageError(
                        f"the file system of {self.root} has no hard links ({error.strerror}), by "
                        "which a part appears whole and once: choose a directory on another one, "
                        "or a bucket (s3://bucket/path)"
                    ) from error
                raise
            fsync_dir(target.parent)
            return True
        finally:
            staged.unlink(missing_ok=True)

    def put(self, key: str, data: bytes) -> None:
        write_whole(self.root / key, data)

    def get(self, key: str) -> bytes:
        return (self.root / key).read_bytes()

    def has(self, key: str) -> bool:
        return (self.root / key).is_file()

    def list(self, prefix: str) -> list[Entry]:
        entries = []
        for folder, _, names in os.walk(self.root / prefix):
            for name in names:
                path = Path(folder) / name
                try:
                    stat = path.stat()
                except FileNotFoundError:  # deleted meanwhile
                    continue
                key = path.relative_to(self.root).as_posix()
                entries.append(Entry(key, stat.st_size, stat.st_mtime))
        return sorted(entries)

    def delete(self, keys: Sequence[str]) -> None:
        for key in keys:
            (self.root / key).unlink(missing_ok=True)

    def readable(self, keys: Sequence[str]) -> Readable:
        return Readable([str(self.root / key) for key in keys])
