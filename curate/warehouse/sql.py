"""SQL over the files: views in memory, or in `warehouse.duckdb` for stock clients.

Nothing but views is ever stored. Two kinds of connection:

    connect(root)      for this package's own statements: may set options and register frames
    query(root, text)  for text of a user or a file: reads the warehouse and nothing else

The second is closed by DuckDB's own settings (no access to files outside the warehouse, no loading
of extensions, options locked), and every statement must be a query by its parse tree, so that
nothing is written inside the warehouse either.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import duckdb
import polars as pl

from curate.atomic import disk_errors, unique_name, whole_file
from curate.errors import CurateError, UsageError
from curate.store import is_remote, located, url_of
from curate.store.paths import folders, is_folder, listed_once
from curate.warehouse import comments, schemas
from curate.warehouse.annotations import signals_folder
from curate.warehouse.names import EMPTY, is_warehouse
from curate.warehouse.parts import empty_part, find_damage, manifests, parts_of, table_parts


def quote(text: str) -> str:
    """A SQL string literal."""
    return "'" + text.replace("'", "''") + "'"


def escape_glob(path: str | Path) -> str:
    """Escape a path, so that a glob matches it literally."""
    return re.sub(r"([*?\[\]])", r"[\1]", str(path))


@contextmanager
def connect(
    root: Path,
    without: Collection[str] = (),
    views: bool = True,
    only: Collection[str] | None = None,
) -> Iterator[duckdb.DuckDBPyConnection]:
    """Open an in-memory connection with all views. UsageError if the warehouse does not exist.

    `without` names groups of signals, or `verdicts`, that no statement will read: they become empty
    views, which avoids their joins. `views`: also create those of `views.sql`, over `annotated`.
    `only`: create only these views and those that they read. A part of a view that is missing,
    changed or foreign raises CurateError.
    """
    if not is_warehouse(root):
        raise UsageError(
            f"no warehouse at {url_of(root)}: name one with --warehouse, or create one with "
            "`curate generate` or `curate import`"
        )
    spill = Path(tempfile.gettempdir()) / f"curate-{unique_name()}"
    with duckdb.connect(config={"autoinstall_known_extensions": False}) as connection:
        connection.execute("SET TimeZone = 'UTC'")
        connection.execute(f"SET temp_directory = {quote(str(spill))}")
        # Parts never change, and every view on a view opens them again: read their footers once.
        connection.execute("SET parquet_metadata_cache = true")
        # DuckDB would draw its own bar on stdout, where results go.
        connection.execute("SET enable_progress_bar = false")
        try:
            with damage_reported(root):
                if is_remote(root):
                    _reach(connection, root)
                with listed_once(root):
                    create_views(connection, root, without, views, only=only)
                yield connection
        finally:
            shutil.rmtree(spill, ignore_errors=True)


@contextmanager
def connect_read_only(
    root: Path, allow_files: bool = False, only: Collection[str] | None = None
) -> Iterator[duckdb.DuckDBPyConnection]:
    """Open a connection for statements of others: it reads files of the warehouse and no others.

    `allow_files` lets it read any file that this process may read. `only`: see `connect`. Pass each
    statement through `check_read_only` first: the settings alone do not prevent writing inside the
    warehouse.
    """
    with connect(root, only=only) as connection:
        if not allow_files:
            if is_remote(root):
                roots = {f"{url_of(root)}/"}
            else:
                roots = {f"{path}/" for path in (root, root.resolve())}
            roots |= {escape_glob(path) for path in roots}  # how the views spell it
            listed = ", ".join(quote(path) for path in sorted(roots))
            connection.execute(f"SET allowed_directories = [{listed}]")
            connection.execute("SET enable_external_access = false")
        # Names of tables are not names of variables of this program.
        connection.execute("SET python_enable_replacements = false")
        connection.execute("SET lock_configuration = true")
        yield connection


def _reach(connection: duckdb.DuckDBPyConnection, root: Path) -> None:
    """Let DuckDB read a bucket: by its extension httpfs if that is installed, else by way of
    Python.
    """
    store, _ = located(root)
    try:
        connection.execute("LOAD httpfs")
    except duckdb.Error:
        connection.register_filesystem(store.filesystem())
        return
    for statement in store.duckdb_settings():
        connection.execute(statement)


def query(
    root: Path, text: str, params: Sequence[Any] = (), allow_files: bool = False
) -> pl.DataFrame:
    """Return the result of a query, of the last one if there are several. Nothing is written."""
    check_read_only(text)
    with connect_read_only(root, allow_files, views_read(text)) as connection:
        result = connection.sql(text, params=list(params))
        return result.pl() if result is not None else pl.DataFrame()


@contextmanager
def damage_reported(root: Path) -> Iterator[None]:
    """Turn an error of DuckDB that a damaged part causes into one message that names the part."""
    try:
        yield
    except duckdb.Error as error:
        if may_be_damage(error) and (damage := find_damage(root)) is not None:
            raise damage from error
        raise


def may_be_damage(error: duckdb.Error) -> bool:
    """Whether an error can come from damaged bytes. DuckDB has no separate class for those."""
    kinds = (
        duckdb.IOException,
        duckdb.InvalidInputException,
        duckdb.InternalException,
        duckdb.FatalException,
        duckdb.OutOfMemoryException,  # a damaged length of a page
    )
    return type(error) is duckdb.Error or isinstance(error, kinds)


# -- statements of others ------------------------------------------------------------------------

# Nodes of a parse tree that change something, were they to occur inside a query.
_WRITES = ("INSERT", "UPDATE", "DELETE", "MERGE", "COPY", "CREATE", "DROP", "ALTER", "TRUNCATE")


def check_read_only(text: str) -> None:
    """UsageError unless every statement is a query: SELECT, DESCRIBE, SHOW, SUMMARIZE, or EXPLAIN
    of one."""
    try:
        statements = _parser().cursor().extract_statements(text)
    except duckdb.Error as error:
        raise UsageError(f"the query is not valid SQL: {str(error).strip()}") from error
    if not statements:
        raise UsageError("the query is empty")
    for statement in statements:
        kind, source = statement.type, statement.query
        if kind == duckdb.StatementType.EXPLAIN:
            kind, source = _explained(source)
        if kind != duckdb.StatementType.SELECT or not _is_query(source):
            raise UsageError(
                f"`curate sql` only reads, and this is not a query ({kind.name}): "
                f"{source.strip()[:80]}. To save a result, use --format csv, json or parquet"
            )


def _explained(statement: str) -> tuple[duckdb.StatementType, str]:
    """Kind and text of the statement that EXPLAIN [ANALYZE] would run."""
    match = re.match(r"\s*EXPLAIN\s+(?:ANALYZE\s+)?(.*)", statement, re.IGNORECASE | re.DOTALL)
    if match is None:  # comments or options between the words: refused, as nothing needs them
        return duckdb.StatementType.EXPLAIN, statement
    try:
        inner = _parser().cursor().extract_statements(match.group(1))
    except duckdb.Error:
        return duckdb.StatementType.EXPLAIN, statement
    return (
        (inner[0].type, inner[0].query)
        if len(inner) == 1
        else (
            duckdb.StatementType.EXPLAIN,
            statement,
        )
    )


def _is_query(statement: str) -> bool:
    """Whether the parse tree of a statement is that of a query, with nothing in it that writes."""
    tree = parse_tree(statement)
    return tree is not None and not any(
        str(node.get("type", "")).startswith(_WRITES) for node in _nodes(tree)
    )


def parse_tree(statement: str) -> dict[str, Any] | None:
    """DuckDB's parse tree of a query, or None if the statement is not a valid query."""
    query = "SELECT json_serialize_sql(?::VARCHAR)"
    # A separate cursor: a connection serves one thread at a time.
    row = _parser().cursor().execute(query, [statement]).fetchone()
    tree: dict[str, Any] = json.loads(row[0]) if row else {"error": True}
    return None if tree.get("error") else tree


