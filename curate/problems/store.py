"""Problems in the warehouse: by the name of a stored version, or loaded from their sources and
committed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from curate.config import validate
from curate.errors import UsageError
from curate.files import stem_of
from curate.job import Context, JobResult, Rows, Size, StageKind
from curate.problems import ProblemsConfig, load_problems, rows_as_problems
from curate.problems.base import SCHEMA
from curate.progress import counted, say
from curate.warehouse import Version, Warehouse
from curate.warehouse.identity import frame_digest
from curate.warehouse.schemas import shipped_file


class Stored(NamedTuple):
    """Rows of problems, and the version that holds them."""

    frame: pl.DataFrame
    ref: str
    dataset: str


@dataclass(frozen=True)
class ProblemStore:
    """Problems by name or by config. With `commit` loaded problems are stored; a dry run stores
    nothing.
    """

    context: Context
    commit: bool = True

    def load(self, problems: str | ProblemsConfig, name: str | None = None) -> Stored:
        """The rows. `name` is that of the dataset; by default it is made of the names of the
        sources.
        """
        wh = self.context.warehouse
        if isinstance(problems, str):
            version = wh.latest("problems", _address(problems))
            frame = version.read(list(SCHEMA)).collect()
            return Stored(frame, version.ref, version.dataset)
        frame, report = load_problems(problems)
        for line in report.lines():
            say(f"  {line}")
        name = name or "-".join(dict.fromkeys(_source_name(s) for s in problems.sources))
        if not self.commit:
            return Stored(frame, f"problems/{name} (not stored yet)", name)
        config = problems.model_dump(mode="json")
        version = wh.write("problems", name, frame, key=frame_digest(frame), config=config)
        return Stored(frame, version.ref, name)


def store_rows(root: Path, rows: pl.DataFrame, name: str, verifier: str | None = None) -> str:
    """Store rows as problems, all of them in the training split. Returns `name@version`.

    verifier: of rows with a reference that name none.
    """
    if "verifier" not in rows.columns:
        rows = rows.with_columns(verifier=pl.lit(None, pl.String))
    if "reference" in rows.columns:
        has_reference = pl.col("reference").is_not_null() & pl.col("verifier").is_null()
        named = pl.when(has_reference).then(pl.lit(verifier)).otherwise(pl.col("verifier"))
        rows = rows.with_columns(pl.col("reference").cast(pl.String), verifier=named)
    if "source" not in rows.columns:
        rows = rows.with_columns(source=pl.lit(name))
    config = ProblemsConfig(sources=[{"source": "rows"}], held_out=0)
    frame, _ = rows_as_problems(rows, config)
    facts = {"config": {"rows": len(frame), "verifier": verifier}}
    version = Warehouse(root).write("problems", name, frame, key=frame_digest(frame), **facts)
    return f"{version.dataset}@{version.version}"


def stored_problems(
    problems: str | ProblemsConfig, context: Context, name: str | None = None
) -> Version:
    """A version of the table `problems`: a stored one by name, else loaded from its config and
    committed.
    """
    ref = ProblemStore(context).load(problems, name).ref
    return context.warehouse.latest("problems", _address(ref))


def _address(name: str) -> str:
    """`name@version`, of `problems/name/version` as well."""
    return name.removeprefix("problems/").replace("/", "@", 1)


def _source_name(source: Mapping[str, object]) -> str:
    """The source's name as part of the name of a dataset."""
    return str(source["source"]).replace(":", ".")


# -- as a stage ----------------------------------------------------------------------------------


class ProblemsStage(ProblemsConfig):
    """A stage `do: problems`."""

    name: str | None = None
    """Name of the dataset; by default that of the stage."""


def stage_of(files: Sequence[str], data: Mapping[str, Any]) -> dict[str, Any]:
    """The config of a stage from files and flat keys: those of one source are put under `sources`.

    `stage_of(["sums.jsonl"], {"verifier": "math"})` stores the file's problems as `sums`.
    UsageError for keys of a source next to `sources`.
    """
    config = {key: value for key, value in data.items() if key in ProblemsStage.model_fields}
    own = {key: value for key, value in data.items() if key not in ProblemsStage.model_fields}
    if files:
        own = {"source": "files", "path": list(files) if len(files) > 1 else files[0], **own}
    if own and "sources" in config:
        raise UsageError(
            f"{', '.join(own)}: sources are given in the config; put these keys into one of them"
        )
    if not own and "sources" not in config:
        raise UsageError(
            "name files of problems, source=procedural dataset=NAME size=N, "
            "source=hub dataset=OWNER/NAME, or a config with sources"
        )
    if own:
        config["sources"] = [own]
    label = own.get("label") or own.get("dataset") or (stem_of(files[0]) if files else None)
    if label:
        config.setdefault("name", re.sub(r"[^A-Za-z0-9._+-]+", "-", str(label)).strip("-."))
    return config


def _checked(data: Mapping[str, Any], where: str) -> ProblemsStage:
    config = validate(ProblemsStage, data, where)
    config.built(where)
    return config


def _run(config: ProblemsStage, context: Context) -> JobResult:
    sources = [
        {**s, "path": shipped_file(s["path"])} if isinstance(s.get("path"), str) else s
        for s in config.sources
    ]
    fields = config.model_dump(exclude={"name", "sources"})
    version = stored_problems(ProblemsConfig(sources=sources, **fields), context, config.name)
    rows = version.manifest["rows"]
    result = JobResult(
        refs=[version.ref], rows=rows, summary=f"{counted(rows, 'problem')} in {version.ref}"
    )
    result.facts["value"] = f"{version.dataset}@{version.version}"
    return result


def _size(config: ProblemsStage, _: Rows) -> Size:
    counts = [source.expected() for source in config.built()]
    if None in counts:
        return Size("as many as the files hold")
    total = sum(count or 0 for count in counts)
    return Size(counted(total, "problem"), total)


STAGE = StageKind(
    config=_checked, run=_run, size=_size, takes=frozenset({"name"}), gives="problems"
)
