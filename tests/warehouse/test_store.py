import errno
import os
from concurrent.futures import ThreadPoolExecutor

import duckdb
import polars as pl
import pyarrow as pa
import pytest

from curate import atomic
from curate.errors import CurateError, UsageError
from curate.warehouse import Warehouse, schemas
from curate.warehouse.sql import check_read_only, write_database


def problem(n: int) -> dict[str, object]:
    return {"problem_id": f"p{n}", "question": f"{n} + {n}?", "reference": str(2 * n)}


def test_every_client_can_query_a_table_without_rows(tmp_path):
    wh = Warehouse(tmp_path / "wh").create()
    for table in schemas.TABLES:
        assert wh.sql(f"SELECT count(*) FROM {table}").item() == 0
        assert (
            pl.read_parquet(f"{wh.root}/{table}/*/*/*.parquet").columns
            == schemas.arrow_schema(table).names
        )
        assert duckdb.sql(f"SELECT count(*) FROM '{wh.root}/{table}/*/*/*.parquet'").fetchall() == [
            (0,)
        ]
    assert wh.sql("SELECT count(*) FROM annotated").item() == 0


def test_every_column_has_a_comment():
    for table in schemas.TABLES:
        assert set(schemas.comments(table)) == set(schemas.arrow_schema(table).names), table
        assert schemas.schema_version(table) >= 1


def test_publish_is_idempotent_and_never_overwrites(tmp_path):
    version = Warehouse(tmp_path).version("problems", "mine", "v1")
    assert version.publish("a", [problem(1)])
    assert not version.publish("a", [problem(2)])
    assert version.read(["problem_id"]).collect().rows() == [("p1",)]


def test_one_of_many_writers_of_a_part_wins(tmp_path):
    version = Warehouse(tmp_path).version("problems", "mine", "v1")
    with ThreadPoolExecutor(8) as threads:
        won = list(threads.map(lambda n: version.publish("a", [problem(n)]), range(32)))
    assert sum(won) == 1
    assert version.read().collect().height == 1
    assert not list((tmp_path / "_staging").iterdir())


def test_a_link_reported_as_existing_is_a_success_if_it_is_ours(tmp_path, monkeypatch):
    """NFS repeats a request whose answer was lost, and then finds the file that it made itself."""
    link = os.link

    def answer_lost(source, target):
        link(source, target)
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))

    monkeypatch.setattr(os, "link", answer_lost)
    version = Warehouse(tmp_path).version("problems", "mine", "v1")
    assert version.publish("a", [problem(1)])
    assert not version.publish("a", [problem(2)])
    assert version.read(["problem_id"]).collect().rows() == [("p1",)]


def test_sealed_versions_never_change(tmp_path):
    wh = Warehouse(tmp_path)
    version = wh.write("problems", "mine", [problem(1)], key="k", parents=["x/y/z"], seed=3)
    assert version.manifest["rows"] == 1
    assert version.manifest["parents"] == ["x/y/z"]
    assert version.manifest["seed"] == 3
    assert version.manifest["code_version"]
    with pytest.raises(CurateError, match="sealed"):
        version.publish("b", [problem(2)])
    assert wh.write("problems", "mine", [problem(9)], key="k").read().collect()[
        "problem_id"
    ].to_list() == ["p1"]


def test_latest_is_the_newest_seal_and_can_be_named(tmp_path):
    wh = Warehouse(tmp_path)
    first = wh.write("problems", "mine", [problem(1)], key=1)
    second = wh.write("problems", "mine", [problem(2)], key=2)
    assert wh.latest("problems", "mine") == second
    assert wh.latest("problems", f"mine@{first.version[:8]}") == first
    with pytest.raises(UsageError, match="there are mine"):
        wh.latest("problems", "yours")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"problem_id": "a", "question": "q", "colour": "red"}, "no column colour"),
        ({"problem_id": "a"}, "question .* must not be null"),
    ],
)
def test_rows_that_do_not_fit_the_schema_are_refused(tmp_path, row, message):
    with pytest.raises(CurateError, match=message):
        Warehouse(tmp_path).version("problems", "mine", "v").publish("a", [row])


def test_names_cannot_leave_the_warehouse(tmp_path):
    for name in ("../x", "a/b", "", ".hidden", "a*"):
        with pytest.raises(UsageError):
            Warehouse(tmp_path).version("problems", name, "v")


