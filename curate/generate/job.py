"""The generation job: problems × samples to traces, each once, whatever is killed meanwhile.

The engine is fed across chunks and never waits for one: requests are made lazily from claimed chunks, completions go to
the chunk's log as they finish, and a chunk whose last row came is put into columns and committed.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from curate.errors import CurateError, UsageError
from curate.generate.config import GenerateConfig
from curate.jobs import Context, JobResult
from curate.progress import Task, duration, say, task
from curate.records import Completion, Request, Sampling
from curate.warehouse import Version
from curate.warehouse.chunks import ChunkLog, Family, Key
from curate.warehouse.identity import digest, family_id, frame_digest, request_seed, trace_id
from curate.warehouse.store import now

if TYPE_CHECKING:
    import polars as pl

    from curate.engines.models import ModelRef
    from curate.prompts.render import Example, Template

WAIT_SECONDS = 0.5


@dataclass(frozen=True)
class Plan:
    """What a job will do, known before any model is loaded."""

    config: GenerateConfig
    problems: pl.DataFrame
    problems_version: Version
    template: Template
    form: str
    examples: tuple[Example, ...]
    model: ModelRef | None
    family: Family

    @property
    def requests(self) -> int:
        return len(self.problems) * self.config.samples

    def describe(self) -> str:
        """The resolved plan, as `--dry-run` prints it."""
        config = self.config
        model = f"{self.model.name} ({self.model.hash[:12]})" if self.model else "none (worked solutions)"
        lines = [
            f"recipe    {config.recipe}: template {self.template.name}, form {self.form}"
            + (f", {len(self.examples)} worked examples" if self.examples else ""),
            f"model     {model}",
            f"problems  {len(self.problems)} of {self.problems_version.ref}"
            + (f", split {config.split}" if config.split else ""),
            f"samples   {config.samples} a problem, {self.requests} in all",
        ]
        if self.model:
            lines.append(
                f"tokens    at most {self.requests * config.sampling.max_tokens:,} "
                f"({config.sampling.max_tokens} a completion)"
            )
        committed = self.family.committed(["problem_id"]).collect().height
        lines.append(f"family    {self.family.family}: {committed} rows committed so far")
        return "\n".join(lines)


def make_plan(config: GenerateConfig, context: Context) -> Plan:
    """Resolve problems, template, examples and model. Raises UsageError for what is missing; loads no model."""
    import polars as pl

    from curate.engines.models import resolve_model
    from curate.prompts.render import load_template
    from curate.records import Problem

    template = load_template(config.template, config.form)
    form = template.form.name
    version = stored_problems(config.problems, context)
    frame = version.read().collect()
    if config.split:
        frame = frame.filter(pl.col("split") == config.split)
    examples: tuple[Example, ...] = ()
    if config.examples:
        from curate.prompts.render import Example, worked_completion

        shown = stored_problems(config.examples.problems, context).read().collect()
        shown = (
            shown.filter(pl.col("solution").is_not_null(), pl.col("split") == "train")
            .sort("problem_id")
            .head(config.examples.count)
        )
        if len(shown) < config.examples.count:
            raise UsageError(
                f"examples: {config.examples.count} were asked for and {len(shown)} training problems are solved"
            )
        examples = tuple(
            Example(row["question"], worked_completion(Problem(**row), form)) for row in shown.iter_rows(named=True)
        )
        frame = frame.filter(~pl.col("question").is_in(shown["question"].implode()))
    if config.source == "solutions":
        frame = frame.filter(pl.col("solution").is_not_null())
    frame = frame.head(config.limit) if config.limit else frame
    if frame.is_empty():
        what = " with a worked solution" if config.source == "solutions" else ""
        raise UsageError(f"no problems{what} in {version.ref}" + (f", split {config.split}" if config.split else ""))
    model = resolve_model(config.model) if config.model else None
    weights = model.hash if model and config.source == "model" else digest("solutions", version.dataset)
    family = family_id(
        model_hash=weights,
        recipe=config.recipe,
        template=template.label(examples) + ("+chat" if config.chat else ""),
        form=form,
        sampling=config.sampling.model_dump(),
        seed=config.seed,
    )
    parents = [version.ref, *([f"model:{model.hash}"] if model else [])]
    facts = {"parents": parents, "config": config.model_dump(mode="json"), "model_hash": weights, "seed": config.seed}
    return Plan(config, frame, version, template, form, examples, model, Family(context.warehouse, family[:24], facts))


def stored_problems(problems: Any, context: Context, name: str | None = None) -> Version:
    """A version of the `problems` table: by name where that is stored, else loaded from its config and committed."""
    from curate.problems import load_problems

    if isinstance(problems, str):
        return context.warehouse.latest("problems", problems.removeprefix("problems/").replace("/", "@", 1))
    frame, report = load_problems(problems)
    for line in report.lines():
        say(f"  {line}")
    name = name or "-".join(dict.fromkeys(str(s["source"]).replace(":", ".") for s in problems.sources))
    return context.warehouse.write(
        "problems", name, frame, key=frame_digest(frame), config=problems.model_dump(mode="json")
    )


def run(config: GenerateConfig, context: Context) -> JobResult:
    """Generate what is missing. Returns the versions that hold the wanted rows.

    Raises CurateError where more requests failed than `max_failed` allows; all rows are committed.
    """
    plan = make_plan(config, context)
    started = time.monotonic()
    worker = _Worker(plan, context)
    first = True
    while True:
        added = plan.family.extend(plan.problems["problem_id"], config.samples)
        added += plan.family.redo(worker.to_redo(retry_failed=config.retry_failed and first))
        if not worker.work() and not added:
            break
        first = False
    sealed = plan.family.seal()
    rows = worker.outcome()
    result = JobResult(
        refs=[v.ref for v in sealed],
        rows=worker.committed,
        failed=rows.get("error", 0),
        seconds=time.monotonic() - started,
        facts={"family": plan.family.family},
    )
    total = sum(rows.values())
    result.summary = (
        f"{total} traces ({worker.committed} new): "
        + ", ".join(f"{count} {_WORDS[reason]}" for reason, count in sorted(rows.items()))
        + (f"; {worker.tokens:,} tokens in {duration(result.seconds)}" if worker.committed else "")
    )
    if worker.committed:
        context.record(plan.family.family, "generate", config.label or config.recipe, config.model_dump(), result)
    for reason, count in worker.errors():
        say(f"  failed {count} times: {reason}")
    if total and rows.get("error", 0) / total > config.max_failed:
        raise CurateError(
            f"{rows['error']} of {total} requests failed, more than max_failed = {config.max_failed:g} allows; all "
            'rows are committed. See `curate sql "select error, count(*) from traces group by 1"`, mend the cause and '
            "run again with --retry-failed"
        )
    return result


_WORDS = {"stop": "complete", "length": "truncated", "error": "failed"}


class _Worker:
    """Works on the open chunks of one family until none is left."""

    def __init__(self, plan: Plan, context: Context) -> None:
        self.plan, self.context = plan, context
        self.config = plan.config
        self.ids = plan.problems["problem_id"]
        self.by_id = {row["problem_id"]: row for row in plan.problems.iter_rows(named=True)}
        self.committed = 0
        self.tokens = 0
        self.logs: dict[str, tuple[ChunkLog, Key]] = {}
        self.open: set[str] = set()
        self.shown = False
        self.engine: Any = None

    # -- what is there -------------------------------------------------------------------------------------------

    def _last(self, columns: list[str]) -> pl.DataFrame:
        """The last attempt of each wanted (problem, sample)."""
        import polars as pl

        names = ["problem_id", "sample_index", "attempt", *columns]
        return (
            self.plan.family.committed(names)
            .filter(pl.col("sample_index") < self.config.samples, pl.col("problem_id").is_in(self.ids.implode()))
            .sort("attempt")
            .unique(["problem_id", "sample_index"], keep="last")
            .collect()
        )

    def to_redo(self, retry_failed: bool) -> pl.DataFrame:
        """Truncated rows whose limit was lower than the one asked for now; failed ones where that is wanted."""
        import polars as pl

        last = self._last(["finish_reason", "max_tokens"])
        again = (pl.col("finish_reason") == "length") & (pl.col("max_tokens") < self.config.sampling.max_tokens)
        if retry_failed:
            again |= pl.col("finish_reason") == "error"
        return last.filter(again)

    def outcome(self) -> dict[str, int]:
        """How many of the wanted rows ended how."""
        return dict(self._last(["finish_reason"])["finish_reason"].value_counts().iter_rows())

    def errors(self) -> list[tuple[str, int]]:
        """The commonest reasons of failure."""
        import polars as pl

        failed = self._last(["finish_reason", "error"]).filter(pl.col("finish_reason") == "error")
        return list(failed["error"].value_counts(sort=True).head(3).iter_rows())

    # -- the work ------------------------------------------------------------------------------------------------

    def work(self) -> bool:
        """Finish every open chunk of the wanted problems, or wait for who has it. True where there was any."""
        rows = self.plan.family.open_rows(self.ids, self.config.samples)
        if rows.is_empty():
            return False
        with task(self.config.label or self.config.recipe, int((rows["stop"] - rows["start"]).sum())) as bar:
            try:
                while not rows.is_empty():
                    before = self.committed
                    self._pass(rows, bar)
                    rows = self.plan.family.open_rows(self.ids, self.config.samples)
                    if not rows.is_empty() and self.committed == before:
                        bar.update(bar.done, f"{rows['chunk_id'].n_unique()} chunks are with another process")
                        time.sleep(WAIT_SECONDS)
            finally:
                # Ctrl-C or an error: what finished is made durable, and others may take the chunks over
                for log in {id(log): log for log, _ in self.logs.values()}.values():
                    log.close()
                self.logs.clear()
        return True

    def _pass(self, rows: pl.DataFrame, bar: Task) -> None:
        requests = self._requests(rows, bar)
        if self.config.source == "solutions":
            completions: Iterator[Completion] = self._solutions(requests)
        else:
            first = next(requests, None)
            if first is None:  # all was replayed or is with others: no model needs to start
                return
            self._start_engine()
            bar.started = time.monotonic()  # rates are of sampling, not of starting the engine
            completions = self.engine.generate(itertools.chain([first], requests))
        for completion in completions:
            self._finished(completion, bar)

    def _requests(self, rows: pl.DataFrame, bar: Task) -> Iterator[Request]:
        """Claim chunk after chunk, as fast as the engine asks for more."""
        for chunk in self.plan.family.chunks(rows):
            log = self.plan.family.claim(chunk)
            if log is None:
                if chunk.committed:
                    bar.update(bar.done + len(chunk.keys))
                continue
            bar.update(bar.done + len(log.rows))
            missing = log.missing
            if not missing:
                self._commit(log)
                continue
            # all of the chunk is on the books before the first of it can come back
            for key in missing:
                self.logs[f"{chunk.chunk_id}:{key[0]}:{key[1]}:{key[2]}"] = (log, key)
            for key in missing:
                yield self._request(f"{chunk.chunk_id}:{key[0]}:{key[1]}:{key[2]}", key)

    def _request(self, request_id: str, key: Key) -> Request:
        problem_id, sample, _ = key
        sampling = self.config.sampling
        return Request(
            request_id=request_id,
            prompt=self.prompt(problem_id),
            seed=request_seed(self.config.seed, problem_id, sample),
            sampling=Sampling(
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                top_k=sampling.top_k,
                max_tokens=sampling.max_tokens,
                stop=tuple(sampling.stop),
                logprobs=self.config.store_tokens,
            ),
        )

    def prompt(self, problem_id: str) -> str:
        from curate.prompts.render import render

        if problem_id not in self.by_id:  # a chunk that another job planned holds problems this one did not ask for
            found = self.context.warehouse.sql("SELECT * FROM problems WHERE problem_id = ?", [problem_id])
            self.by_id[problem_id] = found.row(0, named=True)
        chat = self.engine.render_chat if self.config.chat and self.engine is not None else None
        return render(self.plan.template, self.by_id[problem_id]["question"], self.plan.examples, chat=chat)

    def _start_engine(self) -> None:
        if self.engine is None:
            model = self.plan.model
            assert model is not None
            self.engine = self.context.engine.get(self.config.engine, model.path, model.hash)
            if hasattr(self.engine, "wait_ready"):
                self.engine.wait_ready()

    def _solutions(self, requests: Iterator[Request]) -> Iterator[Completion]:
        from curate.generate import get_recipe

        recipe = get_recipe(self.config.recipe)
        if recipe.rows is None:
            raise UsageError(f"recipe {recipe.name} has no traces without a model: leave out source: solutions")
        frame = recipe.rows(self.plan.problems, self.plan.form)
        texts = dict(frame.select("problem_id", "completion").iter_rows())
        for request in requests:
            problem_id = self.logs[request.request_id][1][0]
            yield Completion(request.request_id, texts[problem_id], "stop")

    def _finished(self, completion: Completion, bar: Task) -> None:
        log, key = self.logs.pop(completion.request_id)
        problem_id, sample, attempt = key
        keep = self.config.store_tokens
        self.tokens += completion.completion_tokens
        log.append(
            {
                "trace_id": trace_id(self.plan.family.family, problem_id, sample),
                "attempt": attempt,
                "job_id": self.plan.family.family,
                "problem_id": problem_id,
                "sample_index": sample,
                "engine": "solution" if self.config.source == "solutions" else self.engine.name,
                "prompt": self.prompt(problem_id),
                # half a surrogate pair cannot be stored as UTF-8
                "completion": (completion.text or "").encode("utf-8", "replace").decode("utf-8"),
                "completion_token_ids": completion.token_ids if keep else None,
                "logprobs": completion.logprobs if keep else None,
                "prompt_token_ids": completion.prompt_token_ids if keep else None,
                "finish_reason": completion.finish_reason,
                "error": completion.error,
                "prompt_tokens": completion.prompt_tokens,
                "completion_tokens": completion.completion_tokens,
                "max_tokens": self.config.sampling.max_tokens,
                "seed": request_seed(self.config.seed, problem_id, sample),
                "created_at": now().isoformat(),
            }
        )
        passed = max(time.monotonic() - bar.started, 1e-9)
        bar.update(bar.done + 1, f"{self.tokens / passed:.0f} tokens/s" if self.tokens else "")
        if not self.shown and self.config.source == "model" and completion.finish_reason != "error":
            self.shown = True
            say(f"  first trace: {self.prompt(problem_id)[-160:]!r} -> {completion.text[:240]!r}")
        if log.complete:
            self._commit(log)

    def _commit(self, log: ChunkLog) -> None:
        """The chunk in columns: what varies from rows, what is constant from the plan, the rest by expression."""
        import polars as pl

        from curate.prompts.forms import answer_expr, reasoning_expr, with_opener_expr

        plan, sampling = self.plan, self.config.sampling
        text = with_opener_expr(pl.col("completion"), pl.col("prompt"), pl.col("form"))
        rows = [log.rows[key] for key in log.chunk.keys]
        frame = (
            pl.DataFrame(rows, schema_overrides=_types(), infer_schema_length=None)
            .with_columns(
                pl.col("created_at").str.to_datetime(time_zone="UTC"),
                recipe=pl.lit(self.config.recipe),
                form=pl.lit(plan.form),
                template=pl.lit(plan.template.label(plan.examples)),
                model=pl.lit(plan.model.name if plan.model else None, pl.String),
                model_hash=pl.lit(plan.model.hash if plan.model else None, pl.String),
                temperature=pl.lit(sampling.temperature),
                top_p=pl.lit(sampling.top_p),
            )
            .with_columns(reasoning=reasoning_expr(text, pl.col("form")), answer=answer_expr(text, pl.col("form")))
        )
        if log.commit(frame):
            self.committed += len(rows)


def _types() -> dict[str, Any]:
    import polars as pl

    return {
        "completion_token_ids": pl.List(pl.Int32),
        "prompt_token_ids": pl.List(pl.Int32),
        "logprobs": pl.List(pl.Float32),
        "error": pl.String,
        "attempt": pl.Int32,
    }
