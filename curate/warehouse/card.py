"""The card of a model: a README.md in its directory with its origin and its evaluations.

It is written from the tables when training ends, and again after an evaluation. A README that
somebody else wrote is left alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from curate.atomic import is_inside, write_whole
from curate.config import parse_yaml
from curate.errors import CurateError
from curate.warehouse.lineage import format_lineage
from curate.warehouse.store import Warehouse

MARK = "<!-- written by curate: changes are overwritten -->"


def write_card(warehouse: Warehouse, model_hash: str) -> Path | None:
    """Write the card of the model with this hash. Returns None if it is not in the warehouse, or
    has a README that somebody else wrote.
    """
    rows = warehouse.sql(
        "SELECT * FROM models WHERE model_hash = ? ORDER BY created_at DESC LIMIT 1", [model_hash]
    )
    if rows.is_empty():
        return None
    model = rows.row(0, named=True)
    directory = warehouse.root / str(model["path"])
    if not directory.is_dir() or (model["kind"] == "base" and not model["run_id"]):
        return None  # a model that was not made here
    if not is_inside(directory, warehouse.root):
        return None  # a model that was not made here
    path = directory / "README.md"
    if path.exists() and MARK not in path.read_text(encoding="utf-8"):
        return None
    write_whole(path, card(warehouse, model))
    return path


def card(warehouse: Warehouse, model: Mapping[str, Any]) -> str:
    """The text of the card. `model` is a row of the table `models`."""
    facts = {
        "kind": model["kind"],
        "weights": model["model_hash"],
        "started from": _name(warehouse, model["parent_hash"]),
        "run": model["run_id"],
        "steps": model["step"],
        "parameters": f"{model['parameters']:,}" if model["parameters"] else None,
        "finished": f"{model['created_at']:%Y-%m-%d %H:%M} UTC" if model["created_at"] else None,
    }
    parts = ["\n".join(_front_matter(warehouse, model)), f"# {model['name']}\n\n{MARK}"]
    parts.append(
        "\n".join(f"- {key}: {value}" for key, value in facts.items() if value not in (None, ""))
    )
    if table := _measured(warehouse, model["model_hash"]):
        parts.append("## Measured\n\n" + table)
    parts.append(
        "## Made from\n\n```text\n" + format_lineage(warehouse, model["model_hash"]) + "\n```"
    )
    if model["config"]:
        config = json.dumps(json.loads(model["config"]), indent=1, ensure_ascii=False)
        parts.append("## Config\n\n```json\n" + config + "\n```")
    return "\n\n".join(parts) + "\n"


def _front_matter(warehouse: Warehouse, model: Mapping[str, Any]) -> list[str]:
    """YAML that the Hub shows and searches by. Texts are JSON strings, which YAML reads as they
    are.
    """
    base, license = _base(warehouse, model)
    task = {"grpo": "reinforcement-learning", "sft": "sft", "distill": "distillation"}
    tags = ["curate", "reasoning", *([task[model["kind"]]] if model["kind"] in task else [])]
    return [
        "---",
        f"license: {json.dumps(license)}",
        "library_name: transformers",
        "pipeline_tag: text-generation",
        *([f"base_model: {json.dumps(base)}"] if base else []),
        "tags:",
        *(f"- {tag}" for tag in tags),
        "---",
    ]


def _base(warehouse: Warehouse, model: Mapping[str, Any]) -> tuple[str | None, str]:
    """Name and licence of the model that training started from, over all of its runs.

    The licence is that of the base's own card; `unknown` if it has none.
    """
    models = {
        model_hash: origin
        for model_hash, *origin in warehouse.sql(
            "SELECT model_hash, name, path, parent_hash FROM models ORDER BY created_at NULLS FIRST"
        ).iter_rows()
    }
    name, license = None, "unknown"
    parent: str | None = model["parent_hash"]
    # Training that changes no weight ends in the model that it started from: each is read once.
    while parent in models:
        name, path, parent = models.pop(parent)
        license = _license_of(warehouse.root / str(path)) or license
    return name, license


def _license_of(directory: Path) -> str | None:
    """The licence in the front matter of a model's card; None without one."""
    try:
        _, head, _ = (directory / "README.md").read_text(encoding="utf-8").split("---", 2)
        value = parse_yaml(head, directory).get("license")
    except (OSError, ValueError, AttributeError, CurateError):
        return None
    return str(value) if value and value != "unknown" else None


def _name(warehouse: Warehouse, model_hash: str | None) -> str | None:
    if not model_hash:
        return None
    rows = warehouse.sql(
        "SELECT name FROM models WHERE model_hash = ? ORDER BY created_at DESC LIMIT 1",
        [model_hash],
    )
    return f"{rows.item()} ({model_hash})" if len(rows) else model_hash


def _measured(warehouse: Warehouse, model_hash: str) -> str:
    """The newest overall results per set of problems, with 95 % intervals, as a Markdown table."""
    rows = warehouse.sql(
        "SELECT problems, metric, k, value, low, high, problem_count FROM evaluations WHERE "
        "model_hash = ? "
        "AND slice = 'all' AND baseline IS NULL "
        "QUALIFY rank() OVER (PARTITION BY problems ORDER BY created_at DESC) = 1 ORDER BY ALL",
        [model_hash],
    )
    if rows.is_empty():
        return ""
    lines = [
        "| problems | metric | value | 95 % interval | problems asked |",
        "|---|---|---|---|---|",
    ]
    for problems, metric, k, value, low, high, n in rows.iter_rows():
        name = metric.replace("@k", f"@{k}") if k else metric
        span = f"{low:.3f} to {high:.3f}" if low is not None and high is not None else ""
        lines.append(
            f"| {problems} | {name} | {'' if value is None else f'{value:.3f}'} | {span} | {n} |"
        )
    return "\n".join(lines)
