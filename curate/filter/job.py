"""The filter job: apply rules to annotated traces, print the funnel, seal a versioned corpus."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from curate.atomic import unique_name
from curate.config import Config, validate
from curate.errors import UsageError
from curate.filter.corpus import kept_by_slice, write_corpus
from curate.filter.decide import FilterResult, apply_rules, columns_read, explain
from curate.filter.funnel import print_funnel
from curate.filter.rules import RuleSet, load_rules
from curate.job import ClusterConfig, Context, JobResult, StageKind
from curate.memory import DEFAULT, limit_malloc_arenas, megabytes
from curate.progress import counted, duration, output
from curate.prompts.render import TemplateName
from curate.signals.macros import column_groups, derived_columns
from curate.store import url_of
from curate.store.paths import scratch
from curate.warehouse.names import check_name
from curate.warehouse.slices import Slices
from curate.warehouse.sql import connect, create_views, quote, signal_groups

if TYPE_CHECKING:
    import duckdb

    from curate.warehouse import Warehouse


class FilterConfig(Config):
    """The rules, the traces they apply to, and the corpus they make."""

    rules: str = Field(description="name of a shipped rule set, or a YAML file")
    corpus: str | None = Field(None, description="name of the corpus; default: the rule set's")
    traces: list[str] = Field(
        [], description="`family` or `family/version` of the table traces; default: all"
    )
    where: str | None = Field(None, description="additional SQL condition on the view `annotated`")
    set: dict[str, Any] = Field({}, description="values of the rule set to replace, by dotted path")
    without: list[str] = Field([], description="names of rules to leave out")
    memory: str = Field(
        DEFAULT, description="memory for the decision; half of it is DuckDB's, which spills to disk"
    )
    template: TemplateName | None = Field(
        None, description="template of the prompts; default: the rule set's, else the trace's"
    )
    cluster: ClusterConfig | None = Field(
        None, exclude=True, description="cluster that detects duplicates and contamination"
    )


def prepare(config: FilterConfig, warehouse: Warehouse) -> tuple[RuleSet, str | None]:
    """Return the rule set of a config and its condition on traces."""
    rules = load_rules(config.rules, config.set, config.without)
    conditions = [f"({config.where})"] if config.where else []
    if config.traces:
        conditions.append(f"({traces_condition(config.traces, warehouse)})")
    return rules, " AND ".join(conditions) or None


def traces_condition(names: Sequence[str], warehouse: Warehouse) -> str:
    """The SQL condition on `annotated` of traces by `family` or `family/version`.

    Raises UsageError for a name without traces.
    """
    chosen = [_chosen(name.removeprefix("traces/"), warehouse) for name in names]
    return " OR ".join(dict.fromkeys(chosen))


def _chosen(name: str, warehouse: Warehouse) -> str:
    """Return the SQL condition of a family of traces, or of one version of it; `UsageError` if
    unknown.
    """
    family, _, version = name.partition("/")
    versions = [
        v
        for v in warehouse.versions("traces", check_name("traces", family))
        if version in ("", v.version)
    ]
    if not versions and warehouse.exists():
        there = sorted({v.dataset for v in warehouse.versions("traces")})
        names = ", ".join(there[:12]) or "none"
        raise UsageError(f"no traces '{name}' in {url_of(warehouse.root)}: there are {names}")
    return f"dataset = {quote(family)}" + (f" AND version = {quote(version)}" if version else "")


def unread(rules: RuleSet, where: str | None) -> set[str]:
    """Return the groups of signals, and `verdicts`, that a rule set does not use, directly or by a
    macro.
    """
    read = {name.lower() for name in columns_read(rules, where)}
    for name, call in derived_columns().items():
        if name in read:
            read |= set(re.findall(r"\w+", call))
    groups = column_groups()
    verdict_columns = {"verdict", "verified_by", "extracted", "verdict_detail"}
    needed = {groups[name] for name in read if name in groups}
    if any(name in verdict_columns or name.endswith("_verdict") for name in read):
        needed.add("verdicts")
    return ({"verdicts"} | set(groups.values())) - needed


@contextmanager
def bounded(connection: duckdb.DuckDBPyConnection, memory: str, root: Path) -> Iterator[None]:
    """Give DuckDB half of `memory`; it spills to the staging folder. The frames in Python need the
    rest.
    """
    size = megabytes(memory, 200)
    spill = scratch(root) / f"spill-{unique_name()}"
    connection.execute(f"SET temp_directory = {quote(str(spill))}")
    connection.execute(f"SET memory_limit = '{round(size / 2)}MB'")
    try:
        yield
    finally:
        shutil.rmtree(spill, ignore_errors=True)


def explain_trace(config: FilterConfig, context: Context, trace_id: str) -> str:
    """Explain as text why one trace was kept or dropped."""
    rules, where = prepare(config, context.warehouse)
    with (
        connect(context.warehouse.root, unread(rules, where), views=False) as connection,
        bounded(connection, config.memory, context.warehouse.root),
    ):
        return str(explain(connection, rules, trace_id, where))


def run(config: FilterConfig, context: Context) -> JobResult:
    """Decide, print the funnel, and seal the corpus.

    Raises CurateError, naming the rule that dropped most, if nothing is kept; no corpus is written
    then.
    """

    started = time.monotonic()
    limit_malloc_arenas()
    rules, where = prepare(config, context.warehouse)
    name = config.corpus or rules.name
    with (
        connect(context.warehouse.root, unread(rules, where), views=False) as connection,
        bounded(connection, config.memory, context.warehouse.root),
    ):
        slices = Slices(connection, context.warehouse.root, unread(rules, where))
        decision = apply_rules(
            connection,
            rules,
            where,
            slices=slices,
            folder=scratch(context.warehouse.root),
            memory=config.memory,
            each=context.map,
        )
        print_funnel(decision.funnel)
        for line in overlap_lines(decision):
            output(line)
        # Writing reads texts only; without this, every batch would join all signals again.
        unmeasured = {"verdicts", *signal_groups()}
        create_views(connection, context.warehouse.root, unmeasured, views=False)
        slices = slices.without(unmeasured)
        version = write_corpus(
            context.warehouse,
            connection,
            decision,
            name,
            template=config.template,
            parents=_parents(connection, decision, slices),
            config=config.model_dump(exclude={"memory"}),
            slices=slices,
        )
    result = JobResult(
        refs=[version.ref], rows=version.manifest["rows"], seconds=time.monotonic() - started
    )
    result.facts = {"corpus": f"{name}@{version.version}", "value": f"{name}@{version.version}"}
    kept, looked_at, problems = decision.counts()
    result.summary = (
        f"{kept:,} of {counted(looked_at, 'trace')} kept, {counted(problems, 'problem')}, "
        f"corpus {name}@{version.version}, {duration(result.seconds)}"
    )
    return result


def overlap_lines(
    result: FilterResult, most: int = 5, table: str | Path = "the table contamination"
) -> list[str]:
    """Format the problems that are in a benchmark, the most similar first.

    `table`: name of the full list.
    """
    count = result.overlaps.height
    if not count:
        return []
    are = "is" if count == 1 else "are"
    lines = [f"{counted(count, 'problem')} {are} in the benchmarks:"]
    ordered = result.overlaps.sort("similarity", "tokens", descending=True)
    for row in ordered.head(most).iter_rows(named=True):
        lines += [
            f"  similarity {row['similarity']:.2f}, {row['tokens']} words in a row:",
            f"    problem:   {_shortened(row['question'])}",
            f"    benchmark: {_shortened(row['item'])}",
        ]
    if count > most:
        lines.append(f"  and {count - most} more: see {table}")
    return lines


def _shortened(text: str, most: int = 160) -> str:
    text = " ".join(text.split())
    return text if len(text) <= most else text[: most - 3] + "..."


def _parents(con: duckdb.DuckDBPyConnection, result: FilterResult, slices: Slices) -> list[str]:
    """Return the versions of traces that the kept rows come from."""
    refs: set[str] = set()
    for kept in kept_by_slice(result, slices):
        con.register("kept_ids", kept.select("trace_id", "attempt").to_arrow())
        versions = con.sql(
            "SELECT DISTINCT dataset, version FROM traces JOIN kept_ids USING (trace_id, attempt)"
        )
        refs.update(f"traces/{dataset}/{version}" for dataset, version in versions.fetchall())
        con.unregister("kept_ids")
    return sorted(refs)


def _checked(data: Mapping[str, Any], where: str) -> FilterConfig:
    config = validate(FilterConfig, data, where)
    load_rules(config.rules, config.set, config.without)
    return config


STAGE = StageKind(
    config=_checked,
    run=run,
    takes=frozenset({"cluster"}),
    exact=frozenset({"traces"}),
    gives="corpus",
)
