"""The machine changes no verdict: its load, the user, and how many threads that user runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from curate.errors import CurateError
from curate.records import Problem
from curate.verify import VerifierPool
from curate.verify.code import sandbox
from curate.verify.code.sandbox import Limits, Outcome
from curate.verify.code.verifier import CodeVerifier

try:
    sandbox.tools()
    REASON = ""
except CurateError as error:
    REASON = str(error)
pytestmark = pytest.mark.skipif(bool(REASON), reason=REASON or "there is a sandbox")
ADD = Problem("", None, "code", tests='["assert add(1, 2) == 3"]')


@pytest.fixture
def busy_machine() -> Iterator[None]:
    """Load the machine to four times its cores."""
    code = "while True: pass"
    count = 4 * len(os.sched_getaffinity(0))
    processes = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.wait()


# Half of its time limit is spent computing, before the right answer comes.
WORKING = """
import time
until = time.process_time() + 1.0
while time.process_time() < until: pass
def add(a, b): return a + b
"""


@pytest.mark.slow
def test_a_machine_loaded_to_four_times_its_cores_changes_no_verdict(
    busy_machine: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CodeVerifier, "limits", Limits(seconds=2.0))
    verifier = CodeVerifier()
    assert verifier.check(ADD, WORKING).verdict == "correct"
    assert verifier.check(ADD, WORKING.replace("1.0", "60.0")).verdict == "wrong"
    stdio = Problem("", None, "code", tests='{"inputs": ["4"], "outputs": ["5"]}')
    assert verifier.check(stdio, f"{WORKING}\nprint(add(1, int(input())))").verdict == "correct"
    with VerifierPool(workers=1, time_limit=2.0, cache=0) as pool:
        pairs = [(r"\int_0^1 e^x\,dx", "e-1"), (r"\lim_{x\to0}\frac{\sin x}{x}", "1")]
        verdicts = pool.verify_answers(
            [gold for gold, _ in pairs], [rf"\boxed{{{answer}}}" for _, answer in pairs]
        )
    assert [verdict.verdict for verdict in verdicts] == ["correct", "correct"]


def test_a_program_that_sleeps_is_out_of_time_although_it_computes_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(CodeVerifier, "limits", Limits(seconds=0.5))
    judgement = CodeVerifier().check(ADD, "import time\ntime.sleep(3600)")
    assert judgement.verdict == "wrong"
    assert "time limit" in judgement.detail


def test_a_machine_that_gives_no_time_is_tried_twice_and_then_unverifiable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tries = []

    def starved(*arguments: object) -> Outcome:
        tries.append(arguments)
        return Outcome(b"", b"", None, "", 1.0, "the machine is too busy")

    monkeypatch.setattr(sandbox, "watch", starved)
    stdio = Problem("", None, "code", tests='{"inputs": ["4"], "outputs": ["5"]}')
    judgement = CodeVerifier().check(stdio, "print(5)")
    assert (judgement.verdict, len(tries)) == ("unverifiable", 2)
    assert "too busy" in judgement.detail


def test_a_sandbox_that_does_not_start_makes_no_answer_wrong(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken = tmp_path / "bwrap"
    broken.write_text("#!/bin/sh\necho 'bwrap: Resource temporarily unavailable' >&2\nexit 1\n")
    broken.chmod(0o755)
    for folder in (tmp_path, *tmp_path.parents):
        if folder.owner() == Path.home().owner() and folder != Path("/"):
            folder.chmod(folder.stat().st_mode | 0o055)
    _, interpreter = sandbox.tools()
    monkeypatch.setattr(sandbox, "tools", lambda: (str(broken), interpreter))
    for tests in ('{"inputs": ["4"], "outputs": ["5"]}', '["assert add(1, 2) == 3"]'):
        judgement = CodeVerifier().check(Problem("", None, "code", tests=tests), "print(5)")
        assert judgement.verdict == "unverifiable"
        assert "temporarily unavailable" in judgement.detail or "not start" in judgement.detail


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_user_with_many_threads_gets_the_same_verdicts_and_the_same_limit() -> None:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setgid(4711)
            os.setuid(4711)
            for _ in range(200):
                threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
            sandbox.tools.cache_clear()
            verifier = CodeVerifier()
            forks = (
                "import os, time\nn = 0\ntry:\n    while n < 100:\n"
                "        if os.fork() == 0: time.sleep(5); os._exit(0)\n        n += 1\n"
                "except OSError: pass\nprint(n)"
            )
            report = [
                verifier.check(ADD, "def add(a, b): return a + b").verdict,
                verifier.check(ADD, "def add(a, b): return a - b").verdict,
                int(sandbox.run(forks).stdout),
            ]
            os.write(writing, json.dumps(report).encode())
        except BaseException as error:
            os.write(writing, json.dumps([repr(error)]).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        report = json.loads(pipe.read())
    os.waitpid(child, 0)
    if report[0] not in ("correct", "wrong", "unverifiable") or report[0] == "unverifiable":
        pytest.skip(f"another user cannot start the sandbox here: {report}")
    assert report[:2] == ["correct", "wrong"]
    assert report[2] <= Limits().processes
