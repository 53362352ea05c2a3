"""Guarantees of every engine in a child process, with a backend that only counts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from curate.engines.testing.tiny import make_tiny_model
from curate.errors import CurateError
from curate.records import Request, Sampling
from tests.engines.cores import CountingEngine, counting

ROOT = Path(__file__).parents[2]


def ask(prompt: str, seed: int = 0, **sampling: object) -> Request:
    return Request(f"{prompt}/{seed}", prompt, seed, Sampling(**{"max_tokens": 8, **sampling}))  # type: ignore[arg-type]


@pytest.fixture
def engine(tiny: Path, tmp_path: Path) -> Iterator[CountingEngine]:
    engine = counting(tiny, replicas=2, args={"marks": str(tmp_path)})
    yield engine
    engine.close()


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def gone(pids: list[int], seconds: float = 5.0) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if not any(map(alive, pids)):
            return True
        time.sleep(0.05)
    return False


def test_every_request_comes_back_once_and_the_source_is_read_lazily(
    engine: CountingEngine,
) -> None:
    read = 0

    def source() -> Iterator[Request]:
        nonlocal read
        for seed in range(500):
            read += 1
            yield ask("p", seed)

    back = []
    for completion in engine.generate(source()):
        back.append(completion.request_id)
        assert read - len(back) <= engine.window + 1
    assert sorted(back) == sorted(f"p/{seed}" for seed in range(500))
    assert engine.window == 2 * (4 + 4)


def test_both_replicas_complete_requests(engine: CountingEngine) -> None:
    pids = {c.extra["pid"] for c in engine.generate(ask(f"p{i}", 0) for i in range(200))}
    assert len(pids) == 2


def test_bad_requests_become_completions_and_the_others_run(engine: CountingEngine) -> None:
    bad = {
        "empty": ask("", 1),
        "long": ask("x" * 100, 2),
        "tokens": ask("a", 3, max_tokens=0),
        "cold": ask("a", 4, temperature=-1.0),
        "p": ask("a", 5, top_p=0.0),
        "refused": ask("refuse", 6),
        "ids": Request("ids", "a", 0, Sampling(), prompt_token_ids=[1, 10**6]),
    }
    requests = [*bad.values(), ask("fine", 7)]
    by_id = {c.request_id: c for c in engine.generate(requests)}
    assert len(by_id) == len(requests)
    for name, request in bad.items():
        completion = by_id[request.request_id]
        assert (completion.finish_reason, bool(completion.error)) == ("error", True), name
    assert "100 tokens" in str(by_id["x" * 100 + "/2"].error)
    assert by_id["fine/7"].finish_reason == "stop"


def test_none_means_read_again_later(engine: CountingEngine) -> None:
    """The caller bases its second request on the first answer; meanwhile the source yields None."""
    answers: list[str] = []

    def source() -> Iterator[Request | None]:
        yield ask("first")
        while not answers:
            yield None
        yield ask(f"second after {answers[0]}")

    for completion in engine.generate(source()):
        answers.append(completion.text)  # noqa: PERF401 (the source looks at it meanwhile)
    assert len(answers) == 2
    assert answers[0] in answers[1]


def test_closing_early_aborts_what_is_in_flight(tiny: Path) -> None:
    engine = counting(tiny, args={"seconds": 0.01})
    running = engine.generate(ask("old", seed) for seed in range(10**9))
    next(running)
    running.close()
    assert [c.request_id for c in engine.generate([ask("new")])] == ["new/0"]
    engine.close()


def test_one_generate_at_a_time(engine: CountingEngine) -> None:
    running = engine.generate(ask("a", seed) for seed in range(100))
    next(running)
    with pytest.raises(CurateError, match="already generating"):
        next(engine.generate([ask("b")]))
    with pytest.raises(CurateError, match="in flight"):
        engine.update_weights(engine.model_path)
    running.close()


def test_a_killed_worker_is_restarted_and_its_requests_are_sent_again(
    engine: CountingEngine,
) -> None:
    prompts = [f"p{i}" for i in range(60)]
    prompts[20] = "die-once"
    back = [c.text for c in engine.generate(ask(p) for p in prompts)]
    assert sorted(back) == sorted(f"tiny|{p}|0" for p in prompts)
    assert engine.restarts == 1


def test_a_restarted_worker_has_the_new_weights(engine: CountingEngine, tiny_other: Path) -> None:
    assert engine.update_weights(tiny_other) == "other"
    texts = [c.text for c in engine.generate([ask("die-after-update")])]
    assert texts == ["other|die-after-update|0"]
    assert engine.restarts == 1


def test_a_request_that_always_kills_the_engine_fails_alone(
    engine: CountingEngine,
) -> None:
    prompts = [f"p{i}" for i in range(60)]
    prompts[20] = "kill-always"
    back = {c.request_id: c for c in engine.generate(ask(p) for p in prompts)}
    assert len(back) == 60
    assert "died 3 times of this request" in str(back["kill-always/0"].error)
    assert [c.request_id for c in back.values() if c.finish_reason != "stop"] == ["kill-always/0"]
    assert engine.restarts == 3


def test_an_engine_killed_by_every_request_is_abandoned(engine: CountingEngine) -> None:
    with pytest.raises(CurateError, match="died 6 times in a row"):
        list(engine.generate(ask("kill-always", seed) for seed in range(50)))


def test_the_reason_for_a_failed_start_is_reported(tiny: Path) -> None:
    engine = counting(tiny, args={"broken": True})
    with pytest.raises(CurateError, match="no kernel image"):
        next(engine.generate([ask("a")]))
    engine.close()


def test_weights_of_another_shape_are_refused(engine: CountingEngine, tmp_path: Path) -> None:
    wide = make_tiny_model(tmp_path / "wide", hidden=128)
    with pytest.raises(CurateError, match="hidden_size is 128"):
        engine.update_weights(wide)
    assert [c.text for c in engine.generate([ask("a")])] == ["tiny|a|0"]


def test_close_ends_the_processes(tiny: Path) -> None:
    engine = counting(tiny, replicas=2)
    engine.wait_ready()
    pids = [child.process.pid for child in engine._children]
    assert all(map(alive, pids))
    engine.close()
    assert gone(pids)


def test_a_killed_parent_leaves_no_process(tiny: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; from tests.engines.cores import counting\n"
        "engine = counting(Path(sys.argv[1])); engine.wait_ready()\n"
        "print(engine._children[0].process.pid, flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", script, str(tiny)]
    parent = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    assert gone([child])
