"""Lineage: the origin of a version, a model or a trace, read from the manifests alone."""

from __future__ import annotations

import json
from typing import Any

from curate.errors import UsageError
from curate.progress import counted
from curate.store import url_of
from curate.store.paths import is_folder
from curate.warehouse.store import Warehouse

# Keys of configs shown on a line; the rest is in the manifest and in the model's card.
SHOWN = ("recipe", "rules", "samples", "epochs", "rewards", "optim", "sampling")
OMITTED = (
    "floor",
    "schedule",
    "warmup",
    "betas",
    "epsilon",
    "weight_decay",
    "max_grad_norm",
    "top_k",
    "stop",
)


def _short(value: Any) -> str:
    """A value of a config on one line; a group of keys without the less informative ones."""
    if not isinstance(value, dict):
        return str(value)
    details = {k: v for k, v in value.items() if k not in OMITTED}
    return " ".join(f"{k} {v}" for k, v in details.items() if v not in (None, [], {}))


def find(warehouse: Warehouse, name: str) -> str:
    """Resolve a name to a reference: `table/dataset/version` or `model:<hash>`. UsageError if
    unknown.
    """
    if name.count("/") == 2 and is_folder(warehouse.root / name):
        return name
    models = warehouse.sql(
        "SELECT model_hash FROM models WHERE model_hash = ? OR name = ? OR path = ? "
        "ORDER BY created_at DESC LIMIT 1",
        [name, name, name],
    )
    if len(models):
        return f"model:{models.item()}"
    begun = warehouse.sql(
        "SELECT DISTINCT 'model:' || model_hash AS ref FROM models "
        "WHERE starts_with(model_hash, ?)",
        [name],
    )["ref"].to_list()
    for table in ("corpora", "problems", "evaluations", "traces"):
        dataset, _, version = name.partition("@")
        versions = [v for v in warehouse.versions(table, dataset) if v.version.startswith(version)]
        if versions:
            return versions[-1].ref
    traces = warehouse.sql(
        "SELECT trace_id, max('traces/' || dataset || '/' || version) AS ref FROM traces "
        "WHERE starts_with(trace_id, ?) GROUP BY trace_id LIMIT 2",
        [name],
    )
    begun += traces["ref"].to_list()
    if len(begun) > 1:
        raise UsageError(
            f"'{name}' is ambiguous: several models or traces have an id that starts with it; give "
            "more of the id"
        )
    if begun:
        return str(begun[0])
    raise UsageError(
        f"'{name}' is not a model, corpus, trace or version in {url_of(warehouse.root)}: see "
        "`curate sql`, view manifests"
    )


def tree(warehouse: Warehouse, ref: str) -> list[tuple[int, dict[str, Any]]]:
    """Ancestors of `ref`, depth first, as (depth, facts). A repeated ancestor is named and not
    followed again.
    """
    manifests = {
        row["ref"]: row
        for row in warehouse.sql(
            'SELECT ref, "table", rows, parents, config, model_hash, seed, code_version, sealed_at '
            "FROM manifests"
        ).iter_rows(named=True)
    }
    models = {
        row["model_hash"]: row
        for row in warehouse.sql("SELECT * FROM models ORDER BY created_at").iter_rows(named=True)
    }
    seen: set[str] = set()
    rows: list[tuple[int, dict[str, Any]]] = []

    def walk(name: str, depth: int) -> None:
        again = name in seen
        seen.add(name)
        if name.startswith("model:"):
            model = models.get(name.removeprefix("model:"))
            facts: dict[str, Any] = {"ref": name, "again": again}
            parents: list[str] = []
            if model:
                facts |= {key: model[key] for key in ("name", "kind", "step", "path", "config")}
                facts["seed"] = json.loads(model["config"] or "{}").get("seed")
                made_from = json.loads(model["data"]) if model["data"] else {}
                parents = [*made_from.get("corpora", []), *made_from.get("problems", [])]
                if model["parent_hash"]:
                    parents.append(f"model:{model['parent_hash']}")
        else:
            manifest = manifests.get(name, {})
            facts = {
                "ref": name,
                "again": again,
                **{k: manifest.get(k) for k in ("rows", "seed", "code_version", "config")},
            }
            parents = manifest.get("parents") or []
        rows.append((depth, facts))
        if not again:
            for parent in parents:
                walk(parent, depth + 1)

    walk(ref, 0)
    return rows


def format_lineage(warehouse: Warehouse, name: str) -> str:
    """The tree as indented lines; the tree of a trace starts with the trace."""
    lines = []
    if len(name) >= 6 and all(c in "0123456789abcdef" for c in name):
        traces = warehouse.sql(
            "SELECT trace_id, problem_id, sample_index, attempt, seed, verdict FROM annotated "
            "WHERE starts_with(trace_id, ?) LIMIT 1",
            [name],
        )
        for row in traces.iter_rows(named=True):
            trace = ", ".join(f"{key.removesuffix('_id')} {value}" for key, value in row.items())
            lines = [f"{trace}, one row of"]
    for depth, facts in tree(warehouse, find(warehouse, name)):
        details = [facts["ref"]]
        if facts.get("name"):
            details.append(
                f"{facts['kind']} {facts['name']}"
                + (f", step {facts['step']}" if facts.get("step") else "")
            )
        if facts.get("rows") is not None:
            details.append(counted(facts["rows"], "row"))
        if facts.get("seed") is not None:
            details.append(f"seed {facts['seed']}")
        if facts.get("code_version"):
            details.append(f"code {facts['code_version']}")
        config = (
            json.loads(facts["config"]) if facts.get("config") and facts["config"] != "null" else {}
        )
        details += [f"{key} {_short(config[key])}" for key in SHOWN if config.get(key)]
        if facts["again"]:
            details.append("(see above)")
        lines.append("  " * depth + ("<- " if depth else "") + ", ".join(details))
    return "\n".join(lines)
