"""The worker process: reads groups of checks from standard input, writes one line per verdict to
standard output.

Frames are a length and JSON, never pickle: a process that handled hostile text must only be able to
send data. The parent keeps the time. As a second line of defence, kernel timers end this process if
an item overruns and no parent is left to kill it; it also exits when its parent is gone.
"""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import struct
import sys
import time
from typing import Any

from curate.records import Problem
from curate.verify.registry import verifier_named

LENGTH = struct.Struct("<I")
# The limit counts processor time. The wall-clock limit is this many times as long: enough on a
# heavily loaded machine, and finite for an item that waits without computing. Ours.
WALL_CLOCK = 30.0
MAX_REASON = 200  # characters of an exception that a verdict quotes
GRACE = 3.0  # seconds beyond both limits after which the kernel ends the process


def main() -> None:
    memory, limit = int(sys.argv[1]), float(sys.argv[2])
    parent, source, sink = os.getppid(), os.dup(0), os.dup(1)
    # A verifier that prints must not write into the protocol.
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent
    sys.setrecursionlimit(2000)
    send(sink, {"ready": True, "cpu": time.process_time()})
    verifiers: dict[str, Any] = {}
    while (group := receive(source, parent)) is not None:
        for item, (name, fields, answer) in enumerate(group):
            failed = True
            try:
                verdict = check(verifiers, name, fields, answer, sink, limit)
                failed = False
            except MemoryError:
                verdict = ["unverifiable", "out of memory"]
            except RecursionError:
                verdict = ["unverifiable", "nested too deeply"]
            except Exception as error:
                reason = f"{type(error).__name__}: {error}"[:MAX_REASON]
                verdict = ["unverifiable", f"the verifier raised {reason}"]
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.setitimer(signal.ITIMER_PROF, 0)
            message = {"item": item, "verdict": verdict, "failed": failed}
            send(sink, {**message, "cpu": time.process_time()})


def check(
    verifiers: dict[str, Any],
    name: str,
    fields: dict[str, Any],
    answer: str,
    sink: int,
    limit: float,
) -> list[str]:
    """Return one judgement as a list of verdict and detail."""
    if name not in verifiers:  # imports do not count against the first item
        send(sink, {"loading": name})
        verifiers[name] = verifier_named(name)
        verifiers[name].load()
        send(sink, {"loaded": name, "cpu": time.process_time()})
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, WALL_CLOCK * limit + GRACE)
    signal.setitimer(signal.ITIMER_PROF, limit + GRACE)
    return list(verifiers[name].check(Problem(question="", **fields), answer))


def receive(source: int, parent: int) -> list[Any] | None:
    """Return the next group of checks; None if the parent closed the pipe or is gone."""
    head = read_exactly(source, LENGTH.size, parent)
    if head is None:
        return None
    body = read_exactly(source, LENGTH.unpack(head)[0], parent)
    return None if body is None else json.loads(body)


def read_exactly(source: int, size: int, parent: int) -> bytes | None:
    parts: list[bytes] = []
    while size:
        ready, _, _ = select.select([source], [], [], 5.0)
        if not ready:
            if os.getppid() != parent:
                return None
            continue
        part = os.read(source, min(size, 1 << 20))
        if not part:
            return None
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def send(sink: int, message: dict[str, Any]) -> None:
    data = json.dumps(message).encode()
    data = LENGTH.pack(len(data)) + data
    while data:
        data = data[os.write(sink, data) :]


if __name__ == "__main__":
    try:
        main()
    except BrokenPipeError:
        os._exit(0)