def views_read(text: str) -> set[str] | None:
    """Views that queries name; None if they may read others, as SHOW TABLES does."""
    names: set[str] = set()
    all_views = {*schemas.TABLES, *_VIEWS, *view_statements()}
    for statement in _parser().cursor().extract_statements(text):
        tree = parse_tree(statement.query)
        if tree is None:  # EXPLAIN
            return None
        nodes = list(_nodes(tree))
        local = {str(node["key"]).lower() for node in nodes if {"key", "value"} <= node.keys()}
        for node in nodes:
            if node.get("type") in ("TABLE_FUNCTION", "SHOW_REF"):
                return None
            if node.get("type") == "BASE_TABLE":
                name = str(node.get("table_name")).lower()
                if node.get("schema_name") or name not in all_views | local:
                    return None
                names |= {name} & all_views
    return names


def _nodes(tree: Any) -> Iterator[dict[str, Any]]:
    stack = [tree]
    while stack:
        node = stack.pop()
        if isinstance(node, dict):
            yield node
            stack.extend(node.values())
        elif isinstance(node, list):
            stack.extend(node)


@cache
def _parser() -> duckdb.DuckDBPyConnection:
    """One connection for all parsing: opening one takes longer than parsing."""
    return duckdb.connect()


# -- views ---------------------------------------------------------------------------------------


