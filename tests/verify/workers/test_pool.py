"""The worker pool: nothing that an answer does costs more than its own verdict."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from curate import registry
from curate.errors import CurateError, UsageError
from curate.records import Problem
from curate.verify import VerifierPool, default_pool, versions
from curate.verify.base import Judgement, Verifier

ROOT = Path(__file__).resolve().parents[2]


class Scripted(Verifier):
    """A custom verifier, named by dotted path: it does what the answer says."""

    name = "scripted"
    version = "7"

    def check(self, problem: Problem, answer: str) -> Judgement:
        if answer == "hang":
            while True:
                pass
        if answer == "block":  # holds the interpreter lock in C code
            return Judgement("correct", str(len(str(9**9_000_000))))
        if answer == "swell":
            return Judgement("correct", str(len(bytearray(1 << 40))))
        if answer == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if answer == "raise":
            raise ValueError("no")
        if answer == "deep":
            return self.check(problem, "deep")
        if answer == "print":
            print("x" * 100_000)
            os.write(1, b"\xff" * 100_000)
        return Judgement("correct" if answer == problem.reference else "wrong", str(os.getpid()))


NAME = "tests.verify.workers.test_pool:Scripted"


def problems(count: int, reference: str = "x") -> list[Problem]:
    return [Problem("", reference, NAME)] * count


@pytest.mark.parametrize("bad", ["hang", "block", "swell", "die", "raise", "deep"])
def test_a_bad_answer_costs_only_itself(bad: str) -> None:
    with VerifierPool(workers=2, time_limit=1.0, cache=0) as pool:
        answers = [f"<answer>{bad if i == 5 else f'x{i}'}</answer>" for i in range(40)]
        verdicts = pool.verify_batch(problems(40, "x3"), answers)
    assert [v.extracted for v in verdicts] == [bad if i == 5 else f"x{i}" for i in range(40)]
    assert verdicts[5].verdict == "unverifiable"
    assert verdicts[5].detail
    assert [v.verdict for i, v in enumerate(verdicts) if i != 5] == [
        "correct" if i == 3 else "wrong" for i in range(40) if i != 5
    ]
    assert {(v.verifier, v.verifier_version) for v in verdicts} == {("scripted", "7")}


def test_what_a_verifier_prints_does_not_reach_the_protocol(pool: VerifierPool) -> None:
    assert (
        pool.verify_batch(problems(2), ["<answer>print</answer>", "<answer>x</answer>"])[1].verdict
        == "correct"
    )


def test_order_is_kept_and_all_workers_are_used() -> None:
    with VerifierPool(workers=2, cache=0) as pool:
        verdicts = pool.verify_batch(
            problems(300, "x7"), [f"<answer>x{i}</answer>" for i in range(300)]
        )
        assert [v.extracted for v in verdicts] == [f"x{i}" for i in range(300)]
        assert len({v.detail for v in verdicts}) == 2
        pids = {v.detail for v in verdicts}
        again = pool.verify_batch(
            problems(300, "x7"), [f"<answer>y{i}</answer>" for i in range(300)]
        )
        assert {v.detail for v in again} == pids  # warm: the same processes


def test_repeated_answers_are_judged_once() -> None:
    with VerifierPool(workers=1) as pool:
        pool.verify_batch(problems(64), ["<answer>y</answer>"] * 64)
        assert pool.hits == 0
        verdicts = pool.verify_batch(problems(64), ["<answer>y</answer>"] * 64)
        assert pool.hits == 64
        assert {v.verdict for v in verdicts} == {"wrong"}


def test_threads_share_a_pool(pool: VerifierPool) -> None:
    results: dict[int, list[str]] = {}

    def judge(n: int) -> None:
        verdicts = pool.verify_batch(
            problems(50, f"x{n}"), [f"<answer>x{i}</answer>" for i in range(50)]
        )
        results[n] = [v.verdict for v in verdicts]

    threads = [threading.Thread(target=judge, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert results == {n: ["correct" if i == n else "wrong" for i in range(50)] for n in range(8)}


def test_a_fork_makes_its_own_pool() -> None:
    default_pool().verify_batch(problems(1), ["<answer>x</answer>"])
    child = os.fork()
    if child == 0:
        try:
            os._exit(
                0
                if default_pool().verify(problems(1)[0], "<answer>x</answer>").verdict == "correct"
                else 1
            )
        finally:
            os._exit(2)
    assert os.waitpid(child, 0)[1] == 0
    assert default_pool().verify(problems(1)[0], "<answer>x</answer>").verdict == "correct"


@pytest.mark.parametrize("busy", ["x", "block"])
def test_workers_exit_when_their_parent_is_killed(busy: str) -> None:
    code = (
        "import sys, threading, time; from curate.records import Problem; from curate.verify "
        "import VerifierPool\n"
        f"pool = VerifierPool(workers=1); P = Problem('', 'x', {NAME!r})\n"
        "print(pool.verify(P, '<answer>x</answer>').detail, flush=True)\n"
        f"pool.verify(P, '<answer>{busy}</answer>'); time.sleep(60)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert parent.stdout is not None
    worker = int(parent.stdout.readline())
    time.sleep(0.3)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    until = time.monotonic() + 120
    while time.monotonic() < until and alive(worker):
        time.sleep(0.1)
    assert not alive(worker)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_workers_inherit_no_file_of_the_parent(tmp_path: Path) -> None:
    with open(tmp_path / "lock", "w") as held, VerifierPool(workers=1) as pool:
        os.set_inheritable(held.fileno(), True)
        pid = int(pool.verify(problems(1)[0], "<answer>x</answer>").detail)
        links = [os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir()]
    assert str(tmp_path / "lock") not in links


def test_closing_ends_the_workers_and_use_after_it_is_an_error() -> None:
    pool = VerifierPool(workers=1)
    pid = int(pool.verify(problems(1)[0], "<answer>x</answer>").detail)
    pool.close()
    pool.close()
    assert not alive(pid)
    with pytest.raises(CurateError, match="closed"):
        pool.verify(problems(1)[0], "<answer>y</answer>")


def test_wrong_use() -> None:
    with VerifierPool(workers=1) as pool:
        with pytest.raises(UsageError):
            pool.verify_batch(problems(2), ["x"])
        with pytest.raises(UsageError):
            pool.verify_answers(["1"], ["1", "2"])
        with pytest.raises(UsageError):
            pool.verify_answers(["1"], ["1"], verifier="maths")
        for name in (None, "", "maths", "no.such:Thing"):
            verdicts = pool.verify(Problem("", "1", name), "1")
            assert verdicts.verdict == "unverifiable"
            assert verdicts.detail
        assert pool.verify_batch([], []) == []
    with pytest.raises(UsageError):
        VerifierPool(workers=0)


def test_forms_say_where_the_reasoning_ends(pool: VerifierPool) -> None:
    texts = [
        r"so \boxed{5}",
        r"hm</think>\boxed{5}",
        "<answer>5</answer>",
        "5",
        r"[a]\boxed{6}[/a]\boxed{5}",
    ]
    forms = ["r1", "r1", "r1-zero", "plain", "r1[[a]|[/a]]"]
    verdicts = pool.verify_batch([Problem("", "5", "math")] * 5, texts, forms=forms)
    assert [v.verdict for v in verdicts] == ["wrong", "correct", "correct", "correct", "correct"]


def test_every_verifier_has_a_version() -> None:
    mathematics = {"math", "math-strict", "math-rounded"}
    assert set(versions()) == mathematics | {"choice", "exact", "text", "procedural", "code"}
    assert all(versions().values())


def test_a_verifier_that_cannot_be_imported_says_why(
    pool: VerifierPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "needs_more.py").write_text("import a_package_that_is_absent\n")
    (tmp_path / "raises.py").write_text(
        "class Own:\n    def __init__(self):\n        raise RuntimeError('no licence')\n"
    )
    names = ["needs_more:Own", "raises:Own", "absent_module:Own", "no_such_verifier"]
    verdicts = pool.verify_batch([Problem("?", "1", name) for name in names], ["1"] * len(names))
    assert [v.verdict for v in verdicts] == ["unverifiable"] * len(names)
    for verdict, reason in zip(
        verdicts,
        [
            "cannot load the verifier 'needs_more:Own': ModuleNotFoundError: No module named "
            "'a_package_that_is_absent'",
            "cannot load the verifier 'raises:Own': RuntimeError: no licence",
            "no module 'absent_module'",
            "unknown verifier 'no_such_verifier'",
        ],
        strict=True,
    ):
        assert reason in verdict.detail


def test_a_package_whose_verifier_fails_to_import_is_named(
    pool: VerifierPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = EntryPoint("broken", "a_package_that_is_absent:Own", "curate.verifier")
    monkeypatch.setattr(registry, "entry_points", lambda group: [broken])
    verdict = pool.verify(Problem("?", "1", "broken"), "1")
    assert verdict.verdict == "unverifiable"
    assert verdict.detail.startswith("cannot load the verifier 'broken': ")
    assert "a_package_that_is_absent" in verdict.detail
