"""Send requests as batches to an OpenAI-compatible server, and fetch the results when ready.

    engine: {name: openai, args: {model: gpt-4.1-mini, batch: true}}

A batch is a file of requests that the server processes within a day, usually at half the price. The
requests of one group (of a job: one chunk) make one batch. Every batch is noted in a journal before
it is sent, so that a run that was killed finds its batches again: it fetches their results instead
of sending, and paying for, the same requests twice.

    group of requests ─▶ note ─▶ upload ─▶ create ─▶ note its id ─▶ poll ─▶ results ─▶ completions

A note without an id comes from a process that died while sending: the server is queried for a batch
with the note's key. Requests that the server did not answer (expired, overloaded) go into another
batch, up to `retries` times.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import time
import uuid
from collections.abc import Callable, Coroutine, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from curate.atomic import write_whole
from curate.engines.base import check_sampling, failed
from curate.errors import CurateError, UsageError
from curate.progress import counted, say
from curate.records import Completion, Request

if TYPE_CHECKING:
    from curate.engines.openai import OpenAIEngine

PAUSE = 0.05  # seconds between reads of a source that has nothing yet
KEY = "curate"  # metadata key of a batch that holds the key of its note
FILE_BYTES = 100_000_000  # of one file of requests, at most
ENDED = ("completed", "failed", "expired", "cancelled")
ENDPOINTS = {"chat": "/v1/chat/completions", "completions": "/v1/completions"}


@dataclass
class Batch:
    """A batch as noted in the journal. `ids` are the names of its requests in the file."""

    key: str
    ids: list[str]
    batch_id: str | None = None
    created: float = 0.0


@dataclass
class Waiting:
    """A request that is in a batch, or waits to be in one."""

    request: Request
    tries: int = 0
    reasons: list[str] = field(default_factory=list)


class Journal:
    """Notes about batches in a folder: one JSON file per batch."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def read(self) -> list[Batch]:
        """Return all notes, oldest first. A damaged one is skipped: its requests are sent again."""
        batches = []
        for path in self.folder.glob("*.json"):
            try:
                batches.append(Batch(**json.loads(path.read_text(encoding="utf-8"))))
            except (OSError, ValueError, TypeError):
                continue
        return sorted(batches, key=lambda batch: batch.created)

    def write(self, batch: Batch) -> None:
        """Write a note durably."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_whole(self.folder / f"{batch.key}.json", json.dumps(asdict(batch)))

    def remove(self, batch: Batch) -> None:
        (self.folder / f"{batch.key}.json").unlink(missing_ok=True)


def name_of(request: Request) -> str:
    """Name of a request in a file: the same in every run, and short enough for any server."""
    return hashlib.blake2b(request.request_id.encode(), digest_size=16).hexdigest()


class BatchRun:
    """One call of `generate` with batches."""

    def __init__(self, engine: OpenAIEngine, requests: Iterable[Request | None]) -> None:
        self.engine, self.args = engine, engine.args
        if self.args.journal is None:
            raise UsageError(
                "engine.args.batch: only `generate` and `evaluate` can send batches; leave it out "
                "for judges and training"
            )
        self.journal = Journal(Path(self.args.journal))
        self.source = iter(requests)
        self.exhausted = False
        self.group: list[Waiting] = []  # to be sent together
        self.open: dict[str, Batch] = {}  # by key
        self.waiting: dict[str, Waiting] = {}  # by name, in open batches
        self.noted: dict[str, Batch] = {}  # by name of a request, of earlier runs
        self.next_poll = 0.0
        self.ended: CurateError | None = None

    def completions(self) -> Iterator[Completion]:
        """Completions, batch by batch as these end. Raises as `OpenAIEngine.generate` does."""
        self.engine.start()
        self._find_earlier()
        while True:
            yield from self._fill()
            if not self.open and (self.ended or (self.exhausted and not self.group)):
                break
            if self.open and time.monotonic() >= self.next_poll:
                yield from self._poll()
                self.next_poll = time.monotonic() + self.args.poll
            elif not self.exhausted or self.open:
                time.sleep(min(PAUSE, self.args.poll))
        if self.ended:
            raise self.ended

    # -- sending ---------------------------------------------------------------------------------

    def _find_earlier(self) -> None:
        """Read the journal; ask the server for batches whose id was never noted."""
        batches = self.journal.read()
        if lost := {batch.key: batch for batch in batches if batch.batch_id is None}:
            for key, batch_id in self._wait(self._listed(set(lost))).items():
                lost[key].batch_id = batch_id
                self.journal.write(lost[key])
        for batch in batches:
            if batch.batch_id is None:
                self.journal.remove(batch)  # it never reached the server
            else:
                self.noted.update((name, batch) for name in batch.ids)

    def _fill(self) -> Iterator[Completion]:
        """Read the source while another batch may be opened, and send complete groups."""
        while not self.ended and not self.exhausted and len(self.open) < self.args.batches:
            request = next(self.source, self)
            if request is self:
                self.exhausted = True
                break
            if request is None:
                break
            assert isinstance(request, Request)
            if reason := check_sampling(request) or self.engine.fault(request):
                yield failed(request, reason)
                continue
            if (batch := self.noted.get(name_of(request))) is not None:
                self._attach(batch, Waiting(request))
                continue
            if self.group and self._is_full(request):
                self._send_group()
            self.group.append(Waiting(request))
        if self.group and not self.ended and len(self.open) < self.args.batches:
            self._send_group()

    def _attach(self, batch: Batch, waiting: Waiting) -> None:
        """Take over a batch of an earlier run."""
        if batch.key not in self.open:
            say(f"  batch {batch.batch_id} of an earlier run: fetching its results")
        self.open[batch.key] = batch
        self.waiting[name_of(waiting.request)] = waiting

    def _is_full(self, request: Request) -> bool:
        return (
            request.group != self.group[-1].request.group
            or len(self.group) >= self.args.batch_size
            or sum(len(w.request.prompt) for w in self.group) > FILE_BYTES // 2
        )

    def _send_group(self) -> None:
        """Send the group as far as the budget covers it; the rest stays in the group."""
        reserved = sum(self.engine.worst_cost(w.request) for w in self.waiting.values())
        count = 0
        for waiting in self.group:
            reserved += self.engine.worst_cost(waiting.request)
            if not self.engine.fits(reserved):
                break
            count += 1
        if count < len(self.group) and self.open:
            return  # the open batches may cost less than reserved
        sent, self.group = self.group[:count], self.group[count:]
        if sent:
            self._send(sent)
        if self.group and not self.open:
            self.group, self.ended = [], self.engine.budget_reached()

    def _send(self, group: list[Waiting]) -> None:
        lines = [self._line(waiting.request) for waiting in group]
        names = [name_of(waiting.request) for waiting in group]
        batch = Batch(uuid.uuid4().hex, names, created=time.time())
        self.journal.write(batch)
        batch.batch_id = self._wait(self._create(batch.key, b"".join(lines)))
        self.journal.write(batch)
        say(f"  batch {batch.batch_id}: {counted(len(group), 'request')} sent")
        self.open[batch.key] = batch
        self.waiting.update(zip(names, group, strict=True))

    def _line(self, request: Request) -> bytes:
        line = {
            "custom_id": name_of(request),
            "method": "POST",
            "url": ENDPOINTS[self.args.api],
            "body": self.engine.body(request),
        }
        return json.dumps(line, ensure_ascii=False).encode("utf-8", "replace") + b"\n"

    async def _create(self, key: str, content: bytes) -> str:
        client = self.engine.client
        file = await self._steady(
            lambda: client.files.create(file=(f"{key}.jsonl", content), purpose="batch")
        )
        batch = await self._steady(
            lambda: client.batches.create(
                input_file_id=file.id,
                endpoint=ENDPOINTS[self.args.api],
                completion_window="24h",
                metadata={KEY: key},
            )
        )
        return str(batch.id)

    async def _listed(self, keys: set[str]) -> dict[str, str]:
        """Ids of the server's batches with these keys."""
        page = await self._steady(lambda: self.engine.client.batches.list(limit=100))
        ids: dict[str, str] = {}
        async for batch in page:
            key = (batch.metadata or {}).get(KEY)
            if key in keys:
                ids[key] = str(batch.id)
            if len(ids) == len(keys):
                break
        return ids

    # -- results ---------------------------------------------------------------------------------

    def _poll(self) -> Iterator[Completion]:
        """Poll each open batch; yield the completions of those that have ended."""
        again: list[Waiting] = []
        for batch in list(self.open.values()):
            assert batch.batch_id is not None
            state = self._wait(self._state(batch.batch_id))
            if state.status not in ENDED:
                continue
            del self.open[batch.key]
            if state.status == "failed":
                self.journal.remove(batch)
                raise CurateError(
                    f"{self.engine.base_url} refused batch {batch.batch_id}: {_errors(state)}"
                )
            answers = self._wait(self._results(state))
            for name in batch.ids:
                if (waiting := self.waiting.pop(name, None)) is None:
                    continue  # its row exists already
                completion = self._completion(waiting, answers.get(name), state)
                if completion is None:
                    self.noted.pop(name, None)
                    again.append(waiting)
                else:
                    yield completion
        self.group += again

    async def _state(self, batch_id: str) -> Any:
        return await self._steady(lambda: self.engine.client.batches.retrieve(batch_id))

    async def _results(self, state: Any) -> dict[str, dict[str, Any]]:
        """Lines of the output and the error file, by name of the request."""
        lines: dict[str, dict[str, Any]] = {}
        for file_id in (state.error_file_id, state.output_file_id):
            if not file_id:
                continue
            content = await self._steady(
                lambda file_id=file_id: self.engine.client.files.content(file_id)  # type: ignore[misc]
            )
            for line in content.text.splitlines():
                try:
                    row = json.loads(line)
                    lines[str(row["custom_id"])] = row
                except (ValueError, KeyError, TypeError):
                    continue  # its request counts as not answered
        return lines

    def _completion(
        self, waiting: Waiting, line: dict[str, Any] | None, state: Any
    ) -> Completion | None:
        """The completion of a request; None if it is to be sent again."""
        response = (line or {}).get("response") or {}
        status = response.get("status_code")
        if line is not None and status == 200:
            try:
                return self.engine.read_body(waiting.request, response.get("body"))
            except (ValueError, AttributeError, TypeError, IndexError, RecursionError) as error:
                reason = f"an answer that cannot be read ({type(error).__name__}: {error})"
        elif line is None:
            reason = f"batch {state.id} ended as {state.status} without an answer"
        else:
            fault = line.get("error") or (response.get("body") or {}).get("error") or {}
            message = fault.get("message") if isinstance(fault, dict) else fault
            reason = self.engine.clean(f"{status or 'error'}: {message}"[:300])
            if status is not None and 400 <= int(status) < 500 and int(status) not in (408, 429):
                return failed(waiting.request, f"the server refused it: {reason}")
        waiting.tries += 1
        if waiting.tries > self.args.retries:
            return failed(
                waiting.request, f"{reason} (after {counted(waiting.tries, 'try', 'tries')})"
            )
        return None

    # -- the event loop --------------------------------------------------------------------------

    def _wait(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.engine.start()).result()

    async def _steady(self, call: Callable[[], Any]) -> Any:
        """Result of one call to the server, retried after transient errors."""
        import openai

        for tries in itertools.count(1):
            try:
                async with asyncio.timeout(self.args.timeout):
                    return await call()
            except openai.NotFoundError as error:
                raise CurateError(
                    f"{self.engine.base_url} has no batches here "
                    f"({self.engine.clean(str(error))[:200]}): leave out engine.args.batch"
                ) from error
            except (openai.APIConnectionError, openai.APIStatusError, TimeoutError) as error:
                wait = self.engine.wait_after(error, tries)
                if wait is None:
                    raise CurateError(
                        f"{self.engine.base_url} does not take batches now: "
                        f"{self.engine.clean(str(error))[:300]}; batches that were sent stay with "
                        "the server, and the same command fetches them"
                    ) from error
                await asyncio.sleep(wait)


def _errors(state: Any) -> str:
    """Error messages of a batch that the server refused as a whole."""
    errors = getattr(getattr(state, "errors", None), "data", None) or []
    return "; ".join(str(getattr(e, "message", e)) for e in errors[:3])[:300] or "no reason given"
