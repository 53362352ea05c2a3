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
    """Names of objects as Polars and DuckDB take them, and the options that Polars needs."""

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
        """The content. FileNotFoundError if there is none."""

    def has(self, key: str) -> bool:
        """Whether there is an object of this key."""

    def list(self, prefix: str) -> list[Entry]:
        """Every object below the folder `prefix`, by key; those of all finished puts."""

    def delete(self, keys: Sequence[str]) -> None:
        """Delete objects. A key without one is no error."""

    def readable(self, keys: Sequence[str]) -> Readable:
        """What Polars and DuckDB open these objects by."""
