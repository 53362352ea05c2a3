"""The contract of a store. tests/store/test_contract.py runs over all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

CHECKSUM = "checksum"  # attribute of an object: the hash that its writer computed


class Entry(NamedTuple):
    """One object of a store. `changed`: seconds since the epoch, by the clock of the store."""

    key: str
    size: int
    changed: float


@dataclass(frozen=True)
class Readable:
    """Names of objects as Polars and DuckDB accept them, and the options that Polars needs."""

    names: list[str]
    options: dict[str, str] | None = None


class Store(Protocol):
    """Objects by key: names joined by `/`, below the root of the store."""

    url: str

    def put_if_absent(self, key: str, data: bytes | Path) -> bool:
        """Store an object under a key that has none. A file may be moved instead of copied.

        True only for the one caller whose data is there: whole, durable, and listed when the call
        returns. A store that cannot promise this raises UsageError at the first use.
        """

    def put(self, key: str, data: bytes) -> None:
        """Store or replace an object: for reports and hints, where the last writer may win."""

    def get(self, key: str) -> bytes:
        """Return the content. FileNotFoundError if there is none."""

    def has(self, key: str) -> bool:
        """Whether an object has this key."""

    def list(self, prefix: str) -> list[Entry]:
        """Return every object below the folder `prefix`, by key; all finished puts are included."""

    def delete(self, keys: Sequence[str]) -> None:
        """Delete objects. A missing key is not an error."""

    def readable(self, keys: Sequence[str]) -> Readable:
        """Return the names by which Polars and DuckDB open these objects."""
