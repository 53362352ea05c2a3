"""One process working on a job: feed the engine across chunks, log finished rows, commit complete
chunks.

The engine never waits for a chunk or for a verdict: requests are made lazily from claimed chunks,
further rounds of problems that need more come first, and only if nothing else is left does the
stream say "none now".
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Iterator
from typing import Any

import polars as pl

from curate.errors import UsageError
from curate.generate import get_recipe, history
from curate.generate.background import BackgroundVerifier
from curate.generate.meter import LIVE, Meter
from curate.generate.open_chunk import OpenChunk, Row
from curate.generate.plan import Plan, as_problem
from curate.generate.steering import Steering
from curate.progress import say, task
from curate.records import Completion, Request, Sampling
from curate.warehouse.annotations import publish_verdicts
from curate.warehouse.chunks import Chunk, Key, key_of
from curate.warehouse.claims import FIRST_PAUSE, LONGEST_PAUSE
from curate.warehouse.identity import request_seed, trace_id
from curate.warehouse.names import now
from curate.warehouse.traces import trace_frame, with_parts

VERDICT_SECONDS = 0.5  # wait for a verdict if nothing else is left to do


class Worker:
    """Works on the open chunks of one family until none is left."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.context, self.config = plan, plan.context, plan.config
        self.meter = Meter()
        # Rows committed by this process: all, those of the job's own samples, and those sampled
        # again. Tokens and cost are of all of them, also if an earlier process sampled them.
        self.committed = self.new = self.again = self.tokens = 0
        self.cost = 0.0
        self.chunks: dict[str, OpenChunk] = {}
        self.in_flight: dict[str, tuple[OpenChunk, Key]] = {}  # by request id
        self.engine: Any = None
        self.verifier: BackgroundVerifier | None = None
        self.steering: Steering | None = None
        adaptive = self.config.adaptive if self.config.adapts else None
        if adaptive is not None:
            self.verifier = BackgroundVerifier(self.context, plan.rules)
            self.steering = Steering(adaptive, self.config.samples, self.verifier, self.meter)
        elif self.config.live and self.config.source == "model":
            self.verifier = BackgroundVerifier(self.context)

    def close(self) -> None:
        if self.verifier is not None:
            self.verifier.close()

    # -- passes over open chunks -------------------------------------------------------------------

    def work(self) -> bool:
        """Finish every open chunk of these units, or wait for the process that holds it.

        Returns whether any chunk was open.
        """
        rows = self._open_rows()
        if rows.is_empty():
            return False
        unit = "samples" if self.steering is None else "problems"
        with task(self.config.label or self.config.recipe, self._steps(rows), unit=unit) as bar:
            self.meter.bar = bar
            try:
                self._passes(rows)
            except BaseException:
                if kept := sum(len(chunk.log.done) for chunk in self.chunks.values()):
                    say(
                        f"  {kept} finished traces of unfinished chunks are in the logs: "
                        "the next run commits them"
                    )
                raise
            finally:
                # After Ctrl-C or an error, what finished is made durable, and others may take the
                # chunks over.
                for chunk in self.chunks.values():
                    chunk.log.close()
                self.chunks.clear()
                self.in_flight.clear()
                self.meter.bar = None
        return True

    def _passes(self, rows: pl.DataFrame) -> None:
        """Work on open chunks until none remains.

        Chunks held by others are checked again after a pause.
        """
        pause = FIRST_PAUSE
        while not rows.is_empty():
            committed, still_open = self.committed, rows["chunk_id"].n_unique()
            self._pass(rows)
            rows = self._open_rows()
            if rows.is_empty() or self.committed > committed:
                pause = FIRST_PAUSE
                continue
            count = rows["chunk_id"].n_unique()
            bar = self.meter.bar
            if bar is not None:
                bar.update(bar.done, f"{count} chunks are with another process")
            self.context.claims.pause(pause)
            pause = FIRST_PAUSE if count < still_open else min(2 * pause, LONGEST_PAUSE)

    def _open_rows(self) -> pl.DataFrame:
        return self.plan.family.open_rows(self.plan.units.frame["unit"], self.config.samples)

    def _steps(self, rows: pl.DataFrame) -> int:
        """Length of the progress bar: problems if verdicts decide on samples, else samples."""
        count = pl.min_horizontal("stop", pl.lit(self.config.samples)) - pl.col("start")
        whole = pl.col("stop") - pl.col("start")
        steps = pl.when("adaptive").then(count.clip(0)).otherwise(whole)
        if self.steering is not None:
            steps = pl.when("adaptive").then(1).otherwise(whole)
        return int(rows.select(steps.sum()).item())

    def _pass(self, rows: pl.DataFrame) -> None:
        requests = self._requests(rows)
        first = self._first(requests)
        if first is None:  # all rows are in logs or with others: no model needs to start
            return
        self.meter.begin_pass()
        stream = itertools.chain([first], requests)
        solutions = self.config.source == "solutions"
        completions = self._solutions(stream) if solutions else self.engine.generate(stream)
        try:
            for completion in completions:
                self._finished(completion)
        finally:
            self.meter.end_pass()

    def _first(self, requests: Iterator[Request | None]) -> Request | None:
        """Wait for the first request and return it."""
        for request in requests:
            if request is not None:
                return request
            if self.verifier is not None:
                self.verifier.wait(VERDICT_SECONDS)
        return None

    # -- requests ----------------------------------------------------------------------------------

    def _requests(self, rows: pl.DataFrame) -> Iterator[Request | None]:
        """Claim chunk after chunk, as fast as the engine reads requests.

        None: none now, some may follow.
        """
        chunks = self.plan.family.chunks(rows)
        while True:
            for key, verdicts in self._verdicts():
                yield from self._verified(key, verdicts)
            chunk = next(chunks, None)
            if chunk is not None:
                yield from self._open(chunk)
            elif any(open_chunk.progress for open_chunk in self.chunks.values()):
                yield None
            else:
                return

    def _verdicts(self) -> list[tuple[Hashable, pl.DataFrame]]:
        if self.verifier is None:
            return []
        try:
            return self.verifier.poll()
        except Exception as error:
            if self.steering is not None:
                raise
            self.verifier = None  # only the live share needed it, and that must not stop the job
            say(f"  the live share of correct answers is off: {error}")
            return []

    def _verified(self, key: Hashable, verdicts: pl.DataFrame) -> Iterator[Request]:
        """Continue with a unit whose round was verified."""
        if not isinstance(key, tuple) or self.steering is None:
            assert key == LIVE
            self.meter.judged_live(verdicts)
            return
        chunk_id, unit = key
        chunk = self.chunks[chunk_id]
        self.meter.add_verdicts(verdicts)
        yield from self._request_all(chunk, list(self.steering.verified(chunk, unit, verdicts)))
        self._commit_if_complete(chunk)

    def _open(self, claimable: Chunk) -> Iterator[Request]:
        """Claim a chunk and request what it lacks; nothing if another process has it."""
        steered = claimable.adaptive and self.steering is not None
        log = self.plan.family.claim(claimable)
        if log is None:
            if claimable.committed:
                self.meter.advance(len(claimable.items) if steered else len(claimable.keys))
            return
        units = {u: self.plan.unit(claimable.places.get(u), u) for u, *_ in claimable.items}
        chunk = self.chunks[claimable.chunk_id] = OpenChunk(log, units)
        if steered and self.steering is not None:
            missing = list(self.steering.begin(chunk))
        else:
            wanted = self._fixed_keys(chunk)
            chunk.wanted = len(wanted)
            missing = [key for key in wanted if key not in log.done]
            self.meter.advance(len(wanted) - len(missing))
        yield from self._request_all(chunk, missing)
        self._commit_if_complete(chunk)

    def _fixed_keys(self, chunk: OpenChunk) -> list[Key]:
        """Keys to request if verdicts decide nothing: all of the chunk, or of an adaptive chunk the
        samples of this job.
        """
        keys = chunk.log.chunk.keys
        if not chunk.log.chunk.adaptive:
            return list(keys)
        logged = chunk.logged_samples()
        return [k for k in keys if k[1] < max(self.config.samples, logged.get(k[0], 0))]

    def _request_all(self, chunk: OpenChunk, keys: list[Key]) -> Iterator[Request]:
        # All are registered before the first is handed out, because its completion may come back
        # while the rest wait.
        ids = {
            f"{chunk.chunk_id}:{u}:{sample}:{attempt}": (u, sample, attempt)
            for u, sample, attempt in keys
        }
        self.in_flight.update((request_id, (chunk, key)) for request_id, key in ids.items())
        for request_id, (unit, sample, _) in ids.items():
            yield self._request(request_id, chunk, unit, sample)

    def _request(self, request_id: str, chunk: OpenChunk, unit: str, sample: int) -> Request:
        if self.config.source != "solutions":
            self._start_engine()  # before a prompt is rendered: the chat template is the model's
        sampling = self.config.sampling
        if unit not in chunk.prompts:
            chat = self.engine.render_chat if self.plan.chat and self.engine is not None else None
            chunk.prompts[unit] = self.plan.units.prompt(chunk.units[unit], chat)
        return Request(
            request_id=request_id,
            prompt=chunk.prompts[unit],
            group=chunk.chunk_id,
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
        if config.name == "openai":
            args = dict(config.args)
            if args.get("budget"):  # it is the job's, over all its runs
                args["spent"] = history.spent(self.plan)
            if args.get("batch"):
                args["journal"] = str(self.plan.family.jobs / "batches")
            config = config.model_copy(update={"args": args})
        self.engine = self.context.engine.get(config, model.path, model.hash)

    def _solutions(self, requests: Iterator[Request | None]) -> Iterator[Completion]:
        """Return worked solutions instead of completions."""
        recipe = get_recipe(self.config.recipe)
        if recipe.rows is None:
            raise UsageError(
                f"recipe {recipe.name} has no traces without a model: leave out source: solutions"
            )
        units = self.plan.units
        frame = recipe.rows(units.frame.drop("unit", "simple"), units.template.form.name)
        texts = dict(frame.select("problem_id", "completion").iter_rows())
        for request in requests:
            if request is not None:
                unit = self.in_flight[request.request_id][1][0]
                yield Completion(request.request_id, texts[unit], "stop")

    # -- completions -------------------------------------------------------------------------------

    def _finished(self, completion: Completion) -> None:
        chunk, key = self.in_flight.pop(completion.request_id)
        row = self._row(completion, chunk, key)
        chunk.log.append(row)
        self.meter.count(completion, row)
        if chunk.progress and self.steering is not None:
            self.steering.sampled(chunk, key, row)
            self.meter.advance(0)  # the bar counts problems; only its note changes
            return
        if self.verifier is not None:
            self.meter.sample_live(row, as_problem(chunk.units[key[0]]), self.verifier)
        self.meter.advance(1)
        self._commit_if_complete(chunk)

    def _row(self, completion: Completion, chunk: OpenChunk, key: Key) -> Row:
        unit, sample, attempt = key
        source, keep, sampling = chunk.units[unit], self.config.store_tokens, self.config.sampling
        family, units = self.plan.family.family, self.plan.units
        return {
            "trace_id": trace_id(family, unit, sample),
            "attempt": attempt,
            "job_id": self.plan.job_id,
            "problem_id": source["problem_id"],
            "sample_index": sample,
            "parent_trace_id": units.parent_trace(unit),
            "form": units.template_of(source).form.name,
            "template": units.template_label(source),
            "engine": "solution" if self.config.source == "solutions" else self.engine.name,
            "prompt": chunk.prompts[unit],
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

    def _commit_if_complete(self, chunk: OpenChunk) -> None:
        if chunk.complete and chunk.chunk_id in self.chunks:
            del self.chunks[chunk.chunk_id]
            self._commit(chunk)

    def _commit(self, chunk: OpenChunk) -> None:
        """Publish the chunk in columns: what varies from its rows, what is constant from the
        plan.
        """
        plan, sampling, log = self.plan, self.config.sampling, chunk.log
        order = {key: place for place, key in enumerate(log.chunk.keys)}
        rows = sorted(log.rows(), key=lambda row: order[key_of(row)])
        if len(rows) < len(log.done) and log.chunk.committed:
            # A lock that does not reach across machines let another process own the chunk too. It
            # committed first and removed the logs, ours among them; its rows are as good, since the
            # same seeds gave them.
            log.close()
            return
        frame = with_parts(trace_frame(rows)).with_columns(
            recipe=pl.lit(self.config.recipe),
            model=pl.lit(plan.model.name if plan.model else None, pl.String),
            model_hash=pl.lit(plan.model.hash if plan.model else None, pl.String),
            temperature=pl.lit(sampling.temperature),
            top_p=pl.lit(sampling.top_p),
        )
        if log.commit(frame):
            self._count(rows, log.chunk)
            if chunk.verdicts:
                verdicts = pl.concat(chunk.verdicts).drop("good")
                publish_verdicts(
                    self.context.warehouse, log.chunk.version, chunk.chunk_id, verdicts
                )

    def _count(self, rows: list[Row], chunk: Chunk) -> None:
        """Count committed rows. A chunk may hold samples that only another job requested."""
        self.committed += len(rows)
        self.tokens += sum(row["completion_tokens"] or 0 for row in rows)
        self.cost += sum(row["cost"] or 0.0 for row in rows)
        for unit, sample, attempt in map(key_of, rows):
            if unit in chunk.places and sample < self.config.samples:
                self.new += attempt == 0
                self.again += attempt > 0
