"""Tables as plain Parquet: commits, versions, lineage, SQL. The only package that writes tables."""

from curate.warehouse.store import Version, Warehouse

__all__ = ["Version", "Warehouse"]
