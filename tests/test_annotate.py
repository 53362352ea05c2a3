"""Annotation adds verdicts and signals once, for every part, and changes nothing."""

from __future__ import annotations

import pytest

from curate import annotate
from curate.annotate import AnnotateConfig
from curate.generate import job
from curate.generate.config import generate_config
from curate.jobs import Context


@pytest.fixture
def context(tmp_path, stub_model, sums):
    with Context(tmp_path / "wh") as made:
        config = {
            "recipe": "r1-zero",
            "model": stub_model,
            "engine": {"name": "stub", "args": {"fail": 10}},
            "problems": {"sources": [{"source": "files", "path": sums, "verifier": "math"}], "held_out": 0.2},
            "samples": 3,
            "sampling": {"max_tokens": 256},
            "max_failed": 1.0,
        }
        made.config = config
        job.run(generate_config(config), made)
        yield made


def test_every_trace_gets_a_verdict_and_signals_once(context):
    made = annotate.run(AnnotateConfig(), context)
    total = context.warehouse.sql("SELECT count(*) FROM traces").item()
    assert made.rows == total
    rows = context.warehouse.sql(
        "SELECT verdict, verified_by, well_formed, words, finish_reason, readable FROM annotated"
    )
    assert rows.height == total
    assert rows["verdict"].null_count() == rows["well_formed"].null_count() == rows["words"].null_count() == 0
    assert set(rows["verdict"]) == {"correct", "wrong", "unverifiable"}
    failed = rows.filter(rows["finish_reason"] == "error")
    assert set(failed["verdict"]) == {"unverifiable"}
    assert annotate.run(AnnotateConfig(), context).rows == 0
    assert context.warehouse.sql("SELECT count(*), count(DISTINCT trace_id) FROM verdicts").row(0) == (total, total)


def test_new_traces_are_annotated_and_the_old_ones_are_not_again(context):
    first = annotate.run(AnnotateConfig(), context).rows
    job.run(generate_config({**context.config, "samples": 5}), context)
    second = annotate.run(AnnotateConfig(), context).rows
    assert (first, second) == (99, 66)


def test_a_new_version_of_a_group_measures_only_that_group(context, monkeypatch):
    import dataclasses

    from curate import signals

    annotate.run(AnnotateConfig(), context)
    before = {p: p.stat().st_mtime_ns for p in context.warehouse.root.glob("signals/*/*/part-*.parquet")}
    raised = dataclasses.replace(signals.GROUPS["shape"], version="99")
    monkeypatch.setitem(signals.GROUPS, "shape", raised)
    assert annotate.run(AnnotateConfig(), context).rows == 99
    after = {p: p.stat().st_mtime_ns for p in context.warehouse.root.glob("signals/*/*/part-*.parquet")}
    assert before.items() <= after.items()
    assert {p.parts[-3] for p in after.keys() - before.keys()} == {"shape@99"}
    assert context.warehouse.sql("SELECT count(*) FROM annotated WHERE well_formed").item() > 0


def test_a_problem_without_a_verifier_is_unverifiable(tmp_path, stub_model, sums):
    with Context(tmp_path / "other") as context:
        config = {
            "recipe": "r1-zero",
            "model": stub_model,
            "engine": {"name": "stub"},
            "problems": {"sources": [{"source": "files", "path": sums}]},
            "split": None,
        }
        job.run(generate_config(config), context)
        annotate.run(AnnotateConfig(), context)
        rows = context.warehouse.sql("SELECT DISTINCT verdict, verdict_detail FROM annotated").rows()
        assert rows == [("unverifiable", "the problem names no verifier")]


def test_a_judge_is_asked_only_about_what_rules_did_not_pass_and_stands_beside_them(context, stub_model):
    judge = {
        "model": stub_model,
        "engine": {"name": "stub", "args": {"style": "The two agree.\nVERDICT: EQUIVALENT"}},
        "chat": False,
    }
    annotate.run(AnnotateConfig(), context)
    rules = dict(context.warehouse.sql("SELECT verdict, count(*) FROM annotated GROUP BY 1").iter_rows())
    made = annotate.run(AnnotateConfig(judge=judge), context)
    assert made.rows == rules["wrong"]  # a failed request has no answer to judge
    both = context.warehouse.sql(
        "SELECT verdict, judge_verdict, count(*) FROM annotated GROUP BY ALL ORDER BY ALL"
    ).rows()
    assert both == [
        ("correct", None, rules["correct"]),
        ("unverifiable", None, rules["unverifiable"]),
        ("wrong", "correct", rules["wrong"]),
    ]
    assert annotate.run(AnnotateConfig(judge=judge), context).rows == 0
