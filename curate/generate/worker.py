"""One process at work on a job: feeds the engine across chunks, keeps what finishes, commits chunks that are whole.

The engine is never made to wait for a chunk, nor for a judgement: requests are made lazily from claimed chunks, further
rounds of problems that need more come first, and only where nothing else is left does the stream say "none now".
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from curate.errors import UsageError
from curate.generate import history as state
from curate.generate.adaptive import Steered
from curate.generate.background import Judge
from curate.generate.plan import Plan, Row, as_problem
from curate.progress import Task, say, task
from curate.records import Completion, Request, Sampling
from curate.warehouse.annotations import publish_verdicts
from curate.warehouse.chunks import Chunk, ChunkLog, Key, key_of
from curate.warehouse.files import now
from curate.warehouse.identity import request_seed, trace_id
from curate.warehouse.traces import trace_frame, with_parts

if TYPE_CHECKING:
    import polars as pl

WAIT_SECONDS = 0.5
SHOWN = (
    300  # characters of a prompt's end and of a completion's beginning in the sample that is shown
)
# What judging reads of a row: not the tokens.
JUDGED = (
    "trace_id",
    "attempt",
    "problem_id",
    "sample_index",
    "prompt",
    "completion",
    "form",
    "finish_reason",
)


@dataclass
class Open:
    """A claimed chunk: its log, the rows of its units, and how far each is asked where results steer that."""

    log: ChunkLog
    units: dict[str, Row]
    wanted: int = 0  # keys that make it whole, where nothing steers
    steered: dict[str, Steered] = field(default_factory=dict)
    judged: list[pl.DataFrame] = field(default_factory=list)
    prompts: dict[str, str] = field(default_factory=dict)

    @property
    def whole(self) -> bool:
        if self.steered:
            return all(unit.settled for unit in self.steered.values())
        return len(self.log.done) >= self.wanted


class Worker:
    """Works on the open chunks of one family until none is left."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.context, self.config = plan, plan.context, plan.config
        self.adaptive = self.config.adaptive if self.config.adapts else None
        self.standing: Any = {}  # of units that have committed traces (see good.standing)
        self.committed = self.tokens = self.finished = self.stopped = 0
        self.before = 0  # tokens before this pass
        self.cost = 0.0
        self.asked: dict[str, tuple[Open, Key]] = {}
        self.opened: dict[str, Open] = {}
        self.shown = False
        self.engine: Any = None
        self.judge: Judge | None = None
        if self.adaptive is not None:
            self.judge = Judge(self.context, self.adaptive.rules)
        elif self.config.live and self.config.source == "model":
            self.judge = Judge(self.context)

    def close(self) -> None:
        if self.judge is not None:
            self.judge.close()

    # -- passes over what is open --------------------------------------------------------------------------------

    def work(self) -> bool:
        """Finish every open chunk of the wanted units, or wait for who has it. True where there was any."""
        rows = self._open_rows()
        if rows.is_empty():
            return False
        with task(self.config.label or self.config.recipe, self._size(rows)) as bar:
            try:
                while not rows.is_empty():
                    before = self.committed
                    self._pass(rows, bar)
                    rows = self._open_rows()
                    if not rows.is_empty() and self.committed == before:
                        bar.update(
                            bar.done,
                            f"{rows['chunk_id'].n_unique()} chunks are with another process",
                        )
                        time.sleep(WAIT_SECONDS)
            except BaseException:
                if kept := sum(len(made.log.done) for made in self.opened.values()):
                    say(
                        f"  {kept} finished traces of unfinished chunks are in the logs: the next run commits them"
                    )
                raise
            finally:
                # Ctrl-C or an error: what finished is made durable, and others may take the chunks over
                for made in self.opened.values():
                    made.log.close()
                self.opened.clear()
                self.asked.clear()
        return True

    def _open_rows(self) -> pl.DataFrame:
        return self.plan.family.open_rows(self.plan.units["unit"], self.config.samples)

    def _size(self, rows: pl.DataFrame) -> int:
        """Steps of the progress: problems where results steer, else samples."""
        import polars as pl

        count = pl.min_horizontal("stop", pl.lit(self.config.samples)) - pl.col("start")
        samples = (
            pl.when("adaptive").then(count.clip(0)).otherwise(pl.col("stop") - pl.col("start"))
        )
        if self.adaptive is not None:
            samples = pl.when("adaptive").then(1).otherwise(samples)
        return int(rows.select(samples.sum()).item())

    def _pass(self, rows: pl.DataFrame, bar: Task) -> None:
        requests = self._requests(rows, bar)
        first = self._first(requests)
        if first is None:  # all was replayed or is with others: no model needs to start
            return
        bar.started = time.monotonic()  # rates are of sampling, not of starting the engine
        self.before = self.tokens
        stream = itertools.chain([first], requests)
        if self.config.source == "solutions":
            completions: Iterator[Completion] = self._solutions(stream)
        else:
            completions = self.engine.generate(stream)
        for completion in completions:
            self._finished(completion, bar)

    def _first(self, requests: Iterator[Request | None]) -> Request | None:
        """The first request, once there is one."""
        for request in requests:
            if request is not None:
                return request
            if self.judge is not None:
                self.judge.wait(WAIT_SECONDS)
        return None

    # -- requests ------------------------------------------------------------------------------------------------

    def _requests(self, rows: pl.DataFrame, bar: Task) -> Iterator[Request | None]:
        """Claim chunk after chunk, as fast as the engine asks for more. None: none now, some may follow."""
        chunks = self.plan.family.chunks(rows)
        while True:
            for key, frame in self._polled():
                yield from self._judged(key, frame, bar)
            chunk = next(chunks, None)
            if chunk is not None:
                yield from self._open(chunk, bar)
            elif any(made.steered for made in self.opened.values()):
                yield None
            else:
                return

    def _polled(self) -> list[tuple[Hashable, pl.DataFrame]]:
        if self.judge is None:
            return []
        try:
            return self.judge.poll()
        except Exception as error:
            if self.adaptive is not None:
                raise
            self.judge = None  # a glance for the eye is no reason to stop
            say(f"  the live share of correct answers is off: {error}")
            return []

    def _open(self, chunk: Chunk, bar: Task) -> Iterator[Request]:
        log = self.plan.family.claim(chunk)
        if log is None:
            if chunk.committed:
                bar.update(
                    bar.done
                    + (len(chunk.items) if chunk.adaptive and self.adaptive else len(chunk.keys))
                )
            return
        made = Open(
            log, {unit: self.plan.unit(chunk.places.get(unit), unit) for unit, *_ in chunk.items}
        )
        self.opened[chunk.chunk_id] = made
        if chunk.adaptive and self.adaptive is not None:
            yield from self._steer(made, bar)
            return
        keys = self._keys(made)
        made.wanted = len(keys)
        missing = [key for key in keys if key not in log.done]
        bar.update(bar.done + made.wanted - len(missing))
        if made.whole:
            self._commit(made)
        yield from self._ask(made, missing)

    def _keys(self, made: Open) -> list[Key]:
        """What to ask of a chunk where nothing steers: all of it; of an adaptive one, the samples this job wants."""
        chunk = made.log.chunk
        if not chunk.adaptive:
            return list(chunk.keys)
        beyond = _beyond(made.log)
        return [k for k in chunk.keys if k[1] < max(self.config.samples, beyond.get(k[0], 0))]

    def _ask(self, made: Open, keys: list[Key]) -> Iterator[Request]:
        # all of them are on the books before the first can come back
        named = {
            f"{made.log.chunk.chunk_id}:{unit}:{sample}:{attempt}": (unit, sample, attempt)
            for unit, sample, attempt in keys
        }
        self.asked.update((name, (made, key)) for name, key in named.items())
        for name, (unit, sample, _) in named.items():
            yield self._request(name, made, unit, sample)

    def _request(self, request_id: str, made: Open, unit: str, sample: int) -> Request:
        if self.config.source != "solutions":
            self._start_engine()  # before a prompt is rendered: the chat template is the model's
        sampling = self.config.sampling
        if unit not in made.prompts:
            chat = self.engine.render_chat if self.config.chat and self.engine is not None else None
            made.prompts[unit] = self.plan.prompt(made.units[unit], chat)
        return Request(
            request_id=request_id,
            prompt=made.prompts[unit],
            seed=request_seed(self.config.seed, unit, sample),
            sampling=Sampling(
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                top_k=sampling.top_k,
                max_tokens=sampling.max_tokens,
                stop=tuple(sampling.stop),
                logprobs=self.config.store_tokens,
            ),
        )

    def _start_engine(self) -> None:
        if self.engine is not None:
            return
        model, config = self.plan.model, self.plan.engine
        assert model is not None
        if config.name == "openai" and config.args.get("budget"):
            # the budget is the job's, over all its runs
            config = config.model_copy(
                update={"args": {**config.args, "spent": state.spent(self.plan)}}
            )
        self.engine = self.context.engine.get(config, model.path, model.hash)
        if hasattr(self.engine, "wait_ready"):
            self.engine.wait_ready()

    def _solutions(self, requests: Iterator[Request | None]) -> Iterator[Completion]:
        from curate.generate import get_recipe

        recipe = get_recipe(self.config.recipe)
        if recipe.rows is None:
            raise UsageError(
                f"recipe {recipe.name} has no traces without a model: leave out source: solutions"
            )
        frame = recipe.rows(self.plan.units.drop("unit", "simple"), self.plan.template.form.name)
        texts = dict(frame.select("problem_id", "completion").iter_rows())
        for request in requests:
            if request is not None:
                yield Completion(
                    request.request_id, texts[self.asked[request.request_id][1][0]], "stop"
                )

    # -- where results steer -------------------------------------------------------------------------------------

    def _steer(self, made: Open, bar: Task) -> Iterator[Request]:
        """Begin with the units of an adaptive chunk, from what is in its log."""
        beyond = _beyond(made.log)
        there = {key_of(row): _slim(row) for row in made.log.rows()} if beyond else {}
        for unit, start, stop, _ in made.log.chunk.items:
            _, good, judged = self.standing.get(unit, (0, 0, 0)) if start else (0, 0, 0)
            made.steered[unit] = Steered(
                start, min(stop, self.config.samples), good, judged, beyond.get(unit, 0)
            )
        for unit in made.steered:
            yield from self._advance(made, unit, there, bar)
        if made.whole:
            self._commit(made)

    def _advance(
        self, made: Open, unit: str, there: dict[Key, Row], bar: Task
    ) -> Iterator[Request]:
        """Ask the next round of a unit, or settle it."""
        assert self.adaptive is not None
        steered = made.steered[unit]
        keys = [(unit, sample, 0) for sample in steered.advance(self.adaptive)]
        if steered.settled:
            bar.update(bar.done + 1)
            return
        steered.round = [there[key] for key in keys if key in there]
        missing = [key for key in keys if key not in made.log.done]
        steered.waiting = {sample for _, sample, _ in missing}
        if not missing:
            self._submit(made, unit)
        yield from self._ask(made, missing)

    def _submit(self, made: Open, unit: str) -> None:
        assert self.judge is not None
        problem = as_problem(made.units[unit])
        rows, made.steered[unit].round = made.steered[unit].round, []
        self.judge.submit((made.log.chunk.chunk_id, unit), [(row, problem) for row in rows])

    def _judged(self, key: Hashable, frame: pl.DataFrame, bar: Task) -> Iterator[Request]:
        """Go on with a unit whose round was judged."""
        assert self.judge is not None
        if not isinstance(key, tuple):
            self.judge.seen(frame)
            return
        made, unit = self.opened[key[0]], key[1]
        made.judged.append(frame)
        steered = made.steered[unit]
        steered.good += int(frame["good"].sum())
        steered.judged += int(frame["verdict"].is_in(["correct", "wrong"]).sum())
        self.judge.live[0] += int((frame["verdict"] == "correct").sum())
        self.judge.live[1] += int(frame["verdict"].is_in(["correct", "wrong"]).sum())
        # what another job left in the log beyond the rounds so far is read when it is needed, which is seldom
        there = (
            {key_of(row): _slim(row) for row in made.log.rows()}
            if steered.beyond > steered.asked
            else {}
        )
        yield from self._advance(made, unit, there, bar)
        if made.whole:
            self._commit(made)

    # -- what finishes -------------------------------------------------------------------------------------------

    def _finished(self, completion: Completion, bar: Task) -> None:
        made, key = self.asked.pop(completion.request_id)
        row = self._row(completion, made, key)
        made.log.append(row)
        self.finished += 1
        self.tokens += completion.completion_tokens
        self.stopped += completion.finish_reason == "stop"
        self.cost += row["cost"] or 0.0
        if (
            not self.shown
            and self.config.source != "solutions"
            and completion.finish_reason != "error"
        ):
            self.shown = True
            say(
                f"  first trace: …{row['prompt'][-SHOWN:]!r}\n            -> {row['completion'][:SHOWN]!r}"
            )
        if made.steered:
            steered = made.steered[key[0]]
            steered.round.append(_slim(row))
            steered.waiting.discard(key[1])
            if not steered.waiting:
                self._submit(made, key[0])
            bar.update(bar.done, self._note(bar))
            return
        if self.judge is not None and self.judge.due(row):
            self.judge.glance(_slim(row), as_problem(made.units[key[0]]))
        bar.update(bar.done + 1, self._note(bar))
        if made.whole:
            self._commit(made)

    def _row(self, completion: Completion, made: Open, key: Key) -> Row:
        unit, sample, attempt = key
        source, keep, sampling = made.units[unit], self.config.store_tokens, self.config.sampling
        family = self.plan.family.family
        return {
            "trace_id": trace_id(family, unit, sample),
            "attempt": attempt,
            "job_id": self.plan.job_id,
            "problem_id": source["problem_id"],
            "sample_index": sample,
            "parent_trace_id": unit if self.config.source == "rework" else None,
            "form": self.plan.template_of(source).form.name,
            "template": self.plan.label_of(source),
            "engine": "solution" if self.config.source == "solutions" else self.engine.name,
            "prompt": made.prompts[unit],
            # half a surrogate pair cannot be stored as UTF-8
            "completion": (completion.text or "").encode("utf-8", "replace").decode("utf-8"),
            "completion_token_ids": completion.token_ids if keep else None,
            "logprobs": completion.logprobs if keep else None,
            "prompt_token_ids": completion.prompt_token_ids if keep else None,
            "finish_reason": completion.finish_reason,
            "error": completion.error,
            "prompt_tokens": completion.prompt_tokens,
            "completion_tokens": completion.completion_tokens,
            "max_tokens": sampling.max_tokens,
            "seed": request_seed(self.config.seed, unit, sample),
            "cost": completion.extra.get("cost"),
            "created_at": now().isoformat(),
        }

    def _note(self, bar: Task) -> str:
        """What stands beside the progress: rate, shares, cost."""
        passed = max(time.monotonic() - bar.started, 1e-9)
        parts = [f"{self.finished} samples"] if self.adaptive is not None else []
        if self.tokens > self.before:
            parts.append(f"{(self.tokens - self.before) / passed:.0f} tokens/s")
        parts.append(f"{self.stopped / self.finished:.0%} complete")
        if self.judge is not None and self.judge.live[1]:
            correct, judged = self.judge.live
            parts.append(f"{correct / judged:.0%} of {judged} judged correct")
        if self.cost:
            parts.append(f"cost {self.cost:.4g}")
        return ", ".join(parts)

    def _commit(self, made: Open) -> None:
        """The chunk in columns: what varies from its rows, what is constant from the plan, the rest by expression."""
        import polars as pl

        plan, sampling, log = self.plan, self.config.sampling, made.log
        order = {key: place for place, key in enumerate(log.chunk.keys)}
        rows = sorted(log.rows(), key=lambda row: order[key_of(row)])
        if len(rows) < len(log.done) and log.chunk.committed:
            # Locks do not exclude each other here (some network file systems): another process has
            # committed the chunk and removed its logs.
            del self.opened[log.chunk.chunk_id]
            log.close()
            return
        frame = with_parts(trace_frame(rows)).with_columns(
            recipe=pl.lit(self.config.recipe),
            model=pl.lit(plan.model.name if plan.model else None, pl.String),
            model_hash=pl.lit(plan.model.hash if plan.model else None, pl.String),
            temperature=pl.lit(sampling.temperature),
            top_p=pl.lit(sampling.top_p),
        )
        del self.opened[log.chunk.chunk_id]
        if log.commit(frame):
            self.committed += len(rows)
            if made.judged:
                verdicts = pl.concat(made.judged).drop("good")
                warehouse, part = self.context.warehouse, log.chunk.chunk_id
                publish_verdicts(warehouse, log.chunk.version, part, verdicts)


def _slim(row: Row) -> Row:
    return {name: row[name] for name in JUDGED}


def _beyond(log: ChunkLog) -> dict[str, int]:
    """Of each unit that has rows in the log: the number of samples up to the last of them."""
    found: dict[str, int] = {}
    for unit, sample, _ in log.done:
        found[unit] = max(found.get(unit, 0), sample + 1)
    return found