def test_a_full_disk_gives_one_message_and_leaves_no_part(tmp_path, monkeypatch):
    version = Warehouse(tmp_path).version("problems", "mine", "v1")
    version.publish("a", [problem(1)])

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(atomic.os, "fsync", full)
        with pytest.raises(CurateError, match=r"disk .* full; what was committed is intact"):
            version.publish("b", [problem(2)])
    assert [p.name for p in version.parts()] == ["part-a.parquet"]
    assert not list((tmp_path / "_staging").iterdir())
    assert version.publish("b", [problem(2)])


def test_files_of_killed_writers_are_removed_by_age(tmp_path):
    wh = Warehouse(tmp_path).create()
    names = "0123456789ab-7-0a0a0a0a.parquet", "0123456789ab-7-0b0b0b0b.parquet", "notes.parquet"
    old, young, foreign = (wh.root / "_staging" / name for name in names)
    for path in (old, young, foreign):
        path.write_bytes(b"half")
    os.utime(old, (1, 1))
    os.utime(foreign, (1, 1))  # no writer gives such a name
    assert wh.clean() == 1
    assert not old.exists()
    assert young.exists()
    assert foreign.exists()


def test_the_database_file_holds_views_only_and_opens_in_stock_duckdb(tmp_path):
    wh = Warehouse(tmp_path)
    wh.write("problems", "mine", [problem(1)], key=1)
    path = write_database(wh.root)
    with duckdb.connect(str(path), read_only=True) as con:
        assert con.sql("SELECT count(*) FROM problems").fetchall() == [(1,)]
        assert con.sql("SELECT count(*) FROM duckdb_tables() WHERE NOT internal").fetchall() == [
            (0,)
        ]
    wh.write("problems", "more", [problem(2)], key=2)
    with duckdb.connect(str(path), read_only=True) as con:  # views include rows added later
        assert con.sql("SELECT count(*) FROM problems").fetchall() == [(2,)]


def test_the_last_attempt_and_the_newest_verdict_count(tmp_path):
    wh = Warehouse(tmp_path)
    trace = {
        "trace_id": "t",
        "problem_id": "p1",
        "sample_index": 0,
        "recipe": "r1-zero",
        "form": "plain",
    }
    rows = [trace | {"attempt": n, "finish_reason": r} for n, r in enumerate(["length", "stop"])]
    wh.write("traces", "d", rows, key=1)
    wh.write("problems", "mine", [problem(1)], key=1)
    verdict = {"trace_id": "t", "attempt": 1, "verifier": "math"}
    rule = [
        verdict | {"kind": "rule", "verifier_version": str(v), "verdict": x}
        for v, x in ((2, "correct"), (1, "wrong"))
    ]
    judge = [verdict | {"kind": "judge", "verifier_version": "9", "verdict": "wrong"}]
    wh.write("verdicts", "math", rule + judge, key=1)
    wh.write("signals", "shape@1", [{"trace_id": "t", "attempt": 1, "has_think": False}], key=1)
    wh.write("signals", "shape@2", [{"trace_id": "t", "attempt": 1, "has_think": True}], key=1)
    got = wh.sql(
        "SELECT attempt, verdict, judge_verdict, has_think, question, readable FROM annotated"
    )
    assert got.height == 1
    assert got.row(0)[:5] == (1, "correct", "wrong", True, "1 + 1?")


@pytest.mark.parametrize(
    "query",
    ["DROP VIEW traces", "COPY traces TO 'x'", "ATTACH 'y'", "SELECT 1; CREATE TABLE t(a INT)"],
)
def test_sql_only_reads(query):
    with pytest.raises(UsageError, match="only reads"):
        check_read_only(query)


def test_sql_reads():
    check_read_only(
        "WITH a AS (SELECT 1) SELECT * FROM a; DESCRIBE SELECT 1; SHOW TABLES; EXPLAIN SELECT 1; "
        "SUMMARIZE SELECT 1"
    )


def test_a_missing_warehouse_gives_one_message(tmp_path):
    with pytest.raises(UsageError, match="no warehouse at"):
        Warehouse(tmp_path / "none").sql("SELECT 1")


def test_files_written_before_a_column_was_added_are_read_with_nulls(tmp_path, monkeypatch):
    schema = schemas.arrow_schema

    def older(table):  # the schema of a version of curate that had fewer columns
        names = [n for n in schema(table).names if n not in ("source", "step_count")]
        return pa.schema([schema(table).field(name) for name in names])

    wh = Warehouse(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(schemas, "arrow_schema", older)
        wh.write("problems", "old", [{"problem_id": "p", "question": "1 + 1?"}], key=1)
    assert wh.sql("SELECT problem_id, source FROM problems").rows() == [("p", None)]
    assert wh.sql("SELECT step_count FROM annotated").is_empty()
