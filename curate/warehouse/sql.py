"""SQL over the files: views in memory, or in `warehouse.duckdb` for stock clients. Nothing but
views is ever stored."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from curate.atomic import disk_errors, whole_file
from curate.errors import CurateError, UsageError
from curate.warehouse import schemas
from curate.warehouse.annotations import signals_folder
from curate.warehouse.files import EMPTY
from curate.warehouse.store import Warehouse

if TYPE_CHECKING:
    import duckdb


def quote(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


@contextmanager
def connect(
    warehouse: Warehouse, without: Collection[str] = (), views: bool = True
) -> Iterator[duckdb.DuckDBPyConnection]:
    """An in-memory connection with all views. UsageError where there is no warehouse.

    `without`: groups of signals, or `verdicts`, that nobody will ask for. They are empty, which
    saves their joins. `views`: also those of `views.sql`, over `annotated`.
    """
    import duckdb

    if not warehouse.exists():
        raise UsageError(
            f"no warehouse at {warehouse.root}: name one with --warehouse, or make one with "
            f"`curate generate` or "
            "`curate import`"
        )
    with duckdb.connect(config={"autoinstall_known_extensions": False}) as connection:
        connection.execute("SET TimeZone = 'UTC'")
        # Parts never change, and every view on a view opens them anew: their footers are read once.
        connection.execute("SET parquet_metadata_cache = true")
        create_views(connection, warehouse, without, views)
        yield connection


def create_views(
    connection: duckdb.DuckDBPyConnection,
    warehouse: Warehouse,
    without: Collection[str] = (),
    views: bool = True,
) -> None:
    """A view a table over its part files, then what `macros.sql`, `joined.sql` and `views.sql` in
    `schemas/` build."""
    import duckdb

    for group in signal_groups():
        try:
            connection.execute(group_view(warehouse.root, group, empty=group in without))
        except duckdb.BinderException:
            connection.execute(
                group_view(warehouse.root, group, older=True, empty=group in without)
            )
    for table in schemas.TABLES:
        empty = table in without
        try:
            connection.execute(table_view(warehouse.root, table, empty=empty))
        except duckdb.BinderException:  # written before a column was added
            connection.execute(table_view(warehouse.root, table, older=True, empty=empty))
    connection.execute(_manifest_view(warehouse.root))
    connection.execute(schemas.statement("macros"))
    connection.execute(schemas.statement("joined"))
    derived = _derived(connection)
    connection.execute(f"CREATE OR REPLACE VIEW annotated AS SELECT *{derived} FROM joined")
    if views:
        connection.execute(f"CREATE OR REPLACE VIEW measured AS SELECT *{derived} FROM signals")
        connection.execute(schemas.statement("views"))


@contextmanager
def joined_as_written(connection: duckdb.DuckDBPyConnection) -> Iterator[None]:
    """Joins hash their right side, for queries whose left side is texts: left to itself, DuckDB
    hashes what it takes to be fewer rows, and may hold the texts of a whole slice."""
    connection.execute("SET disabled_optimizers = 'build_side_probe_side'")
    try:
        yield
    finally:
        connection.execute("RESET disabled_optimizers")


def table_view(
    root: Path,
    table: str,
    older: bool = False,
    empty: bool = False,
    files: Sequence[Path] | None = None,
) -> str:
    """The statement of one table's view. Where versions repeat rows by design, the newest counts
    (see below).

    `older`: every file may lack columns that the schema has now; they are null. `empty`: only the
    part without rows. `files`: only these.
    """
    glob = _listed(files) or quote(f"{root}/{table}/{EMPTY if empty else '*'}/*/part-*.parquet")
    columns = schemas.arrow_schema(table).names
    names = ", ".join(columns)
    # dataset and version are the two directories above the part
    place = "parse_path(filename)[-3] AS dataset, parse_path(filename)[-2] AS version"
    scan = f"read_parquet({glob}, union_by_name = true, filename = true, hive_partitioning = false)"
    if older:
        scan = _with_columns(table, scan)
    if not (root / table).is_dir():  # a warehouse written before there was such a table
        scan = f"(SELECT *, '' AS filename FROM {_with_columns(table, None)})"
    head = f"CREATE OR REPLACE VIEW {table} AS"
    if table == "problems":  # the same problem may be in several versions of a source
        kept = ", ".join(f"any_value({c}) AS {c}" for c in columns if c != "problem_id")
        return f"{head} SELECT problem_id, {kept} FROM {scan} GROUP BY problem_id"
    if table == "signals":
        return _signals_view(head)
    if table in ("corpora", "traces"):
        return f"{head} SELECT {names}, {place} FROM {scan}"
    return f"{head} SELECT {names} FROM {scan}"


def _listed(files: Sequence[Path] | None) -> str:
    return f"[{', '.join(quote(str(path)) for path in files)}]" if files else ""


def _with_columns(table: str, scan: str | None) -> str:
    """The scan (or nothing) with every column of the schema, by a union with no row."""
    nothing = ", ".join(f"NULL::{kind} AS {name}" for name, kind in schemas.types(table).items())
    return (
        f"(SELECT {nothing} WHERE FALSE)"
        if scan is None
        else (f"(SELECT * FROM {scan} UNION ALL BY NAME SELECT {nothing} WHERE FALSE)")
    )


def signal_groups() -> dict[str, list[str]]:
    """Group of signals to its columns: the schema says the group of a column in brackets before its
    comment."""
    groups: dict[str, list[str]] = {}
    for column, comment in schemas.comments("signals").items():
        if comment.startswith("["):
            groups.setdefault(comment[1:].partition("]")[0], []).append(column)
    return groups


def group_view(
    root: Path,
    group: str,
    older: bool = False,
    empty: bool = False,
    files: Sequence[Path] | None = None,
) -> str:
    """The statement of the view of one group of signals (see `table_view`)."""
    folder = EMPTY if empty else signals_folder(root, group)
    glob = _listed(files) or quote(f"{root}/signals/{folder}/*/part-*.parquet")
    scan = f"read_parquet({glob}, union_by_name = true, hive_partitioning = false)"
    scan = _with_columns("signals", scan) if older else scan
    columns = ", ".join(signal_groups()[group])
    return (
        f"CREATE OR REPLACE VIEW signals_{group} AS SELECT trace_id, attempt, {columns} FROM {scan}"
    )


def _signals_view(head: str) -> str:
    """All groups in one row a trace, for asking the table by itself; `joined` joins them one by
    one."""
    kept = "".join(
        f", any_value({column}) AS {column}"
        for columns in signal_groups().values()
        for column in columns
    )
    union = " UNION ALL BY NAME ".join(f"FROM signals_{group}" for group in signal_groups())
    return f"{head} SELECT trace_id, attempt{kept} FROM ({union}) GROUP BY trace_id, attempt"


def _derived(connection: duckdb.DuckDBPyConnection) -> str:
    """What the macros derive from signals: parameters of a macro are called as the columns they
    read."""
    columns = set(schemas.arrow_schema("signals").names)
    rows = connection.execute(
        "SELECT function_name, parameters FROM duckdb_functions() WHERE function_type = 'macro' "
        "AND NOT internal "
        "ORDER BY function_name"
    ).fetchall()
    return "".join(
        f", {name}({', '.join(parameters)}) AS {name}"
        for name, parameters in rows
        if columns.issuperset(parameters)
    )


def _manifest_view(root: Path) -> str:
    columns = (
        "{'table': 'VARCHAR', dataset: 'VARCHAR', version: 'VARCHAR', schema_version: 'INTEGER', "
        "rows: 'BIGINT', "
        "parents: 'VARCHAR[]', config: 'JSON', model_hash: 'VARCHAR', seed: 'BIGINT', "
        "code_version: 'VARCHAR', "
        "sealed_at: 'TIMESTAMPTZ', facts: 'JSON'}"
    )
    return (
        "CREATE OR REPLACE VIEW manifests AS "
        "SELECT \"table\" || '/' || dataset || '/' || version AS ref, * "
        f"FROM read_json({quote(f'{root}/*/*/*/manifest.json')}, columns = {columns}, "
        f"maximum_object_size = 1073741824) WHERE dataset <> '{EMPTY}'"
    )


def check_read_only(query: str) -> None:
    """UsageError unless every statement only reads: SELECT, DESCRIBE, SHOW, SUMMARIZE, EXPLAIN."""
    import duckdb

    try:
        statements = duckdb.extract_statements(query)
    except duckdb.Error as error:
        raise UsageError(f"the query could not be read: {error}") from error
    allowed = {duckdb.StatementType.SELECT, duckdb.StatementType.EXPLAIN}
    for statement in statements:
        if statement.type not in allowed:
            raise UsageError(
                f"`curate sql` only reads, and this is a {statement.type.name} statement; to "
                f"write a result, use "
                "--format csv, json or parquet"
            )


def write_database(warehouse: Warehouse) -> Path:
    """Rebuild `warehouse.duckdb` (views only) for stock clients, and put it in place by rename.

    Views hold the absolute path of the warehouse: after it moves, any `curate` command that writes
    rebuilds them.
    """
    import duckdb

    target = warehouse.root / "warehouse.duckdb"
    try:
        with (
            disk_errors(warehouse.root),
            whole_file(target) as staged,
            duckdb.connect() as connection,
        ):
            # the storage version that clients since 1.0 can open
            connection.execute(f"ATTACH {quote(str(staged))} AS views (STORAGE_VERSION 'v1.0.0')")
            connection.execute("USE views")
            create_views(connection, warehouse)
            connection.execute("USE memory")
            connection.execute("DETACH views")
    except duckdb.Error as error:
        raise CurateError(f"could not write {target}: {error}") from error
    return target
