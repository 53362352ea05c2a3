import multiprocessing as mp
import os
import time
from types import SimpleNamespace

import polars as pl
import pytest

from curate.generate.history import spent
from curate.warehouse import Warehouse
from curate.warehouse.chunks import CHUNK_ROWS, Family
from curate.warehouse.identity import family_id, request_seed, trace_id
from curate.warehouse.logs import logs_of, replay

IDS = pl.Series([f"p{i}" for i in range(10)])


def row(key):
    problem, sample, attempt = key
    return {
        "problem_id": problem,
        "sample_index": sample,
        "attempt": attempt,
        "trace_id": trace_id("f", problem, sample),
        "recipe": "r1-zero",
        "form": "plain",
        "finish_reason": "stop",
        "completion": f"{problem}-{sample}",
    }


def finish(family: Family, samples: int, ids=IDS) -> int:
    done = 0
    for chunk in family.chunks(family.open_rows(ids, samples)):
        log = family.claim(chunk)
        for key in log.missing:
            log.append(row(key))
        done += log.commit(list(log.rows()))
    return done


def planned_keys(family: Family) -> list[tuple]:
    return [
        (p, s, a)
        for p, start, stop, a in family.plan()
        .select("unit", "start", "stop", "attempt")
        .iter_rows()
        for s in range(start, stop)
    ]


def test_more_samples_or_problems_plan_only_what_is_new(tmp_path):
    family = Family(Warehouse(tmp_path), "f")
    assert family.extend(IDS, 3) == 30
    assert family.extend(IDS, 3) == 0
    assert family.extend(IDS, 5) == 20
    assert family.extend(pl.Series(["p3", "new"]), 5) == 5
    keys = planned_keys(family)
    assert len(keys) == len(set(keys)) == 55


def test_a_long_range_is_cut_into_chunks(tmp_path):
    family = Family(Warehouse(tmp_path), "f")
    assert family.extend(pl.Series(["p"]), 1000) == 1000
    chunks = list(family.chunks(family.open_rows(pl.Series(["p"]), 1000)))
    assert max(len(c.keys) for c in chunks) <= 2 * CHUNK_ROWS
    assert sorted(k[1] for c in chunks for k in c.keys) == list(range(1000))


def test_parts_are_committed_once_and_plans_are_sealed(tmp_path):
    wh = Warehouse(tmp_path)
    family = Family(wh, "f", {"parents": ["problems/a/b"], "seed": 1})
    family.extend(IDS, 2)
    assert finish(family, 2) == 1
    assert finish(family, 2) == 0
    (version,) = family.seal()
    assert version.manifest["rows"] == 20
    assert version.manifest["parents"] == ["problems/a/b"]
    assert family.redo(pl.DataFrame({"unit": ["p1"], "sample_index": [0], "attempt": [0]})) == 1
    assert family.redo(pl.DataFrame({"unit": ["p1"], "sample_index": [0], "attempt": [0]})) == 0
    assert finish(family, 2) == 1
    assert len(family.seal()) == 2
    assert wh.sql("SELECT max(attempt), count(*) FROM last_traces").row(0) == (1, 20)
    assert not list((tmp_path / "_logs" / "f").iterdir())


def test_a_chunk_has_one_owner_and_the_next_one_replays_its_log(tmp_path):
    family = Family(Warehouse(tmp_path), "f")
    family.extend(IDS, 1)
    (chunk,) = family.chunks(family.open_rows(IDS, 1))
    log = family.claim(chunk)
    assert family.claim(chunk) is None
    log.append(row(chunk.keys[0]))
    log.close()
    again = family.claim(chunk)
    assert again.done == {chunk.keys[0]}
    assert again.missing == list(chunk.keys[1:])


def test_a_kill_between_commit_and_removal_leaves_no_log_and_counts_no_cost_twice(tmp_path):
    family = Family(Warehouse(tmp_path), "f")
    family.extend(IDS, 100)
    first, second, *_ = family.chunks(family.open_rows(IDS, 100))
    log, other = family.claim(first), family.claim(second)
    for key in log.missing:
        log.append(row(key) | {"cost": 0.5})
    other.append(row(other.missing[0]) | {"cost": 2.0})
    log.chunk.version.publish(first.chunk_id, list(log.rows()))  # killed here
    log.close()
    assert spent(SimpleNamespace(family=family)) == 0.5 * len(first.keys) + 2.0
    (path,) = logs_of(family.logs, second.chunk_id)
    assert family.open_logs() == [path]
    assert {entry.name for entry in family.logs.iterdir()} == {
        path.name,
        f"{second.chunk_id}.lock",
    }
    other.close()
    finish(family, 100)
    family.seal()
    assert not list(family.logs.iterdir())


