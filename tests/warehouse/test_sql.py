"""`curate sql` reads the warehouse and nothing else, and writes nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from curate.console import query as console
from curate.errors import CurateError, UsageError
from curate.warehouse import Warehouse
from curate.warehouse.sql import check_read_only, connect_read_only, query

TRACE = {
    "trace_id": "t1",
    "attempt": 0,
    "problem_id": "p",
    "sample_index": 0,
    "recipe": "r1-zero",
    "form": "plain",
    "finish_reason": "stop",
}


@pytest.fixture
def wh(tmp_path: Path) -> Warehouse:
    warehouse = Warehouse(tmp_path / "wh")
    warehouse.write("traces", "d", [TRACE], key=1)
    (tmp_path / "secret.txt").write_text("SECRET")
    return warehouse


WRITES = [
    "COPY (SELECT 1) TO '{wh}/out.csv'",
    "EXPLAIN ANALYZE COPY (SELECT 1 AS a) TO '{part}' (FORMAT parquet)",
    "EXPLAIN COPY (SELECT 1) TO '{wh}/out.csv'",
    "EXPLAIN /* x */ ANALYZE COPY (SELECT 1) TO '{wh}/out.csv'",
    "EXPLAIN (ANALYZE) COPY (SELECT 1) TO '{wh}/out.csv'",
    "explain\nanalyze\ncopy (SELECT 1) TO '{wh}/out.csv'",
    "EXPLAIN ANALYZE SET threads = 1",
    "EXPLAIN ANALYZE CREATE TABLE t (a INT)",
    "EXPLAIN ANALYZE DROP VIEW traces",
    "EXPLAIN ANALYZE INSTALL httpfs",
    "EXPLAIN ANALYZE LOAD '/tmp/x.duckdb_extension'",
    "EXPLAIN ANALYZE EXPLAIN ANALYZE COPY (SELECT 1) TO '{wh}/out.csv'",
    "SELECT 1; COPY (SELECT 1) TO '{wh}/out.csv'",
    "ATTACH '{wh}/x.db'",
    "INSTALL httpfs",
    "LOAD httpfs",
    "SET threads = 1",
    "RESET threads",
    "PRAGMA database_list",
    "CALL duckdb_settings()",
    "CHECKPOINT",
    "USE memory",
    "EXPORT DATABASE '{wh}/x'",
    "IMPORT DATABASE '{wh}/x'",
    "CREATE SECRET s (TYPE s3)",
    "CREATE TABLE t AS SELECT 1",
    "DROP VIEW traces",
    "WITH x AS (INSERT INTO traces VALUES (1) RETURNING *) SELECT * FROM x",
    "PREPARE p AS SELECT 1",
    "BEGIN",
    "",
]


@pytest.mark.parametrize("statement", WRITES)
def test_a_statement_other_than_a_query_is_refused(wh: Warehouse, statement: str) -> None:
    part = next(wh.root.glob("traces/d/*/part-0.parquet"))
    before = {path: path.read_bytes() for path in wh.root.rglob("*") if path.is_file()}
    with pytest.raises(UsageError):
        wh.sql(statement.format(wh=wh.root, part=part))
    after = {path: path.read_bytes() for path in wh.root.rglob("*") if path.is_file()}
    assert after == before


READS = [
    "SELECT content FROM read_text('{out}/secret.txt')",
    "SELECT content FROM read_text('{wh}/../secret.txt')",
    "SELECT content FROM read_text('{wh}/link.txt')",
    "SELECT * FROM read_blob('/proc/self/environ')",
    "SELECT * FROM read_csv('/etc/passwd')",
    "SELECT * FROM '/etc/passwd'",
    "SELECT * FROM glob('{out}/*')",
    "SELECT * FROM sniff_csv('/etc/passwd')",
    "SELECT * FROM parquet_metadata('{out}/secret.txt')",
    "SELECT * FROM read_parquet('https://example.com/x.parquet')",
    "SELECT getenv('HOME')",
    "FROM query('SELECT * FROM read_text(''{out}/secret.txt'')')",
    "EXPLAIN ANALYZE SELECT * FROM read_text('{out}/secret.txt')",
]


@pytest.mark.parametrize("statement", READS)
def test_a_file_outside_the_warehouse_is_not_read(wh: Warehouse, statement: str) -> None:
    (wh.root / "link.txt").symlink_to(wh.root.parent / "secret.txt")
    text = statement.format(wh=wh.root, out=wh.root.parent)
    with pytest.raises(Exception, match=r"disabled|does not exist|outside") as caught:
        wh.sql(text)
    assert "SECRET" not in str(caught.value)


def test_options_are_locked(wh: Warehouse) -> None:
    with connect_read_only(wh.root) as connection:
        for statement in ("SET enable_external_access = true", "SET lock_configuration = false"):
            with pytest.raises(Exception, match="lock"):
                connection.execute(statement)


def test_with_allow_files_a_query_reads_files_and_still_writes_none(wh: Warehouse) -> None:
    text = f"SELECT content FROM read_text('{wh.root.parent}/secret.txt')"
    assert query(wh.root, text, allow_files=True).item() == "SECRET"
    with pytest.raises(UsageError, match="only reads"):
        query(wh.root, f"COPY (SELECT 1) TO '{wh.root}/x.csv'", allow_files=True)
    assert not (wh.root / "x.csv").exists()


def test_queries_of_all_kinds_are_allowed(wh: Warehouse) -> None:
    for text in (
        "WITH a AS (SELECT 1) SELECT * FROM a",
        "FROM traces",
        "VALUES (1)",
        "DESCRIBE traces",
        "SHOW TABLES",
        "SUMMARIZE traces",
        "EXPLAIN SELECT 1",
        "EXPLAIN ANALYZE SELECT count(*) FROM traces",
        "SELECT 'COPY x TO y; DROP VIEW z' AS text",
        "SELECT 1; SELECT count(*) FROM manifests",
    ):
        check_read_only(text)
        assert wh.sql(text).height >= 0


@pytest.mark.parametrize("name", ["new[1]", "star*q?", "it's a ü 空 dir", "curly{a,b}", "x; y--"])
def test_a_warehouse_may_have_any_name(tmp_path: Path, name: str) -> None:
    wh = Warehouse(tmp_path / name / "w")
    other = Warehouse(tmp_path / name.translate({ord("*"): "X", ord("?"): "Y"}) / "w")
    other.write("traces", "d", [TRACE, {**TRACE, "trace_id": "t2"}], key=2)
    if wh.root != other.root:
        wh.write("traces", "d", [TRACE], key=1)
        assert wh.sql("SELECT count(*) FROM annotated").item() == 1
    assert other.sql("SELECT count(*) FROM annotated").item() == 2
    assert other.sql("SELECT count(*) FROM manifests").item() == 1


def test_a_warehouse_behind_a_symbolic_link_is_read(wh: Warehouse, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(wh.root)
    assert Warehouse(link).sql("SELECT count(*) FROM traces").item() == 1


def test_a_refused_file_gives_one_message(
    wh: Warehouse, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UsageError, match="--allow-files"):
        console.run_query(wh.root, "SELECT * FROM read_text('/etc/passwd')", "table")
    console.run_query(wh.root, "SELECT trace_id FROM traces", "csv")
    assert capsys.readouterr().out == "trace_id\nt1\n"


def test_a_broken_part_gives_one_message_that_names_it(wh: Warehouse) -> None:
    part = next(wh.root.glob("traces/d/*/part-0.parquet"))
    data = bytearray(part.read_bytes())
    data[-12:-8] = b"\xff\xff\xff\x7f"  # the length of the footer; the size stays
    part.write_bytes(data)
    with pytest.raises(CurateError, match=r"part-0\.parquet.*curate check"):
        wh.sql("SELECT * FROM traces")


def test_a_problem_of_two_sources_has_the_values_of_one(tmp_path: Path) -> None:
    """Not any values: a filter would count its traces under another source each time."""
    wh = Warehouse(tmp_path / "wh")
    for source, domain in (("zebra", "logic"), ("ant", None), ("bee", "math")):
        row = {"problem_id": "p", "question": "1 + 1?", "source": source, "domain": domain}
        wh.write("problems", source, [row], key=1)
    # Of each column the first value by place: ant has no domain.
    rows = {wh.sql("SELECT source, domain FROM problems").row(0) for _ in range(5)}
    assert rows == {("ant", "math")}
