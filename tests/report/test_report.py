"""The page over a warehouse: whole, self-contained, true to the tables, and inert."""

from __future__ import annotations

import json
import re
from typing import Any

import polars as pl
import pytest

from curate.errors import UsageError
from curate.job import Context
from curate.report import data, graph, plots
from curate.report.job import ReportConfig, run
from curate.report.traces import _model_name
from curate.warehouse import Warehouse
from curate.warehouse.sql import connect
from tests.report.conftest import HOSTILE
from tests.report.test_html import Reader


def page(wh: Warehouse, **config) -> str:
    with Context(wh) as context:
        return open(run(ReportConfig(**config), context).facts["report"], encoding="utf-8").read()


def rows_of(html: str) -> dict[str, Any]:
    """The JSON that the page's script reads."""
    found = re.search(r'<template id="rows">(.*?)</template>', html)
    assert found is not None
    return json.loads(found[1])


def test_the_page_loads_nothing_and_has_one_script(hostile):
    html = page(hostile, where={"all": "TRUE", '</option><script>"': "verdict = 'correct'"})
    seen = Reader(html)
    names = [name for name, _ in seen.elements]
    assert names.count("script") == 1
    assert names.count("style") == 1
    assert not {"img", "iframe", "object", "embed", "link", "base", "form", "foreignobject"} & set(
        names
    )
    for _, attributes in seen.elements:
        assert not [
            a
            for a in attributes
            if a.startswith("on") or a in ("src", "style", "srcdoc", "xlink:href")
        ]
        assert attributes.get("href", "#x").startswith("#")
    policy = next(a["content"] for n, a in seen.elements if n == "meta" and a.get("http-equiv"))
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy


def test_every_hostile_trace_can_be_read(hostile):
    text = Reader(page(hostile)).text
    assert text.count("window.pwned = 1</script>") >= 2
    assert "gnp.exe" in text
    assert "\u202e" not in text


def test_a_dropped_trace_names_its_rule_and_sets_are_counted(hostile):
    html = page(hostile, traces=10)
    assert "dropped by <b>cold</b>, rule <b>" in html
    with connect(hostile.root) as con:
        corpus = data.corpora(hostile, con)[0]
    kept = corpus.decisions["dropped_by"].null_count()
    sets = rows_of(html)["sets"]
    assert ["kept by cold", min(kept, 10), kept, None] in sets
    assert ["all traces", 8, 2 * len(HOSTILE), "TRUE"] in sets  # at most four of each problem
    assert not corpus.changed


def test_counts_on_the_edges_are_those_of_the_tables(hostile):
    nodes = graph.build(hostile)
    assert {n.kind for n in nodes.nodes.values()} == {"problems", "traces", "corpora"}
    rows = {(a.split("/")[0], b.split("/")[0]): n for (a, b), n in nodes.edges.items()}
    corpus = hostile.latest("corpora", "cold").manifest["rows"]
    assert rows == {("problems", "traces"): 2 * len(HOSTILE), ("traces", "corpora"): corpus}
    assert [n.layer for n in nodes.nodes.values()] == [0, 1, 2]


def test_curves_are_means_over_the_rollouts_of_a_step(hostile):
    ids = hostile.sql(
        "SELECT trace_id, verdict, step_count, mixed_language FROM annotated ORDER BY trace_id"
    )
    rows = [
        {
            "trace_id": t,
            "run_id": "run",
            "policy_step": i % 2,
            "problem_id": "p",
            "reward": float(i),
        }
        for i, t in enumerate(ids["trace_id"])
    ]
    hostile.write("rollouts", "grpo", rows, key=3)
    with connect(hostile.root) as con:
        curves = data.curves(con)
    even = ids.gather_every(2)
    assert curves["policy_step"].to_list() == [0, 1]
    assert curves["rollouts"].to_list() == [len(HOSTILE)] * 2
    assert curves["accuracy"][0] == pytest.approx((even["verdict"] == "correct").mean())
    assert curves["steps"][0] == pytest.approx(even["step_count"].mean())
    assert curves["mixed languages"][0] == pytest.approx(even["mixed_language"].mean())
    assert curves["reward"][1] == pytest.approx(sum(range(1, 2 * len(HOSTILE), 2)) / len(HOSTILE))


def test_distributions_count_every_trace_once(hostile):
    with connect(hostile.root) as con:
        corpus = data.corpora(hostile, con)[0]
        distributions = data.distributions(con, corpus)
    kept = corpus.decisions["dropped_by"].null_count()
    lengths = {name: (sum(k), sum(d)) for name, _, k, d in distributions}
    assert lengths["completion_tokens"] == (kept, corpus.decisions.height - kept)


def test_an_empty_warehouse_gives_a_page_that_says_so(tmp_path):
    html = page(Warehouse(tmp_path / "wh").create())
    assert "No model was evaluated yet." in html
    assert "No traces" in html


def test_wrong_options_are_reported(hostile, tmp_path):
    with pytest.raises(UsageError, match="no warehouse at"):
        page(Warehouse(tmp_path / "nothing"))
    with pytest.raises(UsageError, match="nonsense"):
        page(hostile, where={"x": "nonsense = 1"})
    with pytest.raises(UsageError):
        page(hostile, where={"x": "1=1); COPY traces TO 'x'; --"})
    with pytest.raises(UsageError, match="is a folder"):
        page(hostile, out=str(tmp_path))
    with pytest.raises(UsageError, match="no corpora called 'other'"):
        page(hostile, corpora=["other"])


