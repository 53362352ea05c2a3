"""A backend in its own process: requests go over a socket, completions come back.

Why a process: vLLM binds memory to one NUMA node, patches torch's thread control and opens
torch.distributed, all of which would slow down a trainer in the same process. A backend that
crashes takes only itself down and is started again. Several of them are data-parallel replicas. And
the engine computes while the caller writes files.

The child ends within about a second of its parent's death (it polls its parent's pid), so a SIGKILL
leaves nothing behind. It is started with a plain `python -m`, never by fork or by importing the
caller's script.
"""

from __future__ import annotations

import os
import pickle
import queue
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import weakref
from importlib import import_module
from multiprocessing.connection import Connection
from typing import Any, Protocol

from curate.errors import CurateError
from curate.records import Completion, Request

Job = tuple[
    int, list[int], Request
]  # the request's number in the child, its prompt ids, the request
Done = tuple[int, Completion]


class Core(Protocol):
    """A backend inside the child. It is stepped, so that completions leave as they finish."""

    def info(self) -> dict[str, Any]: ...
    def add(self, job: Job) -> Done | None: ...  # an immediate completion is a refusal
    def busy(self) -> bool: ...
    def step(self) -> list[Done]: ...
    def abort(self) -> None: ...


# --- the parent's side


class Child:
    """One child process and the connection to it."""

    def __init__(
        self, core: str, model_dir: str, config: dict[str, Any], env: dict[str, str]
    ) -> None:
        ours, theirs = socket.socketpair()
        self.log = tempfile.NamedTemporaryFile(  # noqa: SIM115
            prefix="curate-engine-", suffix=".log"
        )
        command = [
            sys.executable,
            "-P",  # the path is ours: not that of a folder `curate` in the current directory
            "-m",
            "curate.engines.child",
            str(theirs.fileno()),
            str(os.getpid()),
        ]
        self.process = subprocess.Popen(
            command,
            pass_fds=[theirs.fileno()],
            env={
                **os.environ,
                **env,
                "PYTHONPATH": os.pathsep.join(p or os.getcwd() for p in sys.path),
            },
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=self.log,
        )
        theirs.close()
        self.conn = Connection(ours.detach())
        self.finalizer = weakref.finalize(self, _end, self.process, self.conn)
        self.in_flight: dict[int, Job] = {}
        self.info: dict[str, Any] | None = None
        self._arrived: list[Done] = []
        self.conn.send((core, model_dir, config))

    def ready(self) -> dict[str, Any]:
        """Wait for the backend and return what it reports. CurateError if it did not start."""
        while self.info is None:
            try:
                kind, value = self.conn.recv()
            except (EOFError, OSError) as error:
                raise CurateError(
                    f"the engine did not start; the end of its log:\n{self.log_tail()}"
                ) from error
            if kind == "raised":
                raise CurateError(f"the engine did not start: {value}\n{self.log_tail()}")
            self.info = value
        return self.info

    def add(self, jobs: list[Job]) -> None:
        self.ready()
        self.in_flight.update((job[0], job) for job in jobs)
        self.conn.send(("add", jobs))

    @property
    def has_arrived(self) -> bool:
        """Whether completions have arrived, so that `receive` does not wait."""
        return bool(self._arrived)

    def receive(self) -> list[Done]:
        """Completions of the next message, waiting for it.

        EOFError or OSError if the child is gone.
        """
        if self._arrived:
            done, self._arrived = self._arrived, []
        else:
            kind, done = self.conn.recv()
            if kind == "raised":
                raise EOFError(done)
        for number, _ in done:
            self.in_flight.pop(number, None)
        return done

    def call(self, method: str, *args: Any) -> Any:
        """Call a method of the backend, after everything sent before."""
        self.ready()
        try:
            self.conn.send(("call", (method, args)))
            while True:
                kind, value = self.conn.recv()
                if kind == "done":
                    self._arrived += value
                    continue
                break
        except (EOFError, OSError) as error:
            raise CurateError(
                f"the engine died during {method}; the end of its log:\n{self.log_tail()}"
            ) from error
        if kind == "raised":
            raise CurateError(f"{method} failed in the engine: {value}")
        return value

    def abort(self) -> None:
        """Drop everything in flight, in the child and here."""
        self.call("abort")
        self.in_flight.clear()
        self._arrived.clear()

    def log_tail(self, lines: int = 15) -> str:
        """The last lines that the child printed."""
        try:
            with open(self.log.name, errors="replace") as stream:
                return "".join(stream.readlines()[-lines:]).strip() or "(it printed nothing)"
        except OSError:
            return "(its log is gone)"

    def close(self, seconds: float = 10.0) -> None:
        # A child that is still starting does not read messages, and has nothing to clean up.
        if self.info is not None:
            try:
                self.conn.send(("close", None))
                self.process.wait(seconds)
            except (OSError, subprocess.TimeoutExpired):
                pass
        self.finalizer()
        self.log.close()


def _end(process: subprocess.Popen[bytes], conn: Connection) -> None:
    conn.close()
    if process.poll() is None:
        process.kill()
    process.wait()


# --- the child's side


def main() -> None:
    conn = Connection(int(sys.argv[1]))
    parent = int(sys.argv[2])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C and closes this child
    threading.Thread(target=_die_with, args=(parent,), daemon=True).start()
    outbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
    sender = threading.Thread(target=_send_all, args=(conn, outbox), daemon=True)
    sender.start()
    try:
        path, model_dir, config = conn.recv()
        module, _, name = path.partition(":")
        core: Core = getattr(import_module(module), name)(model_dir, config)
        outbox.put(("ready", core.info()))
        serve(core, conn, outbox)
    except (EOFError, OSError):
        pass  # the parent has gone
    except BaseException as error:
        traceback.print_exc()
        outbox.put(("raised", f"{type(error).__name__}: {error}"))
    outbox.put(None)
    sender.join(5)
    sys.stdout.flush()
    sys.stderr.flush()
    # A backend's own exit handlers can hang, and nothing is left for them to save.
    os._exit(0)


def serve(core: Core, conn: Connection, outbox: queue.SimpleQueue[Any]) -> None:
    """Take messages, make one step, send completions, until the parent closes the connection."""
    while True:
        while not core.busy() or conn.poll(0):
            kind, value = conn.recv()
            if kind == "close":
                return
            if kind == "add":
                refused = [done for job in value if (done := core.add(job))]
                if refused:
                    outbox.put(("done", refused))
            else:
                method, args = value
                try:
                    outbox.put(("result", getattr(core, method)(*args)))
                except Exception as error:
                    outbox.put(("raised", f"{type(error).__name__}: {error}"))
        if finished := core.step():
            outbox.put(("done", finished))


def _send_all(conn: Connection, outbox: queue.SimpleQueue[Any]) -> None:
    """Send from a separate thread: a caller that does not read for a while must not stop the
    engine.
    """
    while (message := outbox.get()) is not None:
        try:
            conn.send_bytes(pickle.dumps(message, protocol=5))
        except OSError:
            os._exit(0)


def _die_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(0)


if __name__ == "__main__":
    main()
