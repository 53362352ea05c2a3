"""The live page: what it shows while jobs write, and to whom it answers."""

from __future__ import annotations

import http.client
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path

import polars as pl
import pytest

from curate.errors import UsageError
from curate.report import live, serve
from curate.warehouse import Warehouse
from curate.warehouse.chunks import Family
from tests.report.conftest import HOSTILE
from tests.report.test_html import Reader

UNITS = pl.Series(["p0", "p1"])


def finish(wh: Warehouse, count: int, text: str = "done") -> None:
    """Append rows to the log of a family's first open chunk, as a job does."""
    family = Family(wh, "d" * 24)
    family.extend(UNITS, 8)
    [chunk] = family.chunks(family.open_rows(UNITS, 8))
    log = family.claim(chunk)
    assert log is not None
    for unit, sample, attempt in log.missing[:count]:
        row = {
            "problem_id": unit,
            "trace_id": f"d{unit}{sample}",
            "sample_index": sample,
            "attempt": attempt,
            "form": "r1-zero",
            "engine": "stub",
            "prompt": text,
            "completion": text,
            "finish_reason": "stop",
            "completion_tokens": 7,
            "created_at": f"2026-01-01T00:00:0{sample}+00:00",
        }
        log.append(row)
    log.close()


def versions(html: str) -> dict[str, str]:
    return dict(re.findall(r'<section id="(\w+)" data-version="(\w+)"', html))


@pytest.fixture(scope="module")
def served(made_once, tmp_path_factory):
    """(warehouse, server) of a live page, in a thread."""
    wh = Warehouse(shutil.copytree(made_once, tmp_path_factory.mktemp("served") / "wh"))
    server = serve.Server(live.Live(wh.root), 0)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield wh, server
    server.shutdown()
    server.server_close()


def ask(server: serve.Server, path: str = "/", method: str = "GET", **headers: str):
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
    connection.request(method, path, headers={k: v for k, v in headers.items() if v})
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer, text


def test_progress_counts_finished_rows_before_their_chunk_is_a_part(hostile):
    shown = live.Live(hostile.root)
    assert "No sampling is planned" in shown.page()
    finish(hostile, 3, HOSTILE[0])
    shown._shown = None
    html = shown.page()
    assert "3 of 16 samples" in html
    assert HOSTILE[0] not in html
    assert Reader(html).text.count(HOSTILE[0]) > 3  # shown as text


def test_the_rate_is_that_of_the_time_watched(hostile, monkeypatch):
    progress = live.Progress(hostile)
    clock = iter([0.0, 10.0])
    monkeypatch.setattr(live.time, "monotonic", lambda: next(clock))
    finish(hostile, 2)
    [work] = progress.works()
    assert work.rate is None
    finish(hostile, 4)
    [work] = progress.works()
    assert (work.done, work.planned) == (6, 16)
    assert work.rate == pytest.approx(0.4)
    assert work.left() == ", 25s left"


def test_a_torn_line_of_a_log_waits_for_its_end(tmp_path):
    from curate.warehouse.logs import line_of

    line, path = line_of({"a": 1}), tmp_path / "x.log"
    tail = live.Tail(path)
    tail.read()  # not there yet
    path.write_bytes(line + line[:9])
    tail.read()
    assert tail.lines == 1
    with path.open("ab") as handle:
        handle.write(line[9:])
    tail.read()
    assert tail.lines == 2
    assert tail.rows() == [{"a": 1}, {"a": 1}]


def test_new_traces_and_metrics_appear_and_the_rest_is_not_sent_again(hostile, monkeypatch):
    monkeypatch.setattr(live, "REST", 0.0)
    shown = live.Live(hostile.root)
    first = shown.page()
    before = versions(first)
    assert set(before) == {"now", *live.page.HEADINGS}
    row = {"trace_id": "f" * 32, "attempt": 0, "problem_id": "p0", "sample_index": 99}
    row |= {"recipe": "distill", "form": "plain", "finish_reason": "stop", "completion": "It is 1."}
    hostile.write("traces", "9" * 24, [row], key=9)
    steps = [
        {"run_id": "run", "step": i, "name": "reward", "value": i / 10, "created_at": None}
        for i in range(3)
    ]
    hostile.version("metrics", "tune", "run").publish("step-0", steps)
    shown._shown = None
    second = shown.page(set(before.values()))
    after = versions(second)
    assert "f" * 32 in second
    assert "tune (run), step 2" in second
    assert after["traces"] != before["traces"]
    assert after["evaluation"] == before["evaluation"]
    assert '<section id="evaluation" data-version="' + before["evaluation"] + '"></section>' in (
        second
    )


