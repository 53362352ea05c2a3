"""`curate` commands as real processes that start quickly, and that can be killed anywhere.

A server process that has imported the large packages forks one process per command (the
`forkserver` of the standard library). Each has its own session, so that SIGKILL reaches its
children too. It dies at a moment that the test chooses, or by itself at its n-th touch of a file:
the latter hits the steps between staging, fsync, link and rename, which take microseconds.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

# Imported once, by the server: slow modules that only define things. Our modules that compute with
# Polars during import would start its threads, which a fork does not have.
PRELOADED = (
    "duckdb", "numpy", "polars", "pyarrow.parquet", "pydantic", "rich.live", "rich.progress",
    "torch", "torch.distributed.checkpoint", "transformers.models.llama.modeling_llama", "typer",
    "yaml", "curate.config",
)  # fmt: skip
# Audit events of Python that touch a file, with the place of a path among their arguments.
TOUCHES = {
    "open": (0,), "os.rename": (0, 1), "os.link": (0, 1), "os.remove": (0,), "os.mkdir": (0,),
    "os.rmdir": (0,), "os.utime": (0,), "os.truncate": (0,), "shutil.rmtree": (0,),
}  # fmt: skip

_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(list(PRELOADED))


class Command:
    """A running command. `output` is a file; `touches` is the number of times it touched files, if
    it ended by itself."""

    def __init__(
        self,
        arguments: Sequence[str],
        folder: Path,
        prepare: Callable[[], None] | None = None,
        dies_at: int | None = None,
    ) -> None:
        self.log = folder / "output.txt"
        self.log.unlink(missing_ok=True)
        options = (list(arguments), str(folder), str(self.log), prepare, dies_at)
        self.process = _server.Process(target=_run, args=options)
        self.process.start()

    def wait(self, seconds: float | None = None) -> int | None:
        """Exit code; negative for a signal, None if it is still running after `seconds`."""
        self.process.join(seconds)
        return self.process.exitcode

    def kill(self) -> int:
        """SIGKILL the process and its children. Returns the exit code: 0 if it was too late."""
        if self.process.exitcode is None:
            try:
                os.killpg(self.process.pid or 0, signal.SIGKILL)
            except ProcessLookupError:  # its session does not exist yet
                self.process.kill()
        code = self.wait()
        assert code is not None
        return code

    @property
    def output(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""

    @property
    def touches(self) -> int:
        return int(self.log.with_suffix(".touches").read_text())


def _run(
    arguments: list[str],
    folder: str,
    log: str,
    prepare: Callable[[], None] | None,
    dies_at: int | None,
) -> None:
    os.setsid()
    target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(target, 1)
    os.dup2(target, 2)
    from curate import cli

    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)  # the same bits in every process
    if prepare is not None:
        prepare()
    count = _count_touches(folder, dies_at)
    sys.argv = ["curate", *arguments]
    try:
        cli.main()
    finally:
        number = count[0]
        Path(log).with_suffix(".touches").write_text(str(number))


def _count_touches(folder: str, dies_at: int | None) -> list[int]:
    """Count the touches of files inside a folder; SIGKILL the whole session at one of them."""
    count = [0]

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        places = TOUCHES.get(event)
        if places is None or not any(str(arguments[i]).startswith(folder) for i in places):
            return
        count[0] += 1
        if count[0] == dies_at:
            os.killpg(0, signal.SIGKILL)

    sys.addaudithook(hook)
    return count
