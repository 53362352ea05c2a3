"""Verdicts decide on samples: solved problems stop, hard ones get more, kills change nothing."""

from __future__ import annotations

import math

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curate.annotate import job as annotate
from curate.errors import UsageError
from curate.generate import job
from curate.generate.adaptive import next_round
from curate.generate.config import AdaptiveConfig, generate_config
from curate.job import Context

KEEP = {"keep": 2, "first": 2}


@pytest.fixture
def context(tmp_path):
    with Context(tmp_path / "wh") as ctx:
        yield ctx


def config(stub_model, sums, right=0.3, **changes):
    base = {
        "recipe": "rejection",
        "model": stub_model,
        "engine": {"name": "stub", "args": {"right": right, **changes.pop("args", {})}},
        "problems": {
            "sources": [{"source": "files", "path": sums, "verifier": "math"}],
            "held_out": 0,
        },
        "samples": 12,
        "adaptive": KEEP,
        "sampling": {"max_tokens": 256},
    }
    return generate_config({**base, **changes})


def by_problem(context: Context) -> pl.DataFrame:
    annotate.run(annotate.AnnotateConfig(), context)
    return context.warehouse.sql(
        "SELECT problem_id, count(*) AS asked, max(sample_index) + 1 AS last, "
        "count(DISTINCT sample_index) AS different, "
        "count(*) FILTER (verdict = 'correct') AS good, list(verdict ORDER BY sample_index) AS "
        "verdicts "
        "FROM annotated GROUP BY 1 ORDER BY 1"
    )


def rounds(verdicts: list[str], budget: int, settings: AdaptiveConfig) -> int:
    """Samples that the rule requests for a problem with these verdicts."""
    samples = 0
    while more := next_round(
        samples, verdicts[:samples].count("correct"), samples, budget, settings
    ):
        samples += more
    return samples


def test_solved_problems_stop_and_hard_ones_get_more(context, stub_model, sums):
    result = job.run(config(stub_model, sums), context)
    rows = by_problem(context)
    assert rows.height == 40
    assert rows["asked"].sum() == result.rows
    assert (rows["asked"] == rows["last"]).all()
    assert (rows["asked"] == rows["different"]).all()
    assert ((rows["good"] >= 2) | (rows["asked"] == 12)).all()
    assert 80 < result.rows < 480
    assert rows["asked"].n_unique() > 3
    settings = AdaptiveConfig(**KEEP)
    assert rows["asked"].to_list() == [rounds(v, 12, settings) for v in rows["verdicts"].to_list()]
    solved = int((rows["good"] >= 2).sum())
    assert f"of 40 problems, {solved} have 2 good traces" in result.summary


def test_a_second_run_requests_nothing_and_annotation_reuses_the_verdicts(
    context, stub_model, sums
):
    job.run(config(stub_model, sums), context)
    stored = context.warehouse.sql("SELECT count(*) FROM verdicts").item()
    assert stored == context.warehouse.sql("SELECT count(*) FROM traces").item()
    assert job.run(config(stub_model, sums), context).rows == 0
    assert annotate.run(annotate.AnnotateConfig(signals=[]), context).rows == 0


def test_more_samples_or_more_to_keep_resumes_where_the_job_stopped(context, stub_model, sums):
    job.run(config(stub_model, sums, samples=4), context)
    before = dict(context.warehouse.sql("SELECT trace_id, completion FROM traces").iter_rows())
    job.run(config(stub_model, sums, samples=12), context)
    job.run(config(stub_model, sums, samples=12, adaptive={"keep": 4, "first": 2}), context)
    rows = by_problem(context)
    assert (rows["asked"] == rows["different"]).all()
    assert (rows["asked"] == rows["last"]).all()
    assert ((rows["good"] >= 4) | (rows["asked"] == 12)).all()
    after = dict(context.warehouse.sql("SELECT trace_id, completion FROM traces").iter_rows())
    assert before.items() <= after.items()


def test_a_job_without_steering_adds_the_samples_that_a_steered_one_skipped(
    context, stub_model, sums
):
    steered = job.run(config(stub_model, sums), context).rows
    assert job.run(config(stub_model, sums, adaptive=None), context).rows == 480 - steered
    rows = by_problem(context)
    assert set(rows["asked"]) == {12}
    assert set(rows["different"]) == {12}
    assert job.run(config(stub_model, sums), context).rows == 0


def test_steering_counts_the_samples_of_an_unsteered_job(context, stub_model, sums):
    job.run(config(stub_model, sums, adaptive=None, samples=3), context)
    job.run(config(stub_model, sums), context)
    rows = by_problem(context)
    assert (rows["asked"] == rows["different"]).all()
    assert ((rows["good"] >= 2) | (rows["asked"] == 12)).all()
    early = rows.filter(
        pl.col("verdicts").list.head(3).list.eval(pl.element() == "correct").list.sum() >= 2
    )
    assert len(early) > 0
    assert set(early["asked"]) == {3}


