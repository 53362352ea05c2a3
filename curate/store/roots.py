"""Roots of warehouses as paths: `s3://bucket/prefix` is the path `s3:/bucket/prefix`.

A path below such a root has a parent, a stem and a suffix like any other, and `located` returns its
store and key. Methods of `Path` that access the disk do not work on it: use curate/store/paths.py,
which works with either kind.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from curate.errors import UsageError
from curate.store.base import Store
from curate.store.local import LocalStore

if TYPE_CHECKING:
    from curate.store.objects import ObjectStore

_EXAMPLES = "s3://bucket/path, gs://bucket/path or az://account/container/path"


def is_remote(path: Path) -> bool:
    """Whether a path names something in object storage."""
    return path.parts[:1] in (("s3:",), ("gs:",), ("az:",))


def parse_root(root: str | Path) -> Path:
    """Return the root of a warehouse: an absolute directory, or a bucket with a prefix."""
    path = Path(root)
    if is_remote(path):
        if len(path.parts) < len(_bucket_parts(path)) or ".." in path.parts or len(path.parts) < 2:
            raise UsageError(f"a warehouse at {root}: give a bucket and a path, as in {_EXAMPLES}")
        return path
    if path.parts and path.parts[0].endswith(":") and not Path(path.parts[0]).exists():
        raise UsageError(f"a warehouse at {root}: give a directory, or a bucket as in {_EXAMPLES}")
    return path.absolute()


def url_of(path: Path) -> str:
    """Return a path as users write it: `s3://bucket/key`, or the path on a disk."""
    return f"{path.parts[0]}//{'/'.join(path.parts[1:])}" if is_remote(path) else str(path)


def open_store(root: Path) -> Store:
    """The store of a warehouse. Object storage needs the extra `s3` (ModuleNotFoundError)."""
    if not is_remote(root):
        return LocalStore(root)
    bucket, prefix = located(root)
    return bucket.below(prefix)


def located(path: Path) -> tuple[ObjectStore, str]:
    """Return the bucket's store and the key of a remote path."""
    bucket = _bucket_parts(path)
    return _bucket(bucket), "/".join(path.parts[len(bucket) :])


def _bucket_parts(path: Path) -> tuple[str, ...]:
    """Leading components of a remote path that name the bucket; Azure puts the account first."""
    return path.parts[: 3 if path.parts[0] == "az:" else 2]


@lru_cache(maxsize=64)
def _bucket(parts: tuple[str, ...]) -> ObjectStore:
    from curate.store.objects import ObjectStore

    return ObjectStore(f"{parts[0]}//{'/'.join(parts[1:])}")
