"""One contract for every store: a directory, and two independent S3 servers on loopback."""

from __future__ import annotations

import multiprocessing
import os
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import polars as pl
import pytest

from curate.errors import CurateError, UsageError
from curate.store import Store, open_store, parse_root, url_of
from tests.store.conftest import reach
from tests.store.servers import KEYS, Proxy

KINDS = ["local", "moto", "localbucket"]


@pytest.fixture(params=KINDS)
def root(
    request: pytest.FixtureRequest,
    servers: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """The root of an empty store."""
    if request.param == "local":
        return tmp_path / "store"
    reach(monkeypatch, servers(request.param))
    return parse_root(f"s3://curate/{uuid.uuid4().hex}/wh")


@pytest.fixture
def store(root: Path) -> Store:
    return open_store(root)


def test_an_object_is_created_once_and_read_back(store: Store, tmp_path: Path) -> None:
    assert not store.has("a/b")
    with pytest.raises(FileNotFoundError):
        store.get("a/b")
    assert store.put_if_absent("a/b", b"first")
    assert not store.put_if_absent("a/b", b"second")
    assert store.has("a/b")
    assert store.get("a/b") == b"first"
    store.put("a/b", b"third")
    assert store.get("a/b") == b"third"


def test_a_file_is_created_like_bytes(root: Path) -> None:
    from curate.warehouse.names import publish_file

    target = root / "a" / "part.parquet"
    if not url_of(root).startswith("s3:"):
        target.parent.mkdir(parents=True)
    content = os.urandom(3_000_000)
    assert publish_file(root, target, lambda path: path.write_bytes(content))
    assert not publish_file(root, target, lambda path: path.write_bytes(b"another"))
    assert open_store(root).get("a/part.parquet") == content


def test_a_list_sees_what_was_put_with_sizes_and_only_below_the_folder(store: Store) -> None:
    before = time.time()
    for key, size in (("a/1", 3), ("a/b/2", 4), ("ab/3", 5), ("c", 6)):
        assert store.put_if_absent(key, b"x" * size)
    entries = store.list("a")
    assert [(entry.key, entry.size) for entry in entries] == [("a/1", 3), ("a/b/2", 4)]
    assert all(abs(entry.changed - before) < 120 for entry in entries)
    assert [entry.key for entry in store.list("none")] == []
    listed = [entry.key for entry in store.list("") if not entry.key.startswith("_")]
    assert listed == ["a/1", "a/b/2", "ab/3", "c"]


def test_more_objects_than_one_answer_holds_are_listed(store: Store) -> None:
    names = [f"many/{number:05d}" for number in range(1100)]
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda name: store.put(name, b"."), names))
    assert [entry.key for entry in store.list("many")] == names


def test_deleting_an_absent_key_is_not_an_error(store: Store) -> None:
    store.put("a/1", b"1")
    store.put("a/2", b"2")
    store.delete(["a/1", "a/none", "a/2"])
    assert store.list("a") == []
    store.delete([])


def test_polars_reads_by_the_given_names(store: Store, tmp_path: Path) -> None:
    for number in range(2):
        pl.DataFrame({"n": [number, 10 * number]}).write_parquet(tmp_path / "part")
        key = f"t/part-[{number}].parquet"  # brackets would be a pattern in a glob
        assert store.put_if_absent(key, (tmp_path / "part").read_bytes())
    readable = store.readable(["t/part-[0].parquet", "t/part-[1].parquet"])
    frame = pl.scan_parquet(
        readable.names, glob=False, storage_options=readable.options, credential_provider=None
    )
    assert frame.collect()["n"].to_list() == [0, 0, 1, 10]


def test_threads_race_for_a_key_and_one_wins(store: Store) -> None:
    start = Barrier(6)

    def write(who: int) -> list[int]:
        won = []
        for number in range(10):
            start.wait(60)
            if store.put_if_absent(f"race/{number}", str(who).encode()):
                won.append(number)
        return won

    with ThreadPoolExecutor(6) as threads:
        won = list(threads.map(write, range(6)))
    assert sorted(number for numbers in won for number in numbers) == list(range(10))
    for number in range(10):
        winner = int(store.get(f"race/{number}"))
        assert number in won[winner]