def create_views(
    connection: duckdb.DuckDBPyConnection,
    root: Path,
    without: Collection[str] = (),
    views: bool = True,
    globs: bool = False,
    only: Collection[str] | None = None,
) -> None:
    """Create one view per table, then those of `macros.sql`, `joined.sql` and `views.sql`.

    Views read the parts that exist now, checked. `globs`: they match files when they are read, and
    check nothing; for clients that keep the views. `only`: see `connect`.
    """
    wanted = _with_dependencies(only)
    tables = [table for table in schemas.TABLES if table != "signals"]
    for name in [*signal_groups(), *tables]:
        if not wanted(_view_name(name)):
            continue
        if globs:
            files = None
        elif name in without:
            files = [empty_part(root, table_of(name))]
        else:
            files = view_parts(root, name)
        point(connection, root, name, files)
    if wanted("signals"):
        connection.execute(_signals_view())
    if wanted("manifests"):
        connection.execute(_manifest_view(root))
    connection.execute(schemas.statement("macros"))
    _create(connection, "joined", wanted)
    if wanted("annotated") or wanted("measured"):
        derived = _derived(connection)
        if wanted("annotated"):
            connection.execute(f"CREATE OR REPLACE VIEW annotated AS SELECT *{derived} FROM joined")
        if views and wanted("measured"):
            connection.execute(f"CREATE OR REPLACE VIEW measured AS SELECT *{derived} FROM signals")
    if views:
        _create(connection, "views", wanted)


def _create(
    connection: duckdb.DuckDBPyConnection, file: str, wanted: Callable[[str], bool]
) -> None:
    for name, statement in _statements(file).items():
        if wanted(name):
            connection.execute(statement)


@cache
def _statements(file: str) -> dict[str, str]:
    """The views that a file in `schemas/` creates, with their statements, in order."""
    statements = [
        one.query for one in _parser().cursor().extract_statements(schemas.statement(file))
    ]
    return {str(re.findall(r"VIEW (\w+) AS", text)[0]): text for text in statements}


# Views that this module composes.
_VIEWS = ("annotated", "measured", "manifests")


@cache
def view_statements() -> dict[str, str]:
    """The views of `joined.sql` and `views.sql`, with their statements."""
    return _statements("joined") | _statements("views")


def _view_name(name: str) -> str:
    """The name of the view of a table, or of a group of signals."""
    return f"signals_{name}" if name in signal_groups() else name


def _with_dependencies(only: Collection[str] | None) -> Callable[[str], bool]:
    """Whether a view is to be created: one of `only`, or read by one of them; None: all are."""
    if only is None:
        return lambda name: True
    groups = [_view_name(group) for group in signal_groups()]
    reads = {
        name: set(re.findall(r"\w+", text)) - {name} for name, text in view_statements().items()
    }
    reads |= {"annotated": {"joined"}, "measured": {"signals"}, "signals": set(groups)}
    names, waiting = set[str](), list(only)
    while waiting:
        if (name := waiting.pop()) not in names:
            names.add(name)
            waiting.extend(reads.get(name, ()))
    return names.__contains__


