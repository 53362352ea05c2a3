"""The worker process: reads groups of checks from its standard input, writes one line a verdict to its standard output.

Frames are a length and JSON, never pickle: what comes back from a process that handled hostile text is only data. The
parent keeps the time; as a second line the kernel's alarm ends this process when an item overruns and nobody is left
to kill it, and it leaves when its parent is gone.
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

LENGTH = struct.Struct("<I")
# The limit counts processor time, so that a busy machine changes no verdict; by the clock it is so many times as long.
CLOCK = 5.0
# Seconds beyond both after which the kernel ends the process by itself.
GRACE = 3.0


def main() -> None:
    memory, limit = int(sys.argv[1]), float(sys.argv[2])
    parent, source, sink = os.getppid(), os.dup(0), os.dup(1)
    # A verifier that prints must not write into the protocol.
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's
    sys.setrecursionlimit(2000)
    say(sink, {"ready": True, "cpu": time.process_time()})
    verifiers: dict[str, Any] = {}
    while (group := read(source, parent)) is not None:
        for item, (name, fields, answer) in enumerate(group):
            try:
                verdict = check(verifiers, name, fields, answer, sink, limit)
            except MemoryError:
                verdict = ["unverifiable", "out of memory"]
            except RecursionError:
                verdict = ["unverifiable", "nested too deeply"]
            except Exception as error:
                verdict = ["unverifiable", f"the verifier raised {type(error).__name__}"]
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.setitimer(signal.ITIMER_PROF, 0)
            say(sink, {"item": item, "verdict": verdict, "cpu": time.process_time()})


def check(
    verifiers: dict[str, Any],
    name: str,
    fields: dict[str, Any],
    answer: str,
    sink: int,
    limit: float,
) -> list[str]:
    """One judgement, as a list of verdict and detail."""
    from curate.records import Problem
    from curate.verify.registry import verifier_named

    if name not in verifiers:  # what it imports is not on the clock of its first item
        say(sink, {"loading": name})
        verifiers[name] = verifier_named(name)
        verifiers[name].load()
        say(sink, {"loaded": name, "cpu": time.process_time()})
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, CLOCK * limit + GRACE)
    signal.setitimer(signal.ITIMER_PROF, limit + GRACE)
    return list(verifiers[name].check(Problem(question="", **fields), answer))


def read(source: int, parent: int) -> list[Any] | None:
    """The next group of checks; None when the parent closed the pipe or is gone."""
    head = exactly(source, LENGTH.size, parent)
    if head is None:
        return None
    body = exactly(source, LENGTH.unpack(head)[0], parent)
    return None if body is None else json.loads(body)


def exactly(source: int, size: int, parent: int) -> bytes | None:
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


def say(sink: int, message: dict[str, Any]) -> None:
    data = json.dumps(message).encode()
    data = LENGTH.pack(len(data)) + data
    while data:
        data = data[os.write(sink, data) :]


if __name__ == "__main__":
    try:
        main()
    except BrokenPipeError:
        os._exit(0)