@pytest.mark.parametrize("bad", [{"prompt_tokens": 10**30}, {"seed": "x"}, {"sample_index": None}])
def test_a_row_that_no_part_can_hold_is_sampled_again(tmp_path, bad):
    """Earlier versions logged a server's numbers unchecked, and no run could commit the chunk."""
    family = Family(Warehouse(tmp_path), "f")
    family.extend(IDS, 1)
    (chunk,) = family.chunks(family.open_rows(IDS, 1))
    log = family.claim(chunk)
    for number, key in enumerate(chunk.keys):
        log.append(row(key) | (bad if number == 3 else {}))
    log.close()
    again = family.claim(chunk)
    assert again.missing == [chunk.keys[3]]
    again.append(row(chunk.keys[3]))
    assert again.commit(list(again.rows()))
    assert len(chunk.version.read().collect()) == 10


def test_a_torn_or_damaged_log_line_is_left_out(tmp_path):
    family = Family(Warehouse(tmp_path), "f")
    family.extend(IDS, 1)
    (chunk,) = family.chunks(family.open_rows(IDS, 1))
    log = family.claim(chunk)
    for key in chunk.keys[:3]:
        log.append(row(key))
    log.close()
    (path,) = logs_of(family.logs, chunk.chunk_id)
    lines = path.read_bytes().splitlines(keepends=True)
    damaged = lines[1].replace(b"stop", b"step")
    path.write_bytes(lines[0] + damaged + lines[2][:-5])
    assert [r["sample_index"] for r in replay([path])] == [0]
    assert len(list(replay([path]))) == 1


def _hold(root: str, ready, go) -> None:
    family = Family(Warehouse(root), "f")
    (chunk,) = family.chunks(family.open_rows(IDS, 1))
    log = family.claim(chunk)
    log.append(row(chunk.keys[0]))
    ready.set()
    go.wait(30)


def test_the_claim_of_a_killed_owner_ends_immediately(tmp_path):
    family = Family(Warehouse(tmp_path), "f")
    family.extend(IDS, 1)
    (chunk,) = family.chunks(family.open_rows(IDS, 1))
    context = mp.get_context("spawn")
    ready, go = context.Event(), context.Event()
    process = context.Process(target=_hold, args=(str(tmp_path), ready, go))
    process.start()
    assert ready.wait(60)
    assert family.claim(chunk) is None
    os.kill(process.pid, 9)
    process.join()
    deadline = time.monotonic() + 5
    while (log := family.claim(chunk)) is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert log.done == {chunk.keys[0]}


def _plan(root: str, samples: int) -> int:
    return Family(Warehouse(root), "f").extend(IDS, samples)


@pytest.mark.slow
def test_concurrent_planners_plan_everything_once(tmp_path):
    Warehouse(tmp_path).create()
    with mp.get_context("spawn").Pool(4) as pool:
        planned = pool.starmap(_plan, [(str(tmp_path), n) for n in (3, 5, 8, 5, 3, 8, 2, 7)])
    keys = planned_keys(Family(Warehouse(tmp_path), "f"))
    assert sum(planned) == len(keys) == len(set(keys)) == 80


def test_identity_covers_exactly_what_determines_the_text():
    base = {
        "model_hash": "m",
        "recipe": "r",
        "template": "t",
        "form": "f",
        "seed": 0,
        "engine": "e",
    }
    sampling = {"temperature": 1.0, "top_p": 1.0, "max_tokens": 64}
    one = family_id(**base, sampling=sampling)
    assert one == family_id(**base, sampling=sampling | {"max_tokens": 128})
    assert one == family_id(**base, sampling=dict(reversed(sampling.items())))
    for change in (
        {"model_hash": "n"},
        {"recipe": "s"},
        {"template": "u"},
        {"form": "g"},
        {"seed": 1},
        {"engine": "e/float32"},
    ):
        assert one != family_id(**(base | change), sampling=sampling)
    assert one != family_id(**base, sampling=sampling | {"temperature": 0.9})
    assert len({trace_id(one, p, s) for p in "ab" for s in range(3)}) == 6
    assert 0 <= request_seed(0, "p", 0) < 2**31