def point(
    connection: duckdb.DuckDBPyConnection, root: Path, name: str, files: Sequence[Path] | None
) -> None:
    """Create the view of a table or a group of signals over these parts; None: over a glob."""
    view = group_view if name in signal_groups() else table_view
    try:
        connection.execute(view(root, name, files))
    except duckdb.BinderException:  # all of them were written before a column was added
        connection.execute(view(root, name, files, older=True))


def table_of(name: str) -> str:
    """The table that holds what a view shows: `signals` for a group of signals."""
    return "signals" if name in signal_groups() else name


def view_parts(root: Path, name: str) -> list[Path]:
    """All parts that the view of a table, or of a group of signals, shows now; checked.

    Only the newest version of a group counts. The part without rows is always among them.
    """
    if name not in signal_groups():
        return table_parts(root, name)
    folder = root / "signals" / signals_folder(root, name)
    paths = parts_of(folders(folder))
    return paths or [empty_part(root, "signals")]


@contextmanager
def joined_as_written(connection: duckdb.DuckDBPyConnection) -> Iterator[None]:
    """Make joins hash their right side, for queries whose left side holds texts.

    Left to itself, DuckDB hashes the side for which it estimates fewer rows, and may hold the texts
    of a whole slice in memory.
    """
    connection.execute("SET disabled_optimizers = 'build_side_probe_side'")
    try:
        yield
    finally:
        connection.execute("RESET disabled_optimizers")


def table_view(
    root: Path, table: str, files: Sequence[Path] | None = None, older: bool = False
) -> str:
    """The statement of the view of a table over these parts; None: over a glob.

    `older`: all of them may lack columns of today's schema, which are null then.
    """
    columns = list(schemas.types(table))
    names = ", ".join(columns)
    # The dataset and the version of a part are the two directories above it.
    place = "parse_path(filename)[-3] AS dataset, parse_path(filename)[-2] AS version"
    if files or (files is None and is_folder(root / table)):
        scan = _scan(files, f"{escape_glob(root)}/{table}/*/*/part-*.parquet", "filename = true")
        if older:
            scan = _with_columns(table, scan)
    else:  # the warehouse is older than the table
        scan = f"(SELECT *, '' AS filename FROM {_with_columns(table, None)})"
    head = f"CREATE OR REPLACE VIEW {table} AS"
    if table == "problems":
        # Several versions and sources may hold the same problem: of each column the first value by
        # place, and not any, so that a query answers the same each time. A correction keeps the
        # problem's id: the newest one has the reference.
        chosen = {
            "reference": "arg_max(reference, coalesce(correction, 0))",
            "correction": "max(correction)",
        }
        values = ", ".join(
            f"{chosen.get(c, f'arg_min({c}, filename)')} AS {c}"
            for c in columns
            if c != "problem_id"
        )
        return f"{head} SELECT problem_id, {values} FROM {scan} GROUP BY problem_id"
    if table in ("corpora", "traces"):
        return f"{head} SELECT {names}, {place} FROM {scan}"
    return f"{head} SELECT {names} FROM {scan}"


def group_view(
    root: Path, group: str, files: Sequence[Path] | None = None, older: bool = False
) -> str:
    """The statement of the view of one group of signals (see `table_view`)."""
    folder = f"{escape_glob(root)}/signals/{signals_folder(root, group)}"
    scan = _scan(files, f"{folder}/*/part-*.parquet", "filename = true")
    if older:
        scan = _with_columns("signals", scan)
    columns = ", ".join(signal_groups()[group])
    # The directory of a part names the version of the traces that it is about.
    return (
        f"CREATE OR REPLACE VIEW signals_{group} AS SELECT trace_id, attempt, "
        f"hash(parse_path(filename)[-2]) AS about, {columns} FROM {scan}"
    )


def _scan(files: Sequence[Path] | None, glob: str, *options: str) -> str:
    if files is None:
        source = quote(glob)
    else:
        source = f"[{', '.join(quote(_pattern(path)) for path in files)}]"
    arguments = [source, "union_by_name = true", "hive_partitioning = false", *options]
    return f"read_parquet({', '.join(arguments)})"


def _pattern(path: Path) -> str:
    """A path as a pattern of DuckDB that matches it alone."""
    return url_of(path) if is_remote(path) else escape_glob(path)


