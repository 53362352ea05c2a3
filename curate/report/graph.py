"""The pipeline as a drawing: the origin of each version, from the manifests, with rows on edges."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from curate.report.html import Html, number, tag
from curate.warehouse import Warehouse

SHOWN = ("problems", "traces", "corpora", "evaluations")
WIDE, HIGH, GAP_X, GAP_Y = 168, 46, 96, 22


@dataclass
class Node:
    """A box: its kind, which gives its colour, and its number of rows."""

    name: str
    kind: str
    title: str
    detail: str
    layer: int = 0
    place: float = 0.0


@dataclass
class Graph:
    nodes: dict[str, Node] = field(default_factory=dict)
    edges: dict[tuple[str, str], int | None] = field(default_factory=dict)  # rows passed on


def build(warehouse: Warehouse) -> Graph:
    """Problems, traces, corpora, models and evaluations of the warehouse as an acyclic graph."""
    graph = Graph()
    manifests = warehouse.sql(
        'SELECT ref, "table", dataset, version, rows, parents, model_hash, config '
        "FROM manifests ORDER BY sealed_at"
    ).to_dicts()
    counts = {
        (row["dataset"], row["version"]): row
        for row in warehouse.sql(
            "SELECT dataset, version, count(*) AS rows, any_value(recipe) AS recipe, "
            "any_value(policy_step) AS step "
            "FROM traces GROUP BY ALL"
        ).to_dicts()
    }
    names = dict(
        warehouse.sql(
            "SELECT job_id, any_value(name) FROM jobs WHERE kind IN ('generate', 'import') GROUP "
            "BY 1"
        ).iter_rows()
    )
    keys = {m["ref"]: _key(m, counts) for m in manifests}
    for manifest in manifests:
        if manifest["table"] not in SHOWN:
            continue
        key = keys[manifest["ref"]]
        rows = manifest["rows"] or 0
        node = graph.nodes.get(key)
        if node is None:
            graph.nodes[key] = node = _node(key, manifest, counts, names)
        if manifest["table"] == "traces":
            total = sum(
                c["rows"]
                for place, c in counts.items()
                if f"traces/{place[0]}/{place[1]}" in keys
                and keys[f"traces/{place[0]}/{place[1]}"] == key
            )
            rows = total
        node.detail = _rows_of(manifest["table"], rows)
        for parent in manifest["parents"] or []:
            if parent.startswith("model:"):
                graph.edges[parent, key] = rows
            elif parent.split("/")[0] in SHOWN and parent in keys:
                graph.edges[keys[parent], key] = rows if manifest["table"] != "corpora" else None
    _models(graph, warehouse, keys)
    _kept(graph, warehouse, keys)
    for pair in list(graph.edges):
        if pair[0] not in graph.nodes or pair[1] not in graph.nodes or pair[0] == pair[1]:
            del graph.edges[pair]
    _place(graph)
    return graph


def _key(manifest: Mapping[str, Any], counts: Mapping[tuple[str, str], Mapping[str, Any]]) -> str:
    """The box of a version. Versions of one family share a box; rollouts of a training run have
    one.
    """
    if manifest["table"] == "traces":
        facts = counts.get((manifest["dataset"], manifest["version"]))
        if facts is None or facts["step"] is None:
            return f"traces/{manifest['dataset']}"
    return str(manifest["ref"])


def _node(
    key: str, manifest: Mapping[str, Any], counts: Mapping[Any, Any], names: Mapping[str, str]
) -> Node:
    table, dataset = manifest["table"], manifest["dataset"]
    if table == "traces":
        facts = counts.get((dataset, manifest["version"]), {})
        if facts.get("step") is not None:
            return Node(key, "traces", f"rollouts of {dataset}", "")
        config = json.loads(manifest["config"] or "{}")
        title = names.get(dataset) or config.get("label") or config.get("recipe") or dataset[:12]
        return Node(key, "traces", title, "")
    return Node(key, table, dataset if table != "evaluations" else f"evaluation {dataset}", "")


def _rows_of(table: str, rows: int) -> str:
    unit = {
        "problems": "problems",
        "traces": "traces",
        "corpora": "examples",
        "evaluations": "figures",
    }[table]
    return f"{number(rows)} {unit}"


def _models(graph: Graph, warehouse: Warehouse, keys: Mapping[str, str]) -> None:
    models = warehouse.sql("SELECT * FROM models ORDER BY created_at").to_dicts()
    used = {end for edge in graph.edges for end in edge}
    for model in models:
        key = f"model:{model['model_hash']}"
        if (
            model["kind"] == "base"
            and key not in used
            and not any(m["parent_hash"] == model["model_hash"] for m in models)
        ):
            continue
        title = (
            model["name"]
            if not model["name"].startswith("/")
            else PurePosixPath(model["name"]).name
        )
        step = f", {number(model['step'])} steps" if model["step"] else ""
        graph.nodes[key] = Node(key, "models", title, f"{model['kind']}{step}")
        data = json.loads(model["data"] or "{}")
        rollouts = [
            k
            for k in graph.nodes
            if model["run_id"] and k.startswith("traces/") and k.endswith(f"/{model['run_id']}")
        ]
        for ref in data.get("corpora", []):
            if ref in keys:
                manifest = warehouse.version(*ref.split("/")).manifest
                graph.edges[keys[ref], key] = manifest.get("rows")
        for name in rollouts:
            count = graph.nodes[name].detail.split(" ")[0].replace(",", "")
            graph.edges[name, key] = int(count) if count.isdigit() else None
            graph.edges[f"model:{model['parent_hash']}", name] = graph.edges[name, key]
        if not rollouts:
            for ref in data.get("problems", []):
                if ref in keys:
                    graph.edges[keys[ref], key] = None
            graph.edges[f"model:{model['parent_hash']}", key] = None


def _kept(graph: Graph, warehouse: Warehouse, keys: Mapping[str, str]) -> None:
    """Number of rows of each family in each corpus."""
    rows = warehouse.sql(
        "SELECT c.corpus, c.version AS corpus_version, t.dataset, t.version, count(*) AS n FROM "
        "corpora c "
        "JOIN traces t ON t.trace_id = c.trace_id AND t.attempt = c.attempt GROUP BY ALL"
    )
    for corpus, version, dataset, part, n in rows.iter_rows():
        source, target = (
            keys.get(f"traces/{dataset}/{part}"),
            keys.get(f"corpora/{corpus}/{version}"),
        )
        if source and target:
            graph.edges[source, target] = (graph.edges.get((source, target)) or 0) + n


# -- layout: layers by the longest way from a source, and few crossings --------------------------


def _place(graph: Graph) -> None:
    into: dict[str, list[str]] = {name: [] for name in graph.nodes}
    out: dict[str, list[str]] = {name: [] for name in graph.nodes}
    for low, high in graph.edges:
        into[high].append(low)
        out[low].append(high)
    for _ in range(len(graph.nodes)):
        moved = False
        for name, node in graph.nodes.items():
            layer = max((graph.nodes[p].layer + 1 for p in into[name]), default=0)
            if layer > node.layer:
                node.layer, moved = layer, True
        if not moved:
            break
    layers: dict[int, list[Node]] = {}
    for node in graph.nodes.values():
        layers.setdefault(node.layer, []).append(node)
    for nodes in layers.values():
        for i, node in enumerate(nodes):
            node.place = float(i)
    for sweep in range(6):
        for layer in sorted(layers, reverse=bool(sweep % 2)):
            near = into if sweep % 2 == 0 else out

            def middle(node: Node, near: dict[str, list[str]] = near) -> float:
                places = [graph.nodes[n].place for n in near[node.name]]
                return sum(places) / len(places) if places else node.place

            layers[layer].sort(key=lambda n: (middle(n), n.name))
            offset = (max(map(len, layers.values())) - len(layers[layer])) / 2
            for i, node in enumerate(layers[layer]):
                node.place = i + offset


def draw(graph: Graph) -> Html:
    """The graph as SVG, with a description of each box for screen readers."""
    if not graph.nodes:
        return tag("p", "Nothing was made yet: the warehouse is empty.")
    width = (max(n.layer for n in graph.nodes.values()) + 1) * (WIDE + GAP_X) - GAP_X + 20
    height = (max(n.place for n in graph.nodes.values()) + 1) * (HIGH + GAP_Y) + 10
    edges = [
        _edge(graph.nodes[low], graph.nodes[high], rows)
        for (low, high), rows in graph.edges.items()
    ]
    description = (
        f"{len(graph.nodes)} boxes: problems, traces, corpora, models and evaluations, "
        "from left to right"
    )
    drawing = tag(
        "svg",
        [line for line, _ in edges],
        [_box(node) for node in graph.nodes.values()],
        [label for _, label in edges if label],
        viewBox=f"0 0 {width:.0f} {height:.0f}",
        width=f"{width:.0f}",
        height=f"{height:.0f}",
        role="img",
        aria_label=description,
        class_="graph",
    )
    return tag("div", drawing, class_="scroll", tabindex="0", role="region", aria_label="pipeline")


def _edge(low: Node, high: Node, rows: int | None) -> tuple[Html, Html | None]:
    """The curve from one box to another, and the number of rows next to it."""
    x1, y1 = _x(low) + WIDE, _y(low) + HIGH / 2
    x2, y2 = _x(high), _y(high) + HIGH / 2
    bend = max(40.0, (x2 - x1) / 2)
    start, end = f"{x1:.0f} {y1:.0f}", f"{x2:.0f} {y2:.0f}"
    path = f"M{start}C{x1 + bend:.0f} {y1:.0f} {x2 - bend:.0f} {y2:.0f} {end}"
    stroke = 1 + min(4.0, math.log10(rows + 1)) if rows else 1
    title = f"{low.title} → {high.title}" + (f": {number(rows)} rows" if rows is not None else "")
    line = tag("path", tag("title", title), d=path, class_="edge", stroke_width=f"{stroke:.1f}")
    if rows is None:
        return line, None
    # Near its target box, where the edges are apart.
    x, y = x2 - 10, y2 - 4 if y1 >= y2 else y2 + 11
    place = {"x": f"{x:.0f}", "y": f"{y:.0f}", "text_anchor": "end"}
    return line, tag("text", number(rows), **place, class_="count")


def _box(node: Node) -> Html:
    x, y = _x(node), _y(node)
    text_x = f"{x + 9:.0f}"
    return tag(
        "g",
        tag("title", f"{node.kind}: {node.title}, {node.detail} ({node.name})"),
        tag(
            "rect",
            x=f"{x:.0f}",
            y=f"{y:.0f}",
            width=WIDE,
            height=HIGH,
            rx=4,
            class_=f"box {node.kind}",
        ),
        tag("text", _cut(node.title, 21), x=text_x, y=f"{y + 19:.0f}", class_="name"),
        tag("text", _cut(node.detail, 26), x=text_x, y=f"{y + 36:.0f}", class_="detail"),
    )


def _x(node: Node) -> float:
    return 8 + node.layer * (WIDE + GAP_X)


def _y(node: Node) -> float:
    return 8 + node.place * (HIGH + GAP_Y)


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
