"""A backend in a process of its own: requests go over a socket, completions come back.

Why a process: vLLM binds memory to one NUMA node, patches torch's thread control and opens torch.distributed, all
of which would hobble a trainer in the same process; a backend that crashes takes only itself down and is started again;
several of them are data-parallel replicas; and the engine computes while the caller writes files.

The parent's death ends the child within about a second (it looks whose child it is), so that a SIGKILL leaves nothing
behind. A child is started with a plain `python -m`, never by fork or by importing the caller's script.
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
import weakref
from importlib import import_module
from multiprocessing.connection import Connection
from typing import Any, Protocol

from curate.errors import CurateError
from curate.records import Completion, Request

Job = tuple[
    int, list[int], Request
]  # the child's own number for the request, its prompt ids, the request
Done = tuple[int, Completion]


class Core(Protocol):
    """What a backend offers inside the child. It is stepped, so that completions leave as they finish."""

    def info(self) -> dict[str, Any]: ...
    def add(self, job: Job) -> Done | None: ...  # a completion at once means: refused
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
        self.log = tempfile.NamedTemporaryFile(prefix="curate-engine-", suffix=".log")  # noqa: SIM115
        command = [
            sys.executable,
            "-P",  # the path is ours: a folder `curate` where the user happens to be is not it
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
        """What the backend says of itself, once it runs. `CurateError` where it did not start."""
        while self.info is None:
            try:
                kind, value = self.conn.recv()
            except (EOFError, OSError) as error:
                raise CurateError(
                    f"the engine did not start; its last words:\n{self.last_words()}"
                ) from error
            if kind == "raised":
                raise CurateError(f"the engine did not start: {value}\n{self.last_words()}")
            self.info = value
        return self.info

    def add(self, jobs: list[Job]) -> None:
        self.ready()
        self.in_flight.update((job[0], job) for job in jobs)
        self.conn.send(("add", jobs))

    @property
    def has_arrived(self) -> bool:
        """Whether something that finished is here already, so that `receive` will not wait."""
        return bool(self._arrived)

    def receive(self) -> list[Done]:
        """What finished, waiting for the next message. EOFError or OSError where the child is gone."""
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
        """A method of the backend, after everything sent before it."""
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
                f"the engine died during {method}; its last words:\n{self.last_words()}"
            ) from error
        if kind == "raised":
            raise CurateError(f"{method} failed in the engine: {value}")
        return value

    def abort(self) -> None:
        """Forgets everything in flight, in the child and here."""
        self.call("abort")
        self.in_flight.clear()
        self._arrived.clear()

    def last_words(self, lines: int = 15) -> str:
        """The end of what the child printed."""
        try:
            with open(self.log.name, errors="replace") as stream:
                return "".join(stream.readlines()[-lines:]).strip() or "(it printed nothing)"
        except OSError:
            return "(its log is gone)"

    def close(self, seconds: float = 10.0) -> None:
        if (
            self.info is not None
        ):  # one that is still starting reads nothing, and has nothing to tidy up
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
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C is the parent's to handle; it then closes us
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
        import traceback

        traceback.print_exc()
        outbox.put(("raised", f"{type(error).__name__}: {error}"))
    outbox.put(None)
    sender.join(5)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(
        0
    )  # a backend's own exit handlers can hang, and there is nothing left that they should save


def serve(core: Core, conn: Connection, outbox: queue.SimpleQueue[Any]) -> None:
    """Takes what came, makes one step, hands out what finished; for ever."""
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
    """Sends from a thread of its own: a caller that does not read for a while must not stop the engine."""
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
