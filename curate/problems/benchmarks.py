"""Benchmarks that people quote, as a source of problems: `{source: benchmark, dataset: aime24}`.

Each is read from the Hub, or from a local copy in the data set's own columns: `path`, or a folder
with one file or directory per benchmark in `$CURATE_BENCHMARKS`. All problems are held out.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
from pydantic import Field, field_validator

from curate.config import did_you_mean
from curate.errors import UsageError
from curate.files import data_files, read_parts
from curate.problems.base import Source
from curate.problems.hub import opened, saved

FOLDER = "CURATE_BENCHMARKS"
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Benchmark:
    """Where a benchmark lies, and how its rows become problems.

    columns: those of the data set that are needed. rows: its size, by its card. window: for sets
    that grow, first and last day (both included) of the problems that count. script: whether the
    Hub has a loading script instead of data.
    """

    dataset: str
    subset: str | None
    part: str
    rows: int | None
    columns: tuple[str, ...]
    problem: Callable[[Row], dict[str, Any]]
    window: tuple[str, str] | None = None
    script: bool = False


def _math(question: str, answer: str) -> Callable[[Row], dict[str, Any]]:
    def problem(row: Row) -> dict[str, Any]:
        return {
            "question": str(row[question]),
            "reference": str(row[answer]),
            "verifier": "math",
            "domain": "math",
        }

    return problem


def _chosen(question: str, choices: list[str], right: int) -> dict[str, Any]:
    """A question with its choices below it, lettered."""
    letters = [chr(ord("A") + place) for place in range(len(choices))]
    lines = [f"{letter}) {choice.strip()}" for letter, choice in zip(letters, choices, strict=True)]
    return {
        "question": "\n".join([question.strip(), "", *lines]),
        "choices": [choice.strip() for choice in choices],
        "reference": letters[right],
        "verifier": "choice",
        "domain": "stem",
    }


def _gpqa(row: Row) -> dict[str, Any]:
    """The right answer is a column of its own: its place is drawn by a hash of the question, so
    that it is the same in every run.
    """
    answers = [row["Correct Answer"], *(row[f"Incorrect Answer {n}"] for n in (1, 2, 3))]
    order = list(range(4))
    seed = hashlib.blake2b(str(row["Question"]).encode(), digest_size=8).digest()
    random.Random(int.from_bytes(seed, "big")).shuffle(order)
    return _chosen(str(row["Question"]), [str(answers[i]) for i in order], order.index(0))


def _mmlu_pro(row: Row) -> dict[str, Any]:
    problem = _chosen(str(row["question"]), [str(o) for o in row["options"]], row["answer_index"])
    return problem | {"domain": str(row["category"])}


def _live_code(row: Row) -> dict[str, Any]:
    """Public and private tests; a problem with starter code is a function of a class."""
    tests = json.loads(row["public_test_cases"]) + _private(row["private_test_cases"])
    question = str(row["question_content"]).strip()
    if row.get("starter_code"):
        question += f"\n\nBegin with this code:\n```python\n{row['starter_code'].rstrip()}\n```"
    else:
        question += "\n\nRead the input from stdin and write the answer to stdout."
    return {
        "question": question,
        "tests": json.dumps(tests),
        "verifier": "code",
        "domain": "code",
        "metadata": str(row.get("metadata") or "{}"),
    }


def _private(text: str) -> list[dict[str, Any]]:
    """Private tests: JSON, or JSON packed by zlib and base64.

    The data set packs a pickle of that JSON text. A pickle may run code, so only its one text is
    read, without unpickling.
    """
    try:
        return list(json.loads(text))
    except ValueError:
        pass
    import base64
    import pickletools
    import zlib

    packed = zlib.decompress(base64.b64decode(text))
    texts = [value for _, value, _ in pickletools.genops(packed) if isinstance(value, str)]
    return list(json.loads(max(texts, key=len)))


BENCHMARKS: dict[str, Benchmark] = {
    "aime24": Benchmark(
        "HuggingFaceH4/aime_2024", None, "train", 30, ("problem", "answer"),
        _math("problem", "answer"),
    ),
    "aime25": Benchmark(
        "math-ai/aime25", None, "test", 30, ("problem", "answer"), _math("problem", "answer")
    ),
    "math500": Benchmark(
        "HuggingFaceH4/MATH-500", None, "test", 500, ("problem", "answer"),
        _math("problem", "answer"),
    ),
    "gpqa-diamond": Benchmark(
        "Idavidrein/gpqa", "gpqa_diamond", "train", 198,
        ("Question", "Correct Answer", *(f"Incorrect Answer {n}" for n in (1, 2, 3))), _gpqa,
    ),
    # The window of the R1 report: August 2024 to January 2025.
    "livecodebench": Benchmark(
        "livecodebench/code_generation_lite", None, "test", None,
        ("question_content", "public_test_cases", "private_test_cases", "contest_date"),
        _live_code, ("2024-08-01", "2025-01-31"), True,
    ),
    "mmlu-pro": Benchmark(
        "TIGER-Lab/MMLU-Pro", None, "test", 12_032,
        ("question", "options", "answer_index", "category"), _mmlu_pro,
    ),
}  # fmt: skip


def benchmark_named(name: str) -> Benchmark:
    """The benchmark of this name. UsageError if there is none."""
    if name not in BENCHMARKS:
        raise UsageError(
            f"no benchmark '{name}': choose from {', '.join(BENCHMARKS)}"
            f"{did_you_mean(name, BENCHMARKS)}"
        )
    return BENCHMARKS[name]


class BenchmarkSource(Source):
    """A benchmark by name."""

    dataset: str = Field(description=f"one of {', '.join(BENCHMARKS)}")
    path: str | None = Field(
        None,
        description="a local copy in the data set's own columns; null: a file or folder of its "
        f"name in ${FOLDER}, else the Hub",
    )
    revision: str | None = Field(None, description="revision on the Hub")

    @field_validator("dataset")
    @classmethod
    def _known(cls, name: str) -> str:
        benchmark_named(name)
        return name

    def expected(self) -> int | None:
        return benchmark_named(self.dataset).rows

    def load(self) -> pl.DataFrame:
        benchmark = benchmark_named(self.dataset)
        table, where = self._table(benchmark)
        if missing := [name for name in benchmark.columns if name not in table.columns]:
            raise UsageError(
                f"{where} has no column '{missing[0]}': {self.dataset} has the columns "
                f"{', '.join(benchmark.columns)}, and this has {', '.join(table.columns)}"
            )
        if benchmark.window:
            day = pl.col("contest_date").cast(pl.String).str.slice(0, 10)
            first, last = benchmark.window
            table = table.filter(day.is_between(pl.lit(first), pl.lit(last)))
        rows = [benchmark.problem(row) for row in table.iter_rows(named=True)]
        if not rows:
            raise UsageError(f"{where} holds no problem of {self.dataset}")
        return pl.DataFrame(rows).with_columns(
            source=pl.lit(self.dataset), split=pl.lit("held-out"), target_language=pl.lit("en")
        )

    def _table(self, benchmark: Benchmark) -> tuple[pl.DataFrame, str]:
        """The rows of the data set, and the name of the place for messages."""
        path = self.local_copy()
        if path is not None and not saved(path):
            files = data_files([path])
            parts = [part for file in files for part in read_parts(file)]
            return pl.concat(parts, how="vertical_relaxed"), str(path)
        if path is None and benchmark.script:
            raise UsageError(
                f"{self.dataset}: {benchmark.dataset} is a loading script, which `datasets` no "
                "longer runs. Download its files (hf download --repo-type dataset "
                f"{benchmark.dataset} --include 'test*.jsonl' --local-dir {self.dataset}) and name "
                f"the folder as `path`, or put it into ${FOLDER}"
            )
        name = str(path) if path is not None else benchmark.dataset
        subset = None if path is not None else benchmark.subset
        with opened(name, subset, benchmark.part, self.revision) as data:
            frame = pl.from_arrow(data.with_format("arrow")[:])
        assert isinstance(frame, pl.DataFrame)
        return frame, name

    def local_copy(self) -> Path | None:
        """The local copy, if there is one. UsageError if `path` names none."""
        if self.path is not None:
            path = Path(self.path).expanduser()
            if not path.exists():
                raise UsageError(f"{self.dataset}: no local copy at {path}")
            return path
        if folder := os.environ.get(FOLDER):
            for found in sorted(Path(folder).expanduser().glob(f"{self.dataset}*")):
                if found.name == self.dataset or found.name.startswith(f"{self.dataset}."):
                    return found
        return None
