"""The filter job on a warehouse: it reads the chosen traces, and nothing else changes its
result.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import polars as pl
import pytest

from curate.errors import UsageError
from curate.filter import apply_rules, load_rules
from curate.filter.export import export_corpus
from curate.filter.job import FilterConfig, run, unread
from curate.job import Context
from curate.pipeline.references import versions
from curate.pipeline.stages import Done
from curate.signals import GROUPS, annotate_frame
from curate.warehouse import Warehouse
from curate.warehouse.slices import Slices
from curate.warehouse.sql import connect


def traces(name: str, problems: list[str]) -> pl.DataFrame:
    rows = [
        {
            "trace_id": f"{name}-{problem}-{sample}",
            "attempt": 0,
            "problem_id": problem,
            "sample_index": sample,
            "recipe": "rejection",
            "form": "r1-zero",
            "template": "r1-zero@0",
            "model": "m",
            "finish_reason": "stop",
            "completion": (
                f"<think>I add the {sample + 2} numbers of {problem}.</think> <answer>7</answer>"
            ),
        }
        for problem in problems
        for sample in range(3)
    ]
    return pl.DataFrame(rows)


@pytest.fixture
def warehouse(tmp_path: Path) -> Warehouse:
    """A family of two versions (problems p0 and p1, then p2), and another family; sample 1 is
    wrong.
    """
    wh = Warehouse(tmp_path / "wh")
    problem_rows = [
        {"problem_id": f"p{i}", "source": "made", "question": "Add them.", "verifier": "math"}
        for i in range(3)
    ]
    wh.write("problems", "made", problem_rows, key=1)
    for family, version, problems in (
        ("sums", "v1", ["p0", "p1"]),
        ("sums", "v2", ["p2"]),
        ("other", "v1", ["p0"]),
    ):
        frame = traces(f"{family}{version}", problems)
        target = wh.version("traces", family, version)
        target.publish("0", frame)
        target.seal()
        measured = annotate_frame(frame.with_columns(question=pl.lit("Add them.")))
        for name, group in GROUPS.items():
            stored = wh.version("signals", f"{name}@{group.version}", f"{family}.{version}")
            stored.publish("0", measured.select("trace_id", "attempt", *group.columns))
        right = (
            pl.when(pl.col("sample_index") == 1).then(pl.lit("wrong")).otherwise(pl.lit("correct"))
        )
        verdicts = frame.select(
            "trace_id",
            "attempt",
            verifier=pl.lit("math"),
            verifier_version=pl.lit("1"),
            kind=pl.lit("rule"),
            verdict=right,
        )
        wh.version("verdicts", "math@1", f"{family}.{version}").publish("0", verdicts)
        # another verifier of a higher version, run alongside the problems' own, has a verdict too:
        # it does not count
        beside = verdicts.with_columns(
            verifier=pl.lit("exact"), verifier_version=pl.lit("9"), verdict=pl.lit("wrong")
        )
        wh.version("verdicts", "beside.exact@9", f"{family}.{version}").publish("0", beside)
    return wh


@pytest.mark.parametrize(
    ("chosen", "rows"),
    [
        ([], 12),
        (["sums"], 9),
        (["sums/v1"], 6),
        (["traces/sums/v2"], 3),
        (["sums/v1", "other"], 9),
        (["sums/v1", "sums"], 9),
    ],
)
def test_traces_are_chosen_by_family_or_by_version(
    warehouse: Warehouse, chosen: list[str], rows: int
) -> None:
    with Context(warehouse) as context:
        done = run(FilterConfig(rules="unfiltered", corpus="c", traces=chosen), context)
    assert done.rows == rows
    parents = warehouse.latest("corpora", "c").manifest["parents"]
    if chosen == ["sums/v1"]:
        assert parents == ["traces/sums/v1"]


@pytest.mark.parametrize("rules", ["cold-start", "unfiltered"])
def test_a_job_in_slices_makes_the_same_corpus(
    warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch, rules: str
) -> None:
    results = {}
    for rows in (100, 3):
        monkeypatch.setattr("curate.filter.job.Slices", partial(Slices, rows=rows))
        with Context(warehouse) as context:
            done = run(FilterConfig(rules=rules, corpus=f"of-{rows}"), context)
        version = warehouse.latest("corpora", f"of-{rows}")
        results[rows] = (
            done.rows,
            version.manifest["parents"],
            version.read().drop("corpus").collect(),
        )
        assert not list((warehouse.root / "_staging").glob("*"))
    assert results[100][:2] == results[3][:2]
    assert results[100][2].equals(results[3][2])
    assert results[3][1] == ["traces/other/v1", "traces/sums/v1", "traces/sums/v2"]


@pytest.mark.parametrize("unknown", ["sum", "sums/v3", "traces/none/v1"])
def test_unknown_traces_are_an_error(warehouse: Warehouse, unknown: str) -> None:
    with Context(warehouse) as context, pytest.raises(UsageError, match="there are other, sums"):
        run(FilterConfig(rules="unfiltered", traces=[unknown]), context)


def test_a_pipeline_filters_the_versions_that_its_stages_produced() -> None:
    done = {
        "harvest": Done(
            "k", "sums", {}, ["problems/made/1", "traces/sums/v1", "traces/sums/v2"], "", 1.0
        ),
        "empty": Done("k", "others", {}, [], "", 1.0),
    }
    assert versions(["@harvest"], done) == ["traces/sums/v1", "traces/sums/v2"]
    assert versions(["@empty", "plain"], done) == ["others", "plain"]


@pytest.mark.parametrize("rules", ["cold-start", "rejection", "unfiltered"])
def test_unread_groups_change_nothing(warehouse: Warehouse, rules: str) -> None:
    chosen = load_rules(rules)
    with connect(warehouse.root) as con:
        whole = apply_rules(con, chosen)
    skipped = unread(chosen, None)
    assert "behaviour" in skipped
    with connect(warehouse.root, skipped) as con:
        narrow = apply_rules(con, chosen)
    assert narrow.decisions.sort("trace_id").equals(whole.decisions.sort("trace_id"))
    assert narrow.kept.sort("trace_id").equals(whole.kept.sort("trace_id"))
    assert whole.kept.height == (
        12 if rules == "unfiltered" else whole.decisions["dropped_by"].null_count()
    )


def test_a_rule_that_reads_a_group_or_a_verdict_gets_it(tmp_path: Path) -> None:
    rules = tmp_path / "mine.yaml"
    rules.write_text(
        "name: mine\nrules:\n- {name: a, keep: reflection_count >= 1, reason: x}\nselect:\n"
        "  per_problem: {best: {k: 1, by: 1 - loop_share}}\n"
    )
    # quality, which is carried, reads shape, repetition and language
    assert unread(load_rules(rules), None) == {"verdicts"}
    assert unread(load_rules(rules), "judge_verdict = 'correct'") == set()


def test_the_verifier_of_the_problem_decides(warehouse: Warehouse) -> None:
    verdicts = warehouse.sql(
        "SELECT verdict, verified_by FROM annotated WHERE dataset = 'other' ORDER BY sample_index"
    )
    assert verdicts["verdict"].to_list() == ["correct", "wrong", "correct"]
    assert verdicts["verified_by"].unique().to_list() == ["math"]


def test_the_card_of_an_export_describes_the_corpus_and_its_origin(
    warehouse: Warehouse, tmp_path: Path
) -> None:
    problems = warehouse.versions("problems")[0]
    late = warehouse.version("traces", "late", "v1", parents=[problems.ref])
    late.publish("0", traces("late", ["p0"]))
    late.seal()
    with Context(warehouse) as context:
        run(FilterConfig(rules="unfiltered", corpus="c", traces=["late"]), context)
    export_corpus(warehouse, "c", tmp_path / "c.jsonl")
    card = (tmp_path / "c.md").read_text()
    assert "Every trace that has a text, right or wrong." in card
    assert card.index("made from `traces/late/v1`") < card.index(f"made from `{problems.ref}`")