def test_what_a_rule_compares_with_is_the_value_of_the_table(hostile):
    rows = rows_of(page(hostile))
    for name, sql, values in rows["facets"]:
        for value, _ in values:
            assert hostile.sql(f"SELECT count(*) AS n FROM annotated WHERE {sql} = ?", [value])[
                "n"
            ][0], (name, value)
    names = [name for name, _, _ in rows["numbers"]]
    columns = ", ".join(f"({sql})::DOUBLE AS {name}" for name, _, sql in rows["numbers"])
    stored = hostile.sql(f"SELECT trace_id, {columns} FROM annotated")
    stored = {row[0]: list(row[1:]) for row in stored.iter_rows()}
    assert {"quality", "completion_tokens", "well_formed"} <= set(names)
    assert [numbers for *_, numbers in rows["rows"]] == [stored[row[0]] for row in rows["rows"]]


def test_a_model_that_training_did_not_change_closes_no_cycle():
    drawn = graph.Graph()
    for name, kind in (("base", "models"), ("rollouts", "traces"), ("corpus", "corpora")):
        drawn.nodes[name] = graph.Node(name, kind, name, "")
    drawn.edges = dict.fromkeys(
        [("base", "rollouts"), ("rollouts", "base"), ("rollouts", "corpus"), ("base", "corpus")]
    )
    graph._place(drawn)
    assert [node.layer for node in drawn.nodes.values()] == [0, 1, 2]
    assert ("rollouts", "base") not in drawn.edges


def test_an_edge_that_passes_a_layer_bends_between_its_boxes_and_the_drawing_fits():
    drawn = graph.Graph()
    for name in "abcdefgh":
        drawn.nodes[name] = graph.Node(name, "traces", name, "1 trace")
    drawn.edges = dict.fromkeys(zip("abcdefg", "bcdefgh", strict=True), 1) | {("a", "c"): 2}
    graph._place(drawn)
    [bend] = drawn.bends["a", "c"]
    box = drawn.nodes["b"]
    assert bend.layer == box.layer == 1
    assert bend.y + bend.high <= box.y or box.y + box.high <= bend.y
    width = float(re.findall(r'viewBox="0 0 (\d+)', graph.draw(drawn))[0])
    assert width <= 1.15 * graph.PAGE  # eight layers: scaled down a little, still readable


def test_runs_of_one_step_are_a_table(hostile):
    ids = hostile.sql("SELECT trace_id FROM traces")["trace_id"]
    rows = [
        {"trace_id": t, "run_id": "run", "policy_step": 0, "problem_id": "p", "reward": 0.5}
        for t in ids
    ]
    hostile.write("rollouts", "grpo", rows, key=3)
    html = page(hostile)
    assert "means at policy step 0" in html
    assert "<figcaption>reward</figcaption>" not in html


def test_ticks_are_round_and_cover_the_values():
    assert plots.ticks(0, 1) == [0, 0.25, 0.5, 0.75, 1]
    for low, high in ((0, 0), (-3, 7), (0.001, 0.0011), (5, 5), (float("nan"), 1)):
        marks = plots.ticks(low, high)
        assert marks == sorted(marks)
        if low == low:
            assert marks[0] <= low + 1e-9
            assert marks[-1] >= high - 1e-9


def test_a_gap_in_a_curve_stays_a_gap():
    svg = plots.lines("x", [plots.Series("a", [(0, 1.0), (1, None), (2, 3.0)])], "step")
    assert len(re.findall("<polyline", svg)) == 2
    assert "Not measured" in plots.lines("x", [plots.Series("a", [(0, None)])], "step")


def test_problems_are_drawn_so_that_two_traces_of_one_can_be_compared(hostile):
    with connect(hostile.root) as con:
        frame, total = data.picked(con, "TRUE", most=6, each=3)
    assert total == 2 * len(HOSTILE)
    assert frame.group_by("problem_id").len()["len"].to_list() == [3, 3]
    assert isinstance(frame, pl.DataFrame)


def test_a_trace_tells_its_model_by_name_where_the_warehouse_knows_it(hostile):
    assert "mine (m)" not in page(hostile)
    hostile.write("models", "base", [{"model_hash": "m", "name": "<b>mine", "kind": "base"}], key=9)
    html = page(hostile)
    assert "by &lt;b&gt;mine (m)" in html
    assert "<b>mine" not in html


@pytest.mark.parametrize(
    ("model", "step", "shown"),
    [
        ("/home/someone/checkpoints/9a42/model", 12, "tune at step 12"),
        ("/home/someone/checkpoints/9a42/model", None, "9a42"),
        ("/home/someone/models/small", None, "small"),
        ("owner/name", None, "owner/name"),
        ("owner/name", 3, "tune at step 3"),
        (None, None, None),
    ],
)
def test_models_are_not_named_after_paths_of_a_machine(model, step, shown):
    row = {"model": model, "model_hash": "x", "policy_step": step, "dataset": "tune"}
    assert _model_name(row, {"y": "other"}) == shown
