"""Object storage as a store: S3 and compatible servers, Google Cloud Storage, Azure.

An object is created by a conditional PUT (`If-None-Match: *`), which at most one of several callers
wins. Two things go wrong in practice, and both are handled here:

- The response to our own PUT is lost. The repeated request finds an object and seems to have lost
  to another writer. So each PUT carries a random token, and a refused writer compares the token of
  the object with its own.
- A server that does not support the condition ignores it and overwrites. So before the first
  creation in a bucket, a test key is created twice: the second request must be refused.

Credentials, region and endpoint come from the environment, as the tools of each provider read them
(`AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_REGION`, `AWS_ENDPOINT_URL`,
`GOOGLE_APPLICATION_CREDENTIALS`, `AZURE_STORAGE_ACCOUNT_NAME`, …).
"""

from __future__ import annotations

import hashlib
import os
import re
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import obstore
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
)
from obstore.store import from_url

from curate.errors import CurateError, UsageError
from curate.store.base import CHECKSUM, Entry, Readable

WRITER = "writer"  # attribute of an object
PROBE = "_probe"
# A part of any size is one request, since only whole objects can be created conditionally.
TIMEOUT = "300s"
RETRIES = 8
RETRY_SECONDS = 120
CONFLICTS = 10  # retries of a creation while another one is in progress


class ObjectStore:
    """Objects of a bucket below a prefix. Safe to share between threads."""

    def __init__(self, url: str, prefix: str = "", opened: Any = None) -> None:
        self.url = f"{url}/{prefix}".rstrip("/")
        self._bucket_url, self._prefix = url, f"{prefix}/" if prefix else ""
        self._opened = opened or _Opened(url)

    def below(self, prefix: str) -> ObjectStore:
        """Return the store of the objects below a prefix, over the same connection."""
        return ObjectStore(self._bucket_url, f"{self._prefix}{prefix}".strip("/"), self._opened)

    def put_if_absent(self, key: str, data: bytes | Path) -> bool:
        self._opened.probe(self._prefix)
        return self._create(key, data)

    def _create(self, key: str, data: bytes | Path) -> bool:
        return self._opened.create(self._prefix + key, data)

    def put(self, key: str, data: bytes) -> None:
        with _errors(self.url):
            obstore.put(self._opened.client, self._prefix + key, data, use_multipart=False)

    def get(self, key: str) -> bytes:
        with _errors(self.url):
            return bytes(obstore.get(self._opened.client, self._prefix + key).bytes())

    def has(self, key: str) -> bool:
        return self.entry(key) is not None

    def entry(self, key: str) -> Entry | None:
        """Size and age of one object; None if it does not exist."""
        with _errors(self.url):
            try:
                meta = obstore.head(self._opened.client, self._prefix + key)
            except FileNotFoundError:
                return None
        return Entry(key, int(meta["size"]), meta["last_modified"].timestamp())

    def attributes(self, key: str) -> dict[str, str]:
        """Return the attributes that the writer gave an object."""
        with _errors(self.url):
            return dict(obstore.get(self._opened.client, self._prefix + key).attributes)

    def tail(self, key: str, size: int) -> bytes:
        """Return the last bytes of an object; the whole object if it is shorter."""
        with _errors(self.url):
            options: Any = {"range": {"suffix": size}}
            answer = obstore.get(self._opened.client, self._prefix + key, options=options)
            return bytes(answer.bytes())

    def list(self, prefix: str) -> list[Entry]:
        # A prefix is a folder: `a` must not match `ab`.
        folder = (self._prefix + prefix).strip("/")
        cut = len(self._prefix)
        with _errors(self.url):
            stream = obstore.list(self._opened.client, folder or None, chunk_size=1000)
            return sorted(
                Entry(meta["path"][cut:], int(meta["size"]), meta["last_modified"].timestamp())
                for batch in stream
                for meta in batch
            )

    def delete(self, keys: Sequence[str]) -> None:
        names = [self._prefix + key for key in keys]
        if names:
            with _errors(self.url), suppress(FileNotFoundError):
                obstore.delete(self._opened.client, names)

    def readable(self, keys: Sequence[str]) -> Readable:
        url = self.url
        if self._opened.scheme == "az":  # Polars takes the container from the front of the address
            account, container = self._bucket_url.removeprefix("az://").split("/")
            host = f"{container}@{account}.dfs.core.windows.net"
            url = f"abfss://{host}/{self._prefix}".rstrip("/")
        return Readable([f"{url}/{key}" for key in keys], self._opened.polars_options())

    def filesystem(self) -> Any:
        """The bucket as an fsspec file system, for DuckDB without its extension httpfs."""
        return self._opened.filesystem()

    def duckdb_settings(self) -> tuple[str, ...]:
        """Statements after which DuckDB's extension httpfs reads the bucket."""
        return tuple(self._opened.duckdb_settings())


