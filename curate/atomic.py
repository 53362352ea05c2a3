"""Write files and directories that appear under their name only when they are whole.

    write_whole(path, text)                       a small file
    with whole_file(path) as staged: ...          a file that some library writes to a path
    with whole_directory(path) as staged: ...     a directory, such as a checkpoint

Data goes to a temporary name in the same directory, is fsynced, and takes its name by one system
call; then the directory is fsynced, so that the name is durable as well. After a crash the old
content or the new is there, never a part of either. Temporary names start with a dot, end in
`.partial` and carry the machine and the process that write them: `is_abandoned` distinguishes the
remains of a killed process from files that another is writing.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import os
import re
import shutil
import socket
import sys
import time
import uuid
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from curate.errors import CurateError

# Temporary files of other machines count as abandoned after this many seconds: nothing can check
# whether their process is alive.
FOREIGN_SECONDS = 24 * 3600.0
SUFFIX = ".partial"
_UNIQUE = re.compile(r"([0-9a-f]{12})-(\d+)-[0-9a-f]{8}")  # see `unique_name`
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # linux/fs.h


@cache
def machine() -> str:
    """Hash of host name, boot and process-id namespace, within which a process id is unique."""
    facts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        facts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip())
    with contextlib.suppress(OSError):
        facts.append(os.readlink("/proc/self/ns/pid"))
    return hashlib.blake2b("\0".join(facts).encode(), digest_size=6).hexdigest()


def owner() -> str:
    """Name part `<machine>-<pid>` of this process. Not cached: a forked child has its own."""
    return f"{machine()}-{os.getpid()}"


def unique_name() -> str:
    """Name part that no other process or thread on any machine has: `<machine>-<pid>-<random>`."""
    return f"{owner()}-{uuid.uuid4().hex[:8]}"


def temporary_path(target: Path) -> Path:
    """A hidden path next to `target`, unique to this call."""
    return target.with_name(f".{target.name}.{unique_name()}{SUFFIX}")


def is_abandoned(path: Path, foreign_seconds: float = FOREIGN_SECONDS) -> bool:
    """Whether the process that wrote a temporary name is dead; on another machine, whether it is
    old. A name that no writer gives is never abandoned: it is somebody else's."""
    match = _UNIQUE.search(path.name)
    if match is None:
        return False
    if match[1] == machine():
        return int(match[2]) != os.getpid() and not Path(f"/proc/{match[2]}").exists()
    try:
        return time.time() - path.stat().st_mtime > foreign_seconds
    except OSError:
        return False


def fsync_file(path: Path) -> None:
    """Make the content of a file durable."""
    with open(path, "rb") as handle:
        os.fsync(handle.fileno())


def fsync_dir(path: Path) -> None:
    """Make names in a directory durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def disk_full(error: OSError) -> bool:
    """Whether an error means that the disk is full."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def is_inside(path: Path, root: Path) -> bool:
    """Whether a path is inside a directory, with `..` and symbolic links resolved.

    Paths in a warehouse of somebody else may name any place; nothing is written or moved there.
    """
    return path.resolve().is_relative_to(root.resolve())


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn a full disk, a forbidden directory or too many open files into one message."""
    try:
        yield
    except OSError as error:
        if disk_full(error):
            raise CurateError(
                f"the disk that holds {path} is full; what was committed is intact: free some "
                f"space "
                "and run the same command again"
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise CurateError(
                f"cannot write to {path}: {error.strerror}; choose a directory that you may write "
                f"to"
            ) from error
        if error.errno in (errno.EMFILE, errno.ENFILE):
            raise CurateError(
                f"too many open files while writing to {path}; what was committed is intact: raise "
                "the limit (ulimit -n) and run the same command again"
            ) from error
        raise


def publish(staged: Path, target: Path, *, overwrite: bool = True) -> None:
    """Give a finished temporary file its name, durably. FileExistsError if it may not overwrite."""
    fsync_file(staged)
    if overwrite:
        os.replace(staged, target)
    else:
        os.link(staged, target)
    fsync_dir(target.parent)


@contextlib.contextmanager
def whole_file(target: Path, *, overwrite: bool = True) -> Iterator[Path]:
    """A temporary path that becomes `target` when the block ends, or vanishes if it raises.

    With `overwrite=False` an existing target stays and FileExistsError is raised (link(2) decides,
    so that one of several writers wins).
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    staged = temporary_path(target)
    try:
        yield staged
        publish(staged, target, overwrite=overwrite)
    finally:
        staged.unlink(missing_ok=True)


def write_whole(target: Path, content: str | bytes, *, overwrite: bool = True) -> None:
    """Write text (as UTF-8) or bytes to a file; a directory that forbids it gives one message."""
    data = content.encode("utf-8") if isinstance(content, str) else content
    with disk_errors(target), whole_file(target, overwrite=overwrite) as staged:
        staged.write_bytes(data)


@contextlib.contextmanager
def whole_directory(target: Path) -> Iterator[Path]:
    """A temporary directory that becomes `target` when the block ends, or vanishes if it raises.

    An existing directory of that name is replaced: in one system call if the platform has it;
    otherwise a kill between two renames can leave nothing under `target`.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    staged, replaced = temporary_path(target), temporary_path(target)
    try:
        staged.mkdir()
        yield staged
        for path in sorted(staged.rglob("*")):
            if path.is_file():
                fsync_file(path)
            else:
                fsync_dir(path)
        fsync_dir(staged)
        if not target.exists():
            os.rename(staged, target)
        elif not exchange(staged, target):
            os.rename(target, replaced)
            os.rename(staged, target)
        fsync_dir(target.parent)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
        shutil.rmtree(replaced, ignore_errors=True)


def exchange(one: Path, other: Path) -> bool:
    """Swap two paths in one system call (renameat2 with RENAME_EXCHANGE; Linux 3.15, glibc 2.28).

    Returns False if the platform or the file system has no such call; other failures raise OSError.
    """
    if sys.platform != "linux":
        return False
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if call is None:
        return False
    if call(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE):
        code = ctypes.get_errno()
        if code in (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP):
            return False
        raise OSError(code, os.strerror(code), str(one), None, str(other))
    return True
