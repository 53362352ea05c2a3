"""Storage of a warehouse: a directory, or a bucket (S3, Google Cloud Storage, Azure).

    store = open_store(Path("warehouse"))
    store = open_store(Path("s3://bucket/prefix"))

A store has put-if-absent, put, get, list and delete; no rename, no lock and no append, which object
storage lacks. Anything that must appear once, and whole, goes through `put_if_absent`.
"""

from curate.store.base import CHECKSUM, Entry, Readable, Store
from curate.store.roots import is_remote, located, open_store, parse_root, url_of

__all__ = [
    "CHECKSUM",
    "Entry",
    "Readable",
    "Store",
    "is_remote",
    "located",
    "open_store",
    "parse_root",
    "url_of",
]