def _race(root: str, who: int, keys: int, start: Any, queue: Any) -> None:
    store = open_store(parse_root(root))
    start.wait(60)
    content = str(who).encode()
    queue.put((who, [k for k in range(keys) if store.put_if_absent(f"race/{k:03d}", content)]))


@pytest.mark.slow
def test_processes_race_for_keys_and_one_wins_each(root: Path) -> None:
    context, keys = multiprocessing.get_context("spawn"), 100
    start, queue = context.Barrier(4), context.Queue()
    racers = [
        context.Process(target=_race, args=(url_of(root), who, keys, start, queue))
        for who in range(4)
    ]
    for racer in racers:
        racer.start()
    won = dict(queue.get(timeout=240) for _ in racers)
    for racer in racers:
        racer.join(60)
    assert sorted(k for numbers in won.values() for k in numbers) == list(range(keys))
    store = open_store(root)
    for key in range(keys):
        assert key in won[int(store.get(f"race/{key:03d}"))]


# -- what goes wrong with object storage ---------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS[1:])
def test_a_lost_answer_is_distinguished_from_another_writer(
    servers: Any, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    with Proxy(servers(kind)) as proxy:
        reach(monkeypatch, proxy.url)
        store = open_store(parse_root(f"s3://curate/{uuid.uuid4().hex}"))
        assert store.put_if_absent("probed", b"")
        proxy.lose = 3
        for number in range(3):
            assert store.put_if_absent(f"mine/{number}", b"mine"), "our own object is not another's"
            assert not store.put_if_absent(f"mine/{number}", b"other")
            assert store.get(f"mine/{number}") == b"mine"
        assert proxy.lost == 3


def test_a_creation_that_meets_another_one_is_tried_again(
    servers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Proxy(servers("moto")) as proxy:
        reach(monkeypatch, proxy.url)
        store = open_store(parse_root(f"s3://curate/{uuid.uuid4().hex}"))
        assert store.put_if_absent("probed", b"")
        proxy.refuse = 2
        assert store.put_if_absent("a", b"mine")
        assert proxy.refused == 2
        assert store.get("a") == b"mine"


def test_a_server_that_ignores_conditions_is_refused_before_anything_is_written(
    servers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Proxy(servers("moto"), strip=True) as proxy:
        reach(monkeypatch, proxy.url)
        store = open_store(parse_root(f"s3://curate/{uuid.uuid4().hex}"))
        for _ in range(2):
            with pytest.raises(UsageError, match="ignores `If-None-Match"):
                store.put_if_absent("a", b"")
        assert store.list("") == []


def test_faults_of_a_server_give_one_message(servers: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from curate.store import objects

    reach(monkeypatch, servers("moto"))
    with pytest.raises(UsageError, match="no such bucket"):
        open_store(parse_root("s3://absent/wh")).put_if_absent("a", b"")
    monkeypatch.setattr(objects, "RETRIES", 1)
    reach(monkeypatch, "http://127.0.0.1:9")
    with pytest.raises(CurateError, match="s3://curate/wh: object storage failed"):
        open_store(parse_root("s3://curate/wh")).has("a")


@pytest.mark.parametrize("text", ["s3://", "s3://bucket/../other", "http://host/bucket", "hf://x"])
def test_other_places_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="s3://bucket/path"):
        parse_root(text)


def test_a_root_keeps_its_name() -> None:
    assert url_of(parse_root("s3://bucket/a/b")) == "s3://bucket/a/b"
    assert url_of(parse_root(Path("s3://bucket/a/b"))) == "s3://bucket/a/b"
    assert url_of(parse_root("gs://bucket")) == "gs://bucket"
    assert parse_root("warehouse") == Path("warehouse").absolute()


def test_secrets_are_in_no_message(servers: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from curate.store import objects

    monkeypatch.setattr(objects, "RETRIES", 0)
    reach(monkeypatch, "http://127.0.0.1:9")
    with pytest.raises(CurateError) as caught:
        open_store(parse_root("s3://curate/wh")).list("")
    assert KEYS["AWS_SECRET_ACCESS_KEY"] not in str(caught.value)
