"""The view `annotated` a slice of traces at a time, for work whose memory must not grow with the
warehouse.

What was measured and judged of a part of traces is a part of the same name (see annotations.py), so
the views can be pointed at some parts and at what belongs to them. Parts that belong to no part of
traces (a consensus over many of them) are in every slice. Joins are by key all the same: a part too
many costs time, and changes nothing.

    for _ in Slices(connection, warehouse):
        connection.sql("SELECT … FROM annotated")     # of one slice; every trace is in one of them
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING

from curate.warehouse.annotations import part_key, parts_about, signals_folder
from curate.warehouse.files import EMPTY
from curate.warehouse.sql import group_view, signal_groups, table_view
from curate.warehouse.store import Warehouse

if TYPE_CHECKING:
    import duckdb

ROWS = 100_000  # of a slice: hash tables of some 50 MB, and few enough slices that planning costs little


class Slices:
    """Iterating points the views at one slice after the other; afterwards they show all traces
    again."""

    def __init__(
        self,
        connection: duckdb.DuckDBPyConnection,
        warehouse: Warehouse,
        without: Collection[str] = (),
        rows: int = ROWS,
    ) -> None:
        self.connection, self.root = connection, warehouse.root
        self.tables = {table: table for table in ("traces", "verdicts") if table not in without}
        self.tables |= {
            group: f"signals/{signals_folder(self.root, group)}" for group in signal_groups()
        }
        self.tables = {name: folder for name, folder in self.tables.items() if name not in without}
        self.traces = sorted(
            p for p in self.root.glob("traces/*/*/part-*.parquet") if p.parts[-3] != EMPTY
        )
        self.rows = rows

    def without(self, tables: Collection[str]) -> Slices:
        """The same slices of the same traces, with fewer tables; traces that came in the meantime
        are in none."""
        fewer = copy(self)
        fewer.tables = {name: folder for name, folder in self.tables.items() if name not in tables}
        return fewer

    def __iter__(self) -> Iterator[int]:
        groups = self._grouped()
        if len(groups) < 2:
            yield 0
            return
        annotations = {
            name: parts_about(self.traces, self._annotations(name))
            for name in self.tables
            if name != "traces"
        }
        # A later attempt may lie in another slice.
        self.connection.execute(
            "CREATE OR REPLACE TEMP TABLE redone_everywhere AS SELECT * FROM redone"
        )
        self.connection.execute("CREATE OR REPLACE VIEW redone AS SELECT * FROM redone_everywhere")
        try:
            for number, parts in enumerate(groups):
                self._point("traces", parts)
                for name, paths in annotations.items():
                    files = [path for part in parts for path in paths[part_key(part)]] + paths[None]
                    self._point(name, files or [self._nothing(name)])
                yield number
        finally:
            for name in self.tables:
                self._point(name, None)

    def _grouped(self) -> list[list[Path]]:
        """Parts of traces together, up to `rows` rows."""
        import pyarrow.parquet as pq

        groups: list[list[Path]] = []
        rows = self.rows
        for path in self.traces:
            count = pq.read_metadata(path).num_rows
            if not groups or rows + count > self.rows:
                groups.append([])
                rows = 0
            groups[-1].append(path)
            rows += count
        return groups

    def _annotations(self, name: str) -> list[Path]:
        inside = "*/*" if name == "verdicts" else "*"
        paths = (self.root / self.tables[name]).glob(f"{inside}/part-*.parquet")
        return sorted(path for path in paths if path.parts[-3] != EMPTY)

    def _nothing(self, name: str) -> Path:
        table = "verdicts" if name == "verdicts" else "signals"
        return self.root / table / EMPTY / "0" / "part-empty.parquet"

    def _point(self, name: str, files: list[Path] | None) -> None:
        import duckdb

        view = table_view if name in ("traces", "verdicts") else group_view
        try:
            self.connection.execute(view(self.root, name, files=files))
        except duckdb.BinderException:  # written before a column was added
            self.connection.execute(view(self.root, name, older=True, files=files))