def test_the_newest_traces_are_shown(hostile):
    row = {"attempt": 0, "problem_id": "p0", "recipe": "distill", "form": "plain"}
    row |= {"finish_reason": "stop", "completion": "It is 1."}
    rows = [
        row | {"trace_id": f"{i:032d}", "sample_index": i, "created_at": f"2026-01-0{i}T00:00:00Z"}
        for i in range(1, 5)
    ]
    frame = pl.DataFrame(rows).with_columns(pl.col("created_at").str.to_datetime(time_zone="UTC"))
    hostile.write("traces", "9" * 24, frame.to_dicts(), key=9)
    html = live.Live(hostile.root, traces=2).page()
    assert f"{4:032d}" in html
    assert f"{3:032d}" in html
    assert f"{2:032d}" not in html


def test_nothing_is_written(served):
    wh, server = served
    finish(wh, 2)
    before = {str(p): p.stat().st_mtime_ns for p in wh.root.rglob("*")}
    assert ask(server)[0].status == 200
    assert {str(p): p.stat().st_mtime_ns for p in wh.root.rglob("*")} == before


def test_other_host_names_methods_and_paths_are_refused(served):
    _, server = served
    port = server.server_port
    for host in (
        f"evil.example:{port}",
        f"127.0.0.1.evil:{port}",
        f"x@127.0.0.1:{port}",
        "0.0.0.0",
    ):
        answer, text = ask(server, Host=host)
        assert answer.status == 403
        assert "another host name is refused" in text
        assert len(text) < 300
    for host in (f"LOCALHOST:{port}", "127.0.0.1:9000"):  # ssh may forward another port
        assert ask(server, Host=host)[0].status == 200
    assert ask(server, "/etc/passwd")[0].status == 404
    assert ask(server, "//127.0.0.1/x")[0].status == 404
    assert ask(server, method="POST")[0].status == 501
    answer, text = ask(server, method="HEAD")
    assert (answer.status, text) == (200, "")
    assert int(answer.headers["Content-Length"]) > 1000
    with socket.create_connection(("127.0.0.1", port), timeout=60) as raw:
        raw.sendall(f"GET / HTTP/1.1\r\nHost: localhost:{port}\r\nHost: x\r\n\r\n".encode())
        assert raw.recv(100).startswith(b"HTTP/1.0 403")


def test_the_page_is_open_to_no_other_site(served):
    answer, text = ask(served[1])
    assert server_address(served[1]) == "127.0.0.1"
    assert "Access-Control-Allow-Origin" not in answer.headers
    assert answer.headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert answer.headers["Cache-Control"] == "no-store"
    assert "frame-ancestors 'none'" in answer.headers["Content-Security-Policy"]
    policy = next(
        a["content"] for n, a in Reader(text).elements if n == "meta" and a.get("http-equiv")
    )
    assert policy.startswith("default-src 'none'")
    assert "connect-src 'self'" in policy
    assert "unsafe" not in policy


def server_address(server: serve.Server) -> str:
    return str(server.socket.getsockname()[0])


def test_damage_is_reported_in_the_page_and_ends_nothing(served):
    wh, server = served
    part = next((wh.root / "traces" / ("f" * 24)).rglob("part-*.parquet"))
    text = part.read_bytes()
    part.write_bytes(text[:100])
    server.live._shown = None
    answer, problem = ask(server)
    assert answer.status == 503
    assert part.name in problem
    part.write_bytes(text)
    assert ask(server)[0].status == 200


def test_mistakes_are_reported(hostile, tmp_path):
    with pytest.raises(UsageError, match="no warehouse at"):
        serve.watch(tmp_path / "nothing")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(UsageError, match="name another with --port"):
            serve.watch(hostile.root, taken.getsockname()[1])


@pytest.mark.slow
def test_the_command_serves_and_ctrl_c_ends_it(hostile: Warehouse, tmp_path: Path):
    command = [sys.executable, "-m", "curate", "watch", str(hostile.root), "--port", "0"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        url = line.split()[0]
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/", url)
        with urllib.request.urlopen(url, timeout=120) as answer:
            assert b"curate watch" in answer.read()
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "Traceback" not in errors
    assert "ended" in errors