def _with_columns(table: str, scan: str | None) -> str:
    """The scan (or nothing) with every column of the schema, by a union with a query of no rows."""
    nothing = ", ".join(f"NULL::{kind} AS {name}" for name, kind in schemas.types(table).items())
    if scan is None:
        return f"(SELECT {nothing} WHERE FALSE)"
    return f"(SELECT * FROM {scan} UNION ALL BY NAME SELECT {nothing} WHERE FALSE)"


@cache
def signal_groups() -> dict[str, list[str]]:
    """Each group of signals with its columns: comments of the schema start with `[group]`."""
    groups: dict[str, list[str]] = {}
    for column, comment in schemas.comments("signals").items():
        if comment.startswith("["):
            groups.setdefault(comment[1:].partition("]")[0], []).append(column)
    return groups


def _signals_view() -> str:
    """All groups in one row per trace, for queries of the table; `joined` joins each group."""
    values = "".join(
        f", any_value({column}) AS {column}"
        for columns in signal_groups().values()
        for column in columns
    )
    union = " UNION ALL BY NAME ".join(f"FROM signals_{group}" for group in signal_groups())
    return (
        f"CREATE OR REPLACE VIEW signals AS SELECT trace_id, attempt{values} FROM ({union}) "
        "GROUP BY trace_id, attempt"
    )


def _derived(connection: duckdb.DuckDBPyConnection) -> str:
    """Columns that macros derive from signals: a macro's parameters are named after the columns it
    reads."""
    columns = set(schemas.types("signals"))
    rows = connection.execute(
        "SELECT function_name, parameters FROM duckdb_functions() "
        "WHERE function_type = 'macro' AND NOT internal ORDER BY function_name"
    ).fetchall()
    return "".join(
        f", {name}({', '.join(parameters)}) AS {name}"
        for name, parameters in rows
        if columns.issuperset(parameters)
    )


def _manifest_view(root: Path) -> str:
    types = {
        "table": "VARCHAR",
        "dataset": "VARCHAR",
        "version": "VARCHAR",
        "schema_version": "INTEGER",
        "rows": "BIGINT",
        "parents": "VARCHAR[]",
        "config": "JSON",
        "model_hash": "VARCHAR",
        "seed": "BIGINT",
        "code_version": "VARCHAR",
        "sealed_at": "TIMESTAMPTZ",
        "facts": "JSON",
    }
    columns = ", ".join(f"{quote(name)}: {quote(kind)}" for name, kind in types.items())
    if is_remote(root):
        listed = [quote(url_of(path)) for path in manifests(root)]
        files = f"[{', '.join(listed)}]"
    else:
        files = quote(f"{escape_glob(root)}/*/*/*/manifest.json")
    return (
        "CREATE OR REPLACE VIEW manifests AS "
        "SELECT \"table\" || '/' || dataset || '/' || version AS ref, * "
        f"FROM read_json({files}, columns = {{{columns}}}, maximum_object_size = 1073741824) "
        f"WHERE dataset <> '{EMPTY}'"
    )


def _comment(connection: duckdb.DuckDBPyConnection) -> None:
    """Store the meaning of each column with the views, for clients that show comments."""
    for view in comments.views(connection):
        for column, _, meaning in comments.described(connection, view):
            if meaning:
                name = '"' + column.replace('"', '""') + '"'
                connection.execute(f"COMMENT ON COLUMN {view}.{name} IS {quote(meaning)}")


def write_database(root: Path) -> Path | None:
    """Rebuild `warehouse.duckdb` (views only) for stock clients. A bucket has none.

    Its views hold the absolute path of the warehouse: after the warehouse has moved, any `curate`
    command that writes rebuilds them.
    """
    if is_remote(root):
        return None
    target = root / "warehouse.duckdb"
    try:
        with disk_errors(root), whole_file(target) as staged, duckdb.connect() as connection:
            # the storage version that clients since 1.0 can open
            connection.execute(f"ATTACH {quote(str(staged))} AS views (STORAGE_VERSION 'v1.0.0')")
            connection.execute("USE views")
            create_views(connection, root, globs=True)
            _comment(connection)
            connection.execute("USE memory")
            connection.execute("DETACH views")
    except duckdb.Error as error:
        raise CurateError(f"cannot write {target}: {str(error).strip()}") from error
    return target
