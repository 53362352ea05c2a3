"""Annotation adds verdicts and signals once, for every part, and changes nothing."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import polars as pl
import pytest
from typer.testing import CliRunner

from curate.annotate import job as annotate
from curate.annotate.job import AnnotateConfig
from curate.cli import app
from curate.errors import CurateError, UsageError
from curate.generate import job
from curate.generate.config import generate_config
from curate.job import Context


@pytest.fixture
def context(tmp_path, stub_model, sums):
    with Context(tmp_path / "wh") as ctx:
        config = {
            "recipe": "r1-zero",
            "model": stub_model,
            "engine": {"name": "stub", "args": {"fail": 10}},
            "problems": {
                "sources": [{"source": "files", "path": sums, "verifier": "math"}],
                "held_out": 0.2,
            },
            "samples": 3,
            "sampling": {"max_tokens": 256},
            "max_failed": 1.0,
        }
        ctx.config = config
        job.run(generate_config(config), ctx)
        yield ctx


def test_every_trace_gets_a_verdict_and_signals_once(context):
    result = annotate.run(AnnotateConfig(), context)
    total = context.warehouse.sql("SELECT count(*) FROM traces").item()
    assert result.rows == total
    rows = context.warehouse.sql(
        "SELECT verdict, verified_by, well_formed, words, finish_reason, readable FROM annotated"
    )
    assert rows.height == total
    assert (
        rows["verdict"].null_count()
        == rows["well_formed"].null_count()
        == rows["words"].null_count()
        == 0
    )
    assert set(rows["verdict"]) == {"correct", "wrong", "unverifiable"}
    failed = rows.filter(rows["finish_reason"] == "error")
    assert set(failed["verdict"]) == {"unverifiable"}
    assert annotate.run(AnnotateConfig(), context).rows == 0
    assert context.warehouse.sql("SELECT count(*), count(DISTINCT trace_id) FROM verdicts").row(
        0
    ) == (total, total)


def test_two_processes_share_the_parts(context, monkeypatch):
    """Both list the same parts before either begins; each part is measured and judged once."""
    job.run(generate_config({**context.config, "chunk": 5, "samples": 6}), context)
    total = context.warehouse.sql("SELECT count(*) FROM traces").item()
    both, share = threading.Barrier(2, timeout=60), annotate.share

    def shared(todo, *arguments):
        assert len(todo) > 20
        both.wait()
        return share(todo, *arguments)

    monkeypatch.setattr(annotate, "share", shared)
    with ThreadPoolExecutor(2) as threads, Context(context.warehouse.root) as other:
        results = list(threads.map(lambda c: annotate.run(AnnotateConfig(), c), [context, other]))
    assert sum(result.rows for result in results) == total
    assert min(result.rows for result in results) > 0
    counts = "SELECT count(*), count(DISTINCT trace_id) FROM verdicts"
    assert context.warehouse.sql(counts).row(0) == (total, total)
    assert not list(context.warehouse.root.glob("_logs/_annotate/*"))


def test_new_traces_are_annotated_and_the_old_ones_are_not_again(context):
    first = annotate.run(AnnotateConfig(), context).rows
    job.run(generate_config({**context.config, "samples": 5}), context)
    second = annotate.run(AnnotateConfig(), context).rows
    assert (first, second) == (99, 66)


def test_a_new_version_of_a_group_measures_only_that_group(context, monkeypatch):
    import dataclasses

    from curate import signals

    annotate.run(AnnotateConfig(), context)
    before = {
        p: p.stat().st_mtime_ns for p in context.warehouse.root.glob("signals/*/*/part-*.parquet")
    }
    raised = dataclasses.replace(signals.GROUPS["shape"], version="99")
    monkeypatch.setitem(signals.GROUPS, "shape", raised)
    assert annotate.run(AnnotateConfig(), context).rows == 99
    after = {
        p: p.stat().st_mtime_ns for p in context.warehouse.root.glob("signals/*/*/part-*.parquet")
    }
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
        rows = context.warehouse.sql(
            "SELECT DISTINCT verdict, verdict_detail FROM annotated"
        ).rows()
        assert rows == [("unverifiable", "the problem names no verifier")]


def test_a_judge_sees_only_what_rules_did_not_pass_and_its_verdicts_are_stored_separately(
    context, stub_model
):
    judge = {
        "model": stub_model,
        "engine": {"name": "stub", "args": {"style": "The two agree.\nVERDICT: EQUIVALENT"}},
        "chat": False,
    }
    annotate.run(AnnotateConfig(), context)
    rules = dict(
        context.warehouse.sql("SELECT verdict, count(*) FROM annotated GROUP BY 1").iter_rows()
    )
    result = annotate.run(AnnotateConfig(judge=judge), context)
    assert result.rows == rules["wrong"]  # a failed request has no answer to judge
    both = context.warehouse.sql(
        "SELECT verdict, judge_verdict, count(*) FROM annotated GROUP BY ALL ORDER BY ALL"
    ).rows()
    assert both == [
        ("correct", None, rules["correct"]),
        ("unverifiable", None, rules["unverifiable"]),
        ("wrong", "correct", rules["wrong"]),
    ]
    assert annotate.run(AnnotateConfig(judge=judge), context).rows == 0


def test_a_newer_verifier_runs_over_old_traces_and_both_are_compared_in_sql(context, monkeypatch):
    from curate.verify.math.verifier import MathVerifier

    annotate.run(AnnotateConfig(), context)
    old = MathVerifier.version
    before = dict(
        context.warehouse.sql("SELECT verdict, count(*) FROM annotated GROUP BY 1").iter_rows()
    )
    strict = str(int(old) + 1)
    monkeypatch.setattr(MathVerifier, "version", strict)
    monkeypatch.setattr(MathVerifier, "quick", lambda *_: annotate_wrong())
    assert annotate.run(AnnotateConfig(), context).rows == sum(before.values())
    compared = context.warehouse.sql(
        "SELECT old.verdict AS before, new.verdict AS after, count(*) AS traces FROM verdicts old "
        "JOIN verdicts new USING (trace_id, attempt) "
        "WHERE old.verifier = 'math' AND new.verifier = 'math' AND old.verifier_version = ? "
        "AND new.verifier_version = ? AND old.verdict <> new.verdict GROUP BY ALL",
        [old, strict],
    )
    assert compared.rows() == [("correct", "wrong", before["correct"])]
    # both are in the table; the newest one is the verdict
    assert (
        context.warehouse.sql("SELECT count(*) FROM annotated WHERE verdict = 'correct'").item()
        == 0
    )
    assert annotate.run(AnnotateConfig(), context).rows == 0


def test_the_command_judges_the_traces_of_an_older_version_again(context, monkeypatch):
    from curate.verify.base import CORRECT
    from curate.verify.math.verifier import MathVerifier

    # An older version that accepted every answer. Its verdicts are sealed parts on the disk.
    with monkeypatch.context() as older:
        older.setattr(MathVerifier, "version", "0")
        older.setattr(MathVerifier, "quick", lambda *_: CORRECT)
        annotate.run(AnnotateConfig(), context)
    folder = Path(context.warehouse.root)
    parts = {path: path.read_bytes() for path in (folder / "verdicts").rglob("*.parquet")}
    assert parts

    command = ["annotate", "--warehouse", str(folder)]
    assert CliRunner().invoke(app, command, catch_exceptions=False).exit_code == 0
    assert {path: path.read_bytes() for path in parts} == parts
    rows = context.warehouse.sql(
        "SELECT verifier_version AS version, count(*) AS rows, count(DISTINCT trace_id) AS traces, "
        "count(*) FILTER (verdict = 'wrong') AS wrong FROM verdicts GROUP BY 1 ORDER BY 1"
    )
    traces = context.warehouse.sql("SELECT count(*) FROM traces").item()
    assert rows["version"].to_list() == ["0", MathVerifier.version]
    assert rows["rows"].to_list() == rows["traces"].to_list() == [traces, traces]
    assert rows["wrong"][1] > rows["wrong"][0]
    # The old and the new verdict of a trace are stored; the new one counts.
    changed = context.warehouse.sql(
        "SELECT old.verdict AS before, new.verdict AS after, annotated.verdict AS now "
        "FROM verdicts old JOIN verdicts new USING (trace_id, attempt) "
        "JOIN annotated USING (trace_id, attempt) WHERE old.verifier_version = '0' "
        "AND new.verifier_version <> '0' AND old.verdict <> new.verdict"
    )
    assert set(changed.rows()) == {("correct", "wrong", "wrong")}
    assert len(changed) == rows["wrong"][1] - rows["wrong"][0]
    assert CliRunner().invoke(app, command, catch_exceptions=False).exit_code == 0
    again = context.warehouse.sql("SELECT count(*) FROM verdicts").item()
    assert again == 2 * traces


def annotate_wrong():
    from curate.verify.base import Judgement

    return Judgement("wrong", "stricter")


def test_another_verifier_runs_alongside_the_problems_own(context):
    annotate.run(AnnotateConfig(), context)
    before = context.warehouse.sql("SELECT trace_id, verdict FROM annotated ORDER BY 1")
    result = annotate.run(AnnotateConfig(verifiers=["exact", "math"]), context)
    assert result.rows == len(before)
    rows = context.warehouse.sql(
        "SELECT verifier, count(*), count(DISTINCT trace_id) FROM verdicts GROUP BY 1 ORDER BY 1"
    )
    assert rows.rows() == [("exact", 99, 99), ("math", 99, 99)]
    assert context.warehouse.sql("SELECT trace_id, verdict FROM annotated ORDER BY 1").equals(
        before
    )
    assert annotate.run(AnnotateConfig(verifiers=["exact", "math"]), context).rows == 0
    with pytest.raises(UsageError, match="unknown verifier"):
        annotate.run(AnnotateConfig(verifiers=["maths"]), context)


def test_consensus_is_a_marked_reference_for_problems_without_one(tmp_path, stub_model, sums):
    path = tmp_path / "open.jsonl"
    questions = [json.loads(line) for line in Path(sums).read_text().splitlines()][:6]
    path.write_text(
        "".join(
            json.dumps({**q, "reference": None if i else q["reference"]}) + "\n"
            for i, q in enumerate(questions)
        )
    )
    with Context(tmp_path / "open") as context:
        config = {
            "recipe": "r1-zero",
            "model": stub_model,
            "engine": {"name": "stub"},
            "problems": {"sources": [{"source": "files", "path": str(path), "verifier": "math"}]},
            "split": None,
            "samples": 6,
            "sampling": {"max_tokens": 256},
        }
        job.run(generate_config(config), context)
        annotate.run(AnnotateConfig(consensus={"share": 0.2, "samples": 4}), context)
        rows = context.warehouse.sql(
            "SELECT reference, verdict, consensus_verdict FROM annotated "
            "WHERE finish_reason = 'stop'"
        )
        assert set(rows.filter(pl.col("reference").is_not_null())["consensus_verdict"]) == {None}
        without = rows.filter(pl.col("reference").is_null())
        assert set(without["verdict"]) == {"unverifiable"}
        assert "correct" in set(without["consensus_verdict"])
        stored = context.warehouse.sql(
            "SELECT DISTINCT kind, verifier FROM verdicts WHERE kind <> 'rule'"
        ).rows()
        assert stored == [("consensus", "consensus-math")]
        details = context.warehouse.sql(
            "SELECT DISTINCT detail FROM verdicts WHERE kind = 'consensus' AND verdict = 'correct'"
        )
        assert all(detail.startswith("pseudo-reference ") for detail in details["detail"])
        assert (
            annotate.run(AnnotateConfig(consensus={"share": 0.2, "samples": 4}), context).rows == 0
        )
        # more samples make a newer consensus; the older one stays in the table
        job.run(generate_config({**config, "samples": 8}), context)
        assert (
            annotate.run(AnnotateConfig(consensus={"share": 0.2, "samples": 4}), context).rows
            == 12 + 40
        )
        versions = context.warehouse.sql(
            "SELECT DISTINCT verifier_version FROM verdicts WHERE kind = 'consensus'"
        )
        assert {v.partition("-")[2] for v in versions["verifier_version"]} == {
            "000000030",
            "000000040",
        }
        newest = context.warehouse.sql(
            "SELECT count(*) FROM annotated a JOIN verdicts v USING (trace_id, attempt) "
            "WHERE v.kind = 'consensus' "
            "AND v.verifier_version LIKE '%-000000040' AND v.verdict = a.consensus_verdict"
        )
        assert newest.item() == 40


def test_a_judge_of_reasoning_does_not_judge_the_answer(context, stub_model):
    def judged(rubric, word):
        engine = {"name": "stub", "args": {"style": f"Well.\nVERDICT: {word}"}}
        return AnnotateConfig(
            judge={"model": stub_model, "engine": engine, "chat": False, "rubric": rubric}
        )

    annotate.run(AnnotateConfig(), context)
    annotate.run(judged("coherence", "COHERENT"), context)
    rows = context.warehouse.sql(
        "SELECT DISTINCT verdict, judge_verdict, coherence_verdict FROM annotated "
        "WHERE verdict = 'wrong'"
    )
    assert ("wrong", None, "correct") in rows.rows()
    assert set(rows["judge_verdict"]) == {None}
    annotate.run(judged("helpfulness", "HELPFUL"), context)
    annotate.run(judged("equivalence", "DIFFERENT"), context)
    rows = context.warehouse.sql(
        "SELECT DISTINCT judge_verdict FROM annotated WHERE verdict = 'wrong'"
    )
    assert rows.rows() == [("wrong",)]  # equivalence takes precedence over helpfulness
    kinds = context.warehouse.sql(
        "SELECT DISTINCT split_part(verifier, '/', 1) FROM verdicts WHERE kind = 'judge' ORDER BY 1"
    )
    assert kinds.rows() == [("judge-coherence",), ("judge-equivalence",), ("judge-helpfulness",)]


def test_a_judge_that_never_replies_is_an_error_and_is_retried(context, stub_model):
    annotate.run(AnnotateConfig(), context)
    engine = {"name": "stub", "args": {"fail": 1}}
    judge = {"model": stub_model, "engine": engine, "chat": False}
    with pytest.raises(CurateError, match="replied to none"):
        annotate.run(AnnotateConfig(judge=judge), context)
    engine = {"name": "stub", "args": {"style": "VERDICT: DIFFERENT"}}
    assert annotate.run(AnnotateConfig(judge={**judge, "engine": engine}), context).rows > 0


def test_the_summary_counts_what_was_judged_and_adds_up(context):
    summary = annotate.run(AnnotateConfig(), context).summary
    counts = dict(
        context.warehouse.sql("SELECT verdict, count(*) FROM annotated GROUP BY 1").iter_rows()
    )
    total = sum(counts.values())
    expected = ", ".join(f"{counts[name]} {name}" for name in ("correct", "wrong", "unverifiable"))
    assert summary.startswith(f"{total} traces annotated: {expected} (in ")
    assert annotate.run(AnnotateConfig(), context).summary == "nothing new to annotate"


def test_a_judge_is_counted_separately(context, stub_model):
    judge = {"model": stub_model, "engine": {"name": "stub", "args": {"style": "correct"}}}
    summary = annotate.run(AnnotateConfig(judge=judge), context).summary
    annotated, judging = summary.split("; ")
    total, judged = (
        context.warehouse.sql(f"SELECT count(*) FROM verdicts WHERE kind {kind}").item()
        for kind in ("= 'rule'", "= 'judge'")
    )
    assert annotated.startswith(f"{total} traces annotated: ")
    assert judging.startswith(f"the judge was asked about {judged} traces: ")
    numbers = [int(word) for word in judging.partition(": ")[2].split() if word.isdigit()]
    assert sum(numbers) == judged


def test_problems_without_a_verifier_are_counted_separately(tmp_path, stub_model, sums):
    with Context(tmp_path / "open") as context:
        source = {"source": "files", "path": sums}
        config = {
            "recipe": "r1-zero", "model": stub_model, "engine": {"name": "stub"}, "samples": 1,
            "problems": {"sources": [source], "held_out": 0}, "sampling": {"max_tokens": 256},
        }  # fmt: skip
        job.run(generate_config(config), context)
        summary = annotate.run(AnnotateConfig(), context).summary
    assert "40 unverifiable (40 of problems without a verifier)" in summary
