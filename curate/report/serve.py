"""The live page over HTTP: one address, on loopback only, read only.

A web site that a browser visits cannot read the page: it is another origin. Nor can it become the
same origin by pointing its own name to 127.0.0.1 (DNS rebinding), since requests with another name
in the Host header are refused.
"""

from __future__ import annotations

import errno
import re
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs

import duckdb
import polars as pl

from curate.errors import CurateError, UsageError
from curate.progress import output, say
from curate.report.html import tag
from curate.report.live import Live
from curate.store import url_of
from curate.warehouse.names import is_warehouse

ADDRESS, PORT = "127.0.0.1", 8642
# With any port, since ssh may forward another one.
HOST = re.compile(r"(127\.0\.0\.1|localhost)(:[0-9]{1,5})?", re.IGNORECASE)
HEADERS = {
    "Content-Type": "text/html; charset=utf-8",
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
}


class Server(ThreadingHTTPServer):
    """Serves the page of one warehouse."""

    daemon_threads = True

    def __init__(self, live: Live, port: int) -> None:
        self.live = live
        super().__init__((ADDRESS, port), Handler)

    @property
    def url(self) -> str:
        """The address to open."""
        return f"http://{ADDRESS}:{self.server_port}/"

    def server_close(self) -> None:
        """Close the socket once no page is being rendered."""
        super().server_close()
        self.live.close()

    def handle_error(self, request: object, client_address: object) -> None:
        """Keep quiet about a browser that went away; report anything else."""
        error = sys.exc_info()[1]
        if not isinstance(error, ConnectionError | TimeoutError):
            say(f"watch: {type(error).__name__}: {error}")


class Handler(BaseHTTPRequestHandler):
    """Answers GET and HEAD of `/`; http.server itself refuses other methods."""

    server: Server
    server_version, sys_version = "curate", ""
    timeout = 60

    def do_GET(self) -> None:
        hosts = self.headers.get_all("Host", [])
        path, _, query = self.path.partition("?")
        if len(hosts) != 1 or not HOST.fullmatch(hosts[0]):
            self._answer(403, _problem(f"Open {self.server.url}: another host name is refused."))
        elif path != "/":
            self._answer(404, _problem("There is one page, at /."))
        else:
            known = {v for have in parse_qs(query).get("have", []) for v in have.split(",")}
            self._answer(*self._page(known))

    do_HEAD = do_GET

    def _page(self, known: set[str]) -> tuple[int, str]:
        """Status and page. What cannot be read now may be readable at the next request."""
        try:
            return 200, self.server.live.page(known)
        except (CurateError, duckdb.Error, pl.exceptions.PolarsError, OSError) as error:
            return 503, _problem(str(error))

    def _answer(self, status: int, text: str) -> None:
        body = text.encode()
        self.send_response(status)
        for name, value in HEADERS.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Security-Policy", "frame-ancestors 'none'")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing: requests come every few seconds."""


def _problem(message: str) -> str:
    """A page that says what is wrong."""
    return f"<!doctype html>\n{tag('p', message, id='problem')}\n"


def watch(root: Path, port: int = PORT, traces: int = 60) -> None:
    """Serve the page until Ctrl-C. UsageError without a warehouse, or if the port is taken."""
    if not is_warehouse(root):
        raise UsageError(f"no warehouse at {url_of(root)}: name the folder of one")
    try:
        server = Server(Live(root, traces), port)
    except OSError as error:
        if error.errno not in (errno.EADDRINUSE, errno.EACCES):
            raise
        raise UsageError(
            f"port {port} cannot be used ({error.strerror}): name another with --port"
        ) from error
    with server:
        try:
            output(f"{server.url} shows {url_of(root)}; Ctrl-C ends it")
            sys.stdout.flush()
            server.serve_forever()
        except KeyboardInterrupt:
            say()
    say("watch has ended; jobs are not affected")
