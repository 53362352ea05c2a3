"""Read the view `annotated` one slice of traces at a time, so that memory does not grow with the
warehouse.

Verdicts and signals about a part of traces are parts of the same name (annotations.py), so the
views can be pointed at some parts of traces and at the parts about them. Parts about no single part
of traces, such as a consensus, are in every slice. All joins are by key, so an extra part costs
time but changes nothing. What is read of a slice decides what is kept, so the bytes of its parts
are compared with their checksums first.

    for _ in Slices(connection, root):
        connection.sql("SELECT … FROM annotated")     # one slice; every trace is in exactly one
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from copy import copy
from pathlib import Path

import duckdb

from curate.warehouse.annotations import part_key, parts_about
from curate.warehouse.names import EMPTY
from curate.warehouse.parts import empty_part, rows_of, table_parts, verify
from curate.warehouse.sql import point, signal_groups, table_of, view_parts

# Rows per slice: hash tables take some 50 MB, and slices are few enough that planning costs little.
ROWS = 100_000


class Slices:
    """Iterating points the views at one slice after another; afterwards they show all traces.

    Traces that are committed after construction are in no slice.
    """

    def __init__(
        self,
        connection: duckdb.DuckDBPyConnection,
        root: Path,
        without: Collection[str] = (),
        rows: int = ROWS,
    ) -> None:
        self.connection, self.root, self.rows = connection, root, rows
        names = ["traces", "verdicts", *signal_groups()]
        self.parts = {name: view_parts(root, name) for name in names if name not in without}

    def without(self, tables: Collection[str]) -> Slices:
        """The same slices of the same traces, with fewer tables."""
        fewer = copy(self)
        fewer.parts = {name: paths for name, paths in self.parts.items() if name not in tables}
        return fewer

    def __iter__(self) -> Iterator[int]:
        groups = self._grouped()
        verify(table_parts(self.root, "problems"))  # joined to every slice
        if len(groups) < 2:
            verify(path for paths in self.parts.values() for path in paths)
            yield 0
            return
        annotations = {
            name: parts_about(self._nonempty("traces"), self._nonempty(name))
            for name in self.parts
            if name != "traces"
        }
        # A later attempt of a trace, or its id in another dataset, may be in another slice.
        for view in ("redone", "doubled"):
            self.connection.execute(
                f"CREATE OR REPLACE TEMP TABLE {view}_everywhere AS SELECT * FROM {view}"
            )
            self.connection.execute(
                f"CREATE OR REPLACE VIEW {view} AS SELECT * FROM {view}_everywhere"
            )
        try:
            for number, group in enumerate(groups):
                verify(group)
                point(self.connection, self.root, "traces", group)
                for name, paths in annotations.items():
                    files = [path for part in group for path in paths[part_key(part)]] + paths[None]
                    verify(files)
                    files = files or [empty_part(self.root, table_of(name))]
                    point(self.connection, self.root, name, files)
                yield number
        finally:
            for name, files in self.parts.items():
                point(self.connection, self.root, name, files)

    def _nonempty(self, name: str) -> list[Path]:
        return [path for path in self.parts[name] if path.parts[-3] != EMPTY]

    def _grouped(self) -> list[list[Path]]:
        """Parts of traces, grouped up to `rows` rows."""
        groups: list[list[Path]] = []
        rows = self.rows
        for path in self._nonempty("traces"):
            count = rows_of(path)
            if not groups or rows + count > self.rows:
                groups.append([])
                rows = 0
            groups[-1].append(path)
            rows += count
        return groups