def test_a_good_trace_must_pass_the_rules_too(context, stub_model, sums, tmp_path):
    rules = tmp_path / "rules.yaml"
    rules.write_text(
        "name: opening\nrules:\n  - {name: opening, keep: \"completion LIKE '%left to right%'\", "
        "reason: a test}\n"
        '  - {name: plain, keep: "readable AND NOT mixed_language AND quality > 0.5", reason: a '
        "test}\n"
    )
    result = job.run(
        config(stub_model, sums, right=1.0, adaptive={**KEEP, "rules": str(rules)}), context
    )
    annotate.run(annotate.AnnotateConfig(), context)
    rows = context.warehouse.sql(
        "SELECT count(*) AS asked, count(*) FILTER (completion LIKE '%left to right%' AND "
        "readable) AS good "
        "FROM annotated GROUP BY problem_id"
    )
    assert result.rows > 80, "all are correct: only the rules can have asked for more"
    assert ((rows["good"] >= 2) | (rows["asked"] == 12)).all()


def test_unverifiable_problems_get_the_first_round_only(context, stub_model, sums, tmp_path):
    with pytest.raises(UsageError, match="adaptive=null"):
        job.run(
            config(stub_model, sums, problems={"sources": [{"source": "files", "path": sums}]}),
            context,
        )
    mixed = tmp_path / "mixed.jsonl"
    mixed.write_text(
        '{"question": "What is 2 + 2?", "reference": "4"}\n{"question": "What is the sum 3 + 4?", '
        '"reference": ""}\n'
    )
    sources = [{"source": "files", "path": str(mixed), "verifier": "math"}]
    job.run(
        config(stub_model, sums, right=0.0, problems={"sources": sources, "held_out": 0}), context
    )
    samples = dict(
        context.warehouse.sql("SELECT question, count(*) FROM annotated GROUP BY 1").iter_rows()
    )
    assert samples == {"What is 2 + 2?": 12, "What is the sum 3 + 4?": 2}


def test_failed_requests_do_not_count_and_are_retried_on_demand(context, stub_model, sums):
    # everything fails: one round of each problem, and no more
    result = job.run(config(stub_model, sums, args={"fail": 1}, max_failed=1.0), context)
    assert (result.rows, result.failed) == (80, 80)
    assert job.run(config(stub_model, sums, max_failed=1.0), context).rows == 0
    job.run(config(stub_model, sums, retry_failed=True), context)
    last = context.warehouse.sql("SELECT problem_id, count(*) AS asked FROM last_traces GROUP BY 1")
    assert (
        context.warehouse.sql("SELECT count(*) FROM last_traces WHERE error IS NOT NULL").item()
        == 0
    )
    rows = by_problem(context)
    assert ((rows["good"] >= 2) | (last["asked"].max() == 12)).all()


def test_an_interrupted_job_makes_the_same_decisions_again(context, stub_model, sums, tmp_path):
    """A job whose engine keeps dying ends with the same traces as an uninterrupted one."""

    class Cut(Exception):
        pass

    from curate.engines.testing.stub import StubEngine

    def cut_after(count: int):
        plain = StubEngine.generate

        def generate(self, requests):
            for number, completion in enumerate(plain(self, requests)):
                if number == count:
                    raise Cut
                yield completion

        return generate

    for count in (0, 1, 7, 30, 50):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(StubEngine, "generate", cut_after(count))
            with pytest.raises(Cut):
                job.run(config(stub_model, sums, args={"shuffle": 5}), context)
    job.run(config(stub_model, sums), context)
    with Context(tmp_path / "undisturbed") as other:
        job.run(config(stub_model, sums), other)
        query = "SELECT trace_id, completion FROM traces ORDER BY 1"
        assert context.warehouse.sql(query).equals(other.warehouse.sql(query))


@given(
    st.integers(1, 9),
    st.integers(1, 9),
    st.integers(1, 70),
    st.lists(st.booleans(), min_size=70, max_size=70),
)
def test_rounds_end_with_enough_good_ones_or_with_the_budget(keep, first, budget, outcomes):
    settings = AdaptiveConfig(keep=keep, first=first)
    verdicts = ["correct" if good else "wrong" for good in outcomes]
    samples = rounds(verdicts, budget, settings)
    good = verdicts[:samples].count("correct")
    assert samples <= budget
    assert good >= keep or samples == budget
    assert next_round(samples, good, samples, budget, settings) == 0


def test_the_size_of_a_round():
    settings = AdaptiveConfig(keep=4, first=4)
    assert next_round(0, 0, 0, 64, settings) == 4
    assert next_round(4, 0, 4, 64, settings) == 4  # none of four: doubled
    assert next_round(8, 0, 8, 64, settings) == 8
    assert next_round(4, 3, 4, 64, settings) == math.ceil(1 * 6 / 4)  # three of four: two more
    assert next_round(62, 1, 62, 64, settings) == 2  # the rest
    assert next_round(4, 4, 4, 64, settings) == 0
    assert next_round(64, 0, 64, 64, settings) == 0
    assert next_round(4, 0, 0, 64, settings) == 0  # nothing could be judged
