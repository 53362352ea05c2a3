"""The pipeline as a drawing: the origin of each version, from the manifests, with rows on edges."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from pathlib import PurePosixPath
from typing import Any

from curate.report.html import Html, number, tag
from curate.warehouse import Warehouse

SHOWN = ("problems", "traces", "corpora", "evaluations")
HIGH, GAP_Y = 46, 22
PAGE = 1200  # width of the page's text; a drawing that is wider is scaled down
WIDEST, NARROWEST, GAP_X = 168, 128, 44
BEND = 14  # height of the place that an edge takes where it passes a layer


@dataclass
class Node:
    """A box: its kind, which gives its colour, and its number of rows."""

    name: str
    kind: str
    title: str
    detail: str
    layer: int = 0
    y: float = 0.0  # of its upper side

    @property
    def high(self) -> float:
        return BEND if self.kind == "bend" else HIGH


@dataclass
class Graph:
    """Boxes and the rows that are passed on between them.

    `bends` holds, for an edge that passes layers, the points where it passes between their boxes.
    """

    nodes: dict[str, Node] = field(default_factory=dict)
    edges: dict[tuple[str, str], int | None] = field(default_factory=dict)
    bends: dict[tuple[str, str], list[Node]] = field(default_factory=dict)


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
    """Give each box a layer and a height. Sugiyama's method: an edge that passes layers is a chain
    of bends, and each layer is ordered by the middle of its neighbours, in six sweeps.
    """
    _layers(graph)
    layers: dict[int, list[Node]] = {}
    for node in graph.nodes.values():
        layers.setdefault(node.layer, []).append(node)
    links: list[tuple[Node, Node]] = []
    for low, high in graph.edges:
        first, last = graph.nodes[low], graph.nodes[high]
        bends = [
            Node(f"{low}>{high}>{i}", "bend", "", "", i) for i in range(first.layer + 1, last.layer)
        ]
        for bend in bends:
            layers[bend.layer].append(bend)
        graph.bends[low, high] = bends
        links += pairwise([first, *bends, last])
    for sweep in range(6):
        forward = sweep % 2 == 0
        near: dict[str, list[Node]] = {}
        for one, other in links:
            node, neighbour = (other, one) if forward else (one, other)
            near.setdefault(node.name, []).append(neighbour)
        for layer in sorted(layers, reverse=not forward):
            layers[layer].sort(key=lambda n: (_middle(n, near.get(n.name, [])), n.name))
            _stack(layers[layer])
    _center(list(layers.values()))


def _layers(graph: Graph) -> None:
    """The layer of a box is the length of the longest way to it from a box without an origin."""
    into: dict[str, set[str]] = {name: set() for name in graph.nodes}
    for low, high in graph.edges:
        into[high].add(low)
    for name in _sorted(graph, into):
        graph.nodes[name].layer = max((graph.nodes[p].layer + 1 for p in into[name]), default=0)


def _sorted(graph: Graph, into: dict[str, set[str]]) -> list[str]:
    """Names in the order of their origins.

    Training that changes no weight ends in the model that it started from. The edge that closes
    such a cycle is dropped.
    """
    while True:
        try:
            return list(TopologicalSorter(into).static_order())
        except CycleError as error:
            cycle = list(pairwise(error.args[1]))
            trained = [edge for edge in cycle if graph.nodes[edge[1]].kind == "models"]
            low, high = (trained or cycle)[0]
            into[high].remove(low)
            del graph.edges[low, high]


def _middle(node: Node, near: list[Node]) -> float:
    """Mean height of the middles of its neighbours, or of itself without any."""
    places = [n.y + n.high / 2 for n in near or [node]]
    return sum(places) / len(places)


def _stack(nodes: list[Node]) -> None:
    """Heights of the boxes of a layer, in their order."""
    y = 0.0
    for node in nodes:
        node.y = y
        y += node.high + GAP_Y


def _center(layers: list[list[Node]]) -> None:
    """Move each layer to the middle of the drawing."""
    heights = [nodes[-1].y + nodes[-1].high for nodes in layers if nodes]
    for nodes, height in zip([n for n in layers if n], heights, strict=True):
        for node in nodes:
            node.y += 8 + (max(heights) - height) / 2


def draw(graph: Graph) -> Html:
    """The graph as SVG, and as a list for narrow screens."""
    if not graph.nodes:
        return tag("p", "Nothing was made yet: the warehouse is empty.")
    count = max(n.layer for n in graph.nodes.values()) + 1
    wide = min(WIDEST, max(NARROWEST, (PAGE - 16 + GAP_X) / count - GAP_X))
    room = min(96, (PAGE - 16 - count * wide) / (count - 1)) if count > 1 else GAP_X
    columns = Columns(wide, max(GAP_X, room))
    width = columns.left(count - 1) + wide + 8
    height = max(n.y + n.high for n in graph.nodes.values()) + 10
    edges = [
        _edge(
            [graph.nodes[low], *graph.bends.get((low, high), []), graph.nodes[high]], rows, columns
        )
        for (low, high), rows in graph.edges.items()
    ]
    description = (
        f"{len(graph.nodes)} boxes: problems, traces, corpora, models and evaluations, "
        "from left to right"
    )
    drawing = tag(
        "svg",
        [line for line, _ in edges],
        [_box(node, columns) for node in graph.nodes.values()],
        [label for _, label in edges if label],
        viewBox=f"0 0 {width:.0f} {height:.0f}",
        width=f"{width:.0f}",
        height=f"{height:.0f}",
        role="img",
        aria_label=description,
        class_="graph",
    )
    return tag("div", drawing, _listed(graph))


@dataclass(frozen=True)
class Columns:
    """Widths of the boxes and of the room between two layers."""

    wide: float
    room: float

    def left(self, layer: int) -> float:
        return 8 + layer * (self.wide + self.room)


def _edge(way: list[Node], rows: int | None, columns: Columns) -> tuple[Html, Html | None]:
    """The curve from one box to another, past its bends, and the number of rows next to it."""
    low, high = way[0], way[-1]
    x, y = columns.left(low.layer) + columns.wide, low.y + HIGH / 2
    start, path = y, f"M{x:.0f} {y:.0f}"
    for node in way[1:]:
        x2, y2 = columns.left(node.layer), node.y + node.high / 2
        bend = (x2 - x) / 2
        path += f"C{x + bend:.0f} {y:.0f} {x2 - bend:.0f} {y2:.0f} {x2:.0f} {y2:.0f}"
        start, x, y = y, x2, y2
        if node is not high:
            x += columns.wide
            path += f"H{x:.0f}"
    stroke = 1 + min(4.0, math.log10(rows + 1)) if rows else 1
    title = f"{low.title} → {high.title}" + (f": {number(rows)} rows" if rows is not None else "")
    line = tag("path", tag("title", title), d=path, class_="edge", stroke_width=f"{stroke:.1f}")
    if rows is None:
        return line, None
    # Near its target box, where the edges are apart.
    place = {"x": f"{x - 6:.0f}", "y": f"{y - 4 if start >= y else y + 11:.0f}"}
    return line, tag("text", number(rows), **place, text_anchor="end", class_="count")


def _box(node: Node, columns: Columns) -> Html:
    x, y = columns.left(node.layer), node.y
    text_x = f"{x + 9:.0f}"
    return tag(
        "g",
        tag("title", f"{node.kind}: {node.title}, {node.detail} ({node.name})"),
        tag(
            "rect",
            x=f"{x:.0f}",
            y=f"{y:.0f}",
            width=f"{columns.wide:.0f}",
            height=HIGH,
            rx=4,
            class_=f"box {node.kind}",
        ),
        tag(
            "text",
            _cut(node.title, int(columns.wide / 8)),
            x=text_x,
            y=f"{y + 19:.0f}",
            class_="name",
        ),
        tag(
            "text",
            _cut(node.detail, int(columns.wide / 6.5)),
            x=text_x,
            y=f"{y + 36:.0f}",
            class_="detail",
        ),
    )


def _listed(graph: Graph) -> Html:
    """The same as text, from the origin on: each box with what it was made from."""
    lines = []
    for node in sorted(graph.nodes.values(), key=lambda n: (n.layer, n.y)):
        origins = [
            graph.nodes[low].title + (f" ({number(rows)})" if rows is not None else "")
            for (low, high), rows in graph.edges.items()
            if high == node.name
        ]
        made = f"from {', '.join(origins)}" if origins else node.kind
        line = [tag("b", node.title), f" {node.detail}", tag("span", made, class_="note")]
        lines.append(tag("li", line))
    return tag("ol", lines, class_="origin")


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
