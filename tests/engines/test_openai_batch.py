"""Batches: the same completions as single requests, each paid for once despite kills."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from curate.engines import EngineConfig, open_engine
from curate.engines.openai import BudgetReached
from curate.errors import CurateError, UsageError
from curate.records import Completion, Request, Sampling
from curate.warehouse import Warehouse
from tests.engines.batch_server import BatchServer
from tests.engines.server import chat_answer

pytest.importorskip("openai")


def engine(server: BatchServer, journal: Path, **args: Any) -> Any:
    settings = {"base_url": server.url, "model": "m", "batch": True, "poll": 0.05, **args}
    return open_engine(EngineConfig(name="openai", args={"journal": str(journal), **settings}), "m")


def requests(*groups: str, each: int = 3) -> list[Request]:
    return [
        Request(f"{group}:{i}", f"q{group}{i}", seed=i, sampling=Sampling(), group=group)
        for group in groups
        for i in range(each)
    ]


def run(opened: Any, sent: list[Request]) -> dict[str, Completion]:
    try:
        return {done.request_id: done for done in opened.generate(iter(sent))}
    finally:
        opened.close()


def test_a_group_is_a_batch_and_every_request_gets_its_own_answer(tmp_path: Path) -> None:
    sent = requests("a", "b", "c")
    with BatchServer() as server:
        back = run(engine(server, tmp_path), sent)
        assert server.sizes == [3, 3, 3]
    assert {r.request_id: f"{r.prompt}|{r.seed}" for r in sent} == {
        name: done.text for name, done in back.items()
    }
    assert all((c.prompt_tokens, c.completion_tokens) == (10, 5) for c in back.values())


def test_a_group_that_is_too_large_becomes_several_batches(tmp_path: Path) -> None:
    with BatchServer() as server:
        assert len(run(engine(server, tmp_path, batch_size=2), requests("a", each=5))) == 5
        assert server.sizes == [2, 2, 1]


def interrupted(sent: list[Request], server: BatchServer, batches: int) -> Iterator[Request | None]:
    """The requests, then nothing until the server has the batches, then Ctrl-C."""
    yield from sent
    while len(server.batches) < batches:
        yield None
    raise KeyboardInterrupt


def test_results_of_an_earlier_run_are_fetched_and_not_paid_for_again(tmp_path: Path) -> None:
    sent = requests("a", "b")
    with BatchServer(hold=True) as server:
        first = engine(server, tmp_path)
        with pytest.raises(KeyboardInterrupt):
            list(first.generate(interrupted(sent, server, 2)))
        first.close()
        server.release()
        assert len(run(engine(server, tmp_path), sent)) == 6
        assert server.sizes == [3, 3]


def test_a_batch_without_a_noted_id_is_recovered_by_its_key(tmp_path: Path) -> None:
    sent = requests("a")
    with BatchServer() as server:
        run(engine(server, tmp_path), sent)
        (note,) = tmp_path.glob("*.json")
        note.write_text(json.dumps({**json.loads(note.read_text()), "batch_id": None}))
        assert len(run(engine(server, tmp_path), sent)) == 3
        assert server.sizes == [3]
        # a batch that never reached the server is sent
        note.write_text(json.dumps({**json.loads(note.read_text()), "batch_id": None}))
        server.batches.clear()
        assert len(run(engine(server, tmp_path), sent)) == 3
        assert server.sizes == [3, 3]


def test_unanswered_requests_are_sent_again_and_then_fail(tmp_path: Path) -> None:
    lost = {"qa1"}
    busy = {"qa2"}

    def answer(body: dict[str, Any]) -> dict[str, Any]:
        question = body["messages"][-1]["content"]
        if question in lost:
            lost.discard(question)
            return {"status": None}
        return {"status": 503} if question in busy else chat_answer(body)

    with BatchServer(answer) as server:
        back = run(engine(server, tmp_path, retries=1), requests("a"))
        assert server.sizes == [3, 2]
    assert back["a:0"].finish_reason == back["a:1"].finish_reason == "stop"
    assert back["a:2"].finish_reason == "error"
    assert "503: injected (after 2 tries)" in str(back["a:2"].error)


def test_a_refused_request_fails_alone_and_immediately(tmp_path: Path) -> None:
    def answer(body: dict[str, Any]) -> dict[str, Any]:
        return {"status": 400} if body["seed"] == 1 else chat_answer(body)

    with BatchServer(answer) as server:
        back = run(engine(server, tmp_path), requests("a"))
        assert server.sizes == [3]
    assert [back[f"a:{i}"].finish_reason for i in range(3)] == ["stop", "error", "stop"]


def test_a_refused_batch_ends_the_job_and_the_next_run_sends_it_again(tmp_path: Path) -> None:
    with BatchServer() as server:
        server.ending = "failed"
        with pytest.raises(CurateError, match="refused batch batch-0"):
            run(engine(server, tmp_path), requests("a"))
        server.ending = "completed"
        assert len(run(engine(server, tmp_path), requests("a"))) == 3
        assert server.sizes == [3, 3]


def test_the_budget_covers_what_is_in_flight(tmp_path: Path) -> None:
    # A request costs at most (3 characters / 3) * 1 + 512 * 1000 millionths: about 0.512.
    prices = {"price_in": 1.0, "price_out": 1000.0, "budget": 1.1}
    with BatchServer() as server:
        opened = engine(server, tmp_path, **prices)
        back: list[Completion] = []
        with pytest.raises(BudgetReached, match="does not cover another request"):
            back.extend(opened.generate(iter(requests("a", each=400))))
        opened.close()
        assert len(back) == sum(server.sizes) > 2
        # Every answer cost 10 * 1 + 5 * 1000 millionths; the budget is never exceeded.
        assert opened.usage.cost == pytest.approx(len(back) * 0.00501)
        assert opened.usage.cost <= 1.1


def test_a_server_without_batches_is_one_message(tmp_path: Path) -> None:
    with BatchServer() as server:
        server.absent = True
        with pytest.raises(CurateError, match=r"has no batches here .*leave out engine.args.batch"):
            run(engine(server, tmp_path), requests("a"))


def test_batches_are_only_for_jobs_that_can_recover_them(tmp_path: Path) -> None:
    args = {"base_url": "http://127.0.0.1:9/v1", "model": "m", "batch": True}
    opened = open_engine(EngineConfig(name="openai", args=args), "m")
    with pytest.raises(UsageError, match="only `generate` and `evaluate`"):
        list(opened.generate(iter(requests("a"))))


def test_a_job_killed_while_waiting_resumes_with_the_same_batches(
    tmp_path: Path, sums: str
) -> None:
    def answer(body: dict[str, Any]) -> dict[str, Any]:
        a, b = map(int, re.findall(r"\d+", body["messages"][-1]["content"]))
        text = f"<think> x </think> <answer> {a + b} </answer>"
        return chat_answer(body, message={"content": text})

    with BatchServer(answer, hold=True) as server:
        args = {"base_url": server.url, "model": "m", "batch": True, "poll": 0.05}
        source = {"source": "files", "path": sums, "verifier": "math"}
        config = {
            "recipe": "r1-zero", "model": "m", "template": "plain", "form": "r1-zero",
            "problems": {"sources": [source], "held_out": 0}, "samples": 2, "chunk": 20,
            "engine": {"name": "openai", "args": args},
        }  # fmt: skip
        (tmp_path / "job.yaml").write_text(json.dumps(config))
        command = [sys.executable, "-m", "curate", "generate", str(tmp_path / "job.yaml")]
        command += ["-w", str(tmp_path / "wh")]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 60
        while len(server.batches) < 4 and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
        assert server.sizes == [20, 20, 20, 20]
        server.release()
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        assert "80 traces (80 new): 80 complete" in done.stdout
        assert server.sizes == [20, 20, 20, 20]
        assert len(server.bodies) == 80
    rows = Warehouse(tmp_path / "wh").sql(
        "SELECT count(*), count(DISTINCT trace_id), avg((answer IS NOT NULL)::INT) FROM traces"
    )
    assert rows.row(0) == (80, 80, 1.0)