class _Opened:
    """The connection to one bucket, and the capabilities of its server."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.scheme = url.partition(":")[0]
        options: Any = {"timeout": TIMEOUT}
        if _endpoint().startswith("http://"):
            options["allow_http"] = True
        self._options = options
        # Some servers have no request that deletes many objects.
        config: Any = {"disable_bulk_delete": True} if self.scheme == "s3" else None
        self._retry = _retries()
        with _errors(url):
            # Its type hints expect a literal address.
            connect: Any = from_url
            self.client = connect(
                url, config=config, client_options=options, retry_config=self._retry
            )
        self._probed = False
        self._guard = threading.Lock()

    def create(self, name: str, data: bytes | Path) -> bool:
        """Create an object unless it exists. True if the stored object is ours."""
        token = uuid.uuid4().hex
        attributes = {WRITER: token, CHECKSUM: checksum_of(data)}
        with _errors(self.url):
            for _ in range(CONFLICTS):
                try:
                    obstore.put(
                        self.client,
                        name,
                        data,
                        mode="create",
                        use_multipart=False,
                        attributes=attributes,
                    )
                    return True
                except (AlreadyExistsError, PreconditionError, FileExistsError):
                    pass
                except BaseError as error:
                    if not _is_conflict(error):
                        raise
                try:
                    return self._is_ours(name, token, attributes[CHECKSUM])
                except FileNotFoundError:
                    # Of two simultaneous creations both may be refused, and no object exist.
                    time.sleep(0.1)
        raise CurateError(
            f"{self.url}/{name} could not be created: others were creating it {CONFLICTS} times in "
            "a row; run the same command again"
        )

    def _is_ours(self, name: str, token: str, checksum: str) -> bool:
        """Whether the stored object is the one that this call sent."""
        there = obstore.get(self.client, name)
        if WRITER in there.attributes:
            return bool(there.attributes[WRITER] == token)
        # The server keeps no attributes: equal bytes are as good as ours.
        return checksum_of(bytes(there.bytes())) == checksum

    def probe(self, prefix: str) -> None:
        """Raise UsageError if the server ignores conditions; checked once per process, bucket."""
        if self._probed:
            return
        with self._guard:
            if self._probed:
                return
            name = f"{prefix}{PROBE}/{uuid.uuid4().hex}"
            try:
                kept = self.create(name, b"first") and not self.create(name, b"second")
            finally:
                with _errors(self.url), suppress(FileNotFoundError):
                    obstore.delete(self.client, [name])
            if not kept:
                raise UsageError(
                    f"{self.url}: this server ignores `If-None-Match: *` (a second writer replaced "
                    "the object of the first one), so rows could be lost or appear twice. Use "
                    "a server with conditional writes, or a directory"
                )
            self._probed = True

    def polars_options(self) -> dict[str, str]:
        """Options that Polars does not read from the environment itself."""
        options = {}
        for variable in _VARIABLES[self.scheme]:
            if value := os.environ.get(variable):
                options[variable.lower()] = value
        if self.scheme == "s3":
            options.setdefault("aws_region", os.environ.get("AWS_DEFAULT_REGION", "us-east-1"))
            if _endpoint().startswith("http://"):
                options["aws_allow_http"] = "true"
        return options

    def duckdb_settings(self) -> list[str]:
        if self.scheme != "s3":
            return []
        endpoint = urlsplit(_endpoint())
        values = {
            "s3_access_key_id": os.environ.get("AWS_ACCESS_KEY_ID"),
            "s3_secret_access_key": os.environ.get("AWS_SECRET_ACCESS_KEY"),
            "s3_session_token": os.environ.get("AWS_SESSION_TOKEN"),
            "s3_region": os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION"),
            "s3_endpoint": endpoint.netloc,
            "s3_url_style": "path" if endpoint.netloc else None,
            "s3_use_ssl": "false" if endpoint.scheme == "http" else None,
        }
        quoted = {name: str(value).replace("'", "''") for name, value in values.items() if value}
        return [f"SET {name} = '{value}'" for name, value in quoted.items()]

    def filesystem(self) -> Any:
        from obstore.fsspec import FsspecStore

        create: Any = FsspecStore
        return create(
            self.scheme,
            client_options=self._options,
            retry_config=self._retry,
            skip_instance_cache=True,  # the endpoint in the environment may have changed
        )


_VARIABLES = {
    "s3": (
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SESSION_TOKEN",
        "AWS_REGION",
        "AWS_ENDPOINT_URL",
    ),
    "gs": ("GOOGLE_SERVICE_ACCOUNT", "GOOGLE_APPLICATION_CREDENTIALS"),
    "az": (
        "AZURE_STORAGE_ACCOUNT_NAME",
        "AZURE_STORAGE_ACCOUNT_KEY",
        "AZURE_STORAGE_SAS_TOKEN",
    ),
}


def _retries() -> Any:
    return {"max_retries": RETRIES, "retry_timeout": timedelta(seconds=RETRY_SECONDS)}


def _endpoint() -> str:
    return os.environ.get("AWS_ENDPOINT_URL") or os.environ.get("AWS_ENDPOINT") or ""


def checksum_of(data: bytes | Path) -> str:
    """Hash of an object's bytes, spelled as in manifests (curate/warehouse/parts.py)."""
    if isinstance(data, bytes):
        return f"blake2b:{hashlib.blake2b(data, digest_size=16).hexdigest()}"
    with open(data, "rb") as handle:
        digest = hashlib.file_digest(handle, lambda: hashlib.blake2b(digest_size=16))
    return f"blake2b:{digest.hexdigest()}"


def _is_conflict(error: BaseError) -> bool:
    """Whether a server refused because another request for the key was in progress (409)."""
    return "409" in str(error) or "ConditionalRequestConflict" in str(error)


@contextmanager
def _errors(url: str) -> Iterator[None]:
    """Turn refused or unanswered requests into one message. A missing object is not an error."""
    try:
        yield
    except FileNotFoundError as error:
        if "NoSuchBucket" in str(error):
            raise UsageError(f"{url}: there is no such bucket: create it first") from error
        raise
    except (PermissionDeniedError, UnauthenticatedError) as error:
        raise UsageError(
            f"{url}: access denied. Credentials come from the environment (AWS_ACCESS_KEY_ID and "
            f"AWS_SECRET_ACCESS_KEY, or the role of the machine): {_first_line(error)}"
        ) from error
    except BaseError as error:
        raise CurateError(
            f"{url}: object storage failed: {_first_line(error)}. What was committed is intact: "
            "run the same command again (AWS_ENDPOINT_URL names a server other than AWS)"
        ) from error


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return re.sub(r"\s+", " ", text[0])[:300] if text else type(error).__name__
