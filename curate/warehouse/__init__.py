"""Tables as plain Parquet: commits, versions, lineage, SQL. The only part that writes data files."""

from curate.warehouse.store import Version, Warehouse

__all__ = ["Version", "Warehouse"]
