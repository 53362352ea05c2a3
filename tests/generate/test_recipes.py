"""Recipes other than plain sampling: rewrites, worked examples, simple queries, dry runs."""

from __future__ import annotations

import json

import polars as pl
import pytest

from curate.annotate import job as annotate
from curate.errors import UsageError
from curate.filter.job import FilterConfig
from curate.filter.job import run as run_filter
from curate.generate import job
from curate.generate.config import generate_config
from curate.job import Context

R1 = "<think>\nWe add. The sum is {answer}.\n</think>\n\nSo it is \\boxed{{answer}}."


@pytest.fixture
def context(tmp_path):
    with Context(tmp_path / "wh") as ctx:
        yield ctx


def config(recipe, stub_model, sums, args=None, **changes):
    base = {
        "recipe": recipe,
        "model": stub_model,
        "engine": {"name": "stub", "args": args or {}},
        "problems": {
            "sources": [{"source": "files", "path": sums, "verifier": "math"}],
            "held_out": 0.2,
        },
        "sampling": {"max_tokens": 512},
    }
    return generate_config({**base, **changes})


def harvest(context, stub_model, sums) -> str:
    result = job.run(config("r1-zero", stub_model, sums, samples=3), context)
    annotate.run(annotate.AnnotateConfig(), context)
    return result.facts["family"]


def rework(family, stub_model, sums, style=R1, right=1.0, **changes):
    changes = {"rework": {"traces": [family], "rules": None}, **changes}
    args = {"style": style, "right": right}
    return config("cold-start", stub_model, sums, args, source="rework", problems=None, **changes)


def test_correct_traces_are_rewritten_with_their_parent_and_verified_again(
    context, stub_model, sums
):
    family = harvest(context, stub_model, sums)
    result = job.run(rework(family, stub_model, sums), context)
    rows = context.warehouse.sql(
        "SELECT r.*, h.verdict AS parent_verdict, h.completion AS notes, h.problem_id AS "
        "parent_problem "
        "FROM annotated r JOIN annotated h ON h.trace_id = r.parent_trace_id WHERE r.dataset = ?",
        [result.facts["family"]],
    )
    solved = context.warehouse.sql(
        f"SELECT count(DISTINCT problem_id) FROM annotated WHERE dataset = '{family}' AND verdict "
        "= 'correct'"
    )
    assert rows.height == result.rows == solved.item() > 20
    assert set(rows["verdict"]) == set(rows["parent_verdict"]) == {"correct"}
    assert (rows["problem_id"] == rows["parent_problem"]).all()
    assert rows["parent_trace_id"].is_unique().all()
    assert set(rows["form"]) == {"r1"}
    row = rows.row(0, named=True)
    assert "in English" in row["prompt"]
    assert row["question"] in row["prompt"]
    assert row["notes"].split("<think>")[1].split("</think>")[0].strip() in row["prompt"]
    assert row["reasoning"].startswith("We add.")
    assert job.run(rework(family, stub_model, sums), context).rows == 0


def test_a_rewrite_that_loses_the_answer_is_requested_again(context, stub_model, sums):
    family = harvest(context, stub_model, sums)
    result = job.run(rework(family, stub_model, sums, right=0.5, samples=6), context)
    annotate.run(annotate.AnnotateConfig(), context)
    rows = context.warehouse.sql(
        "SELECT parent_trace_id, count(*) AS asked, count(*) FILTER (verdict = 'correct') AS good "
        "FROM annotated "
        f"WHERE dataset = '{result.facts['family']}' GROUP BY 1"
    )
    assert rows["asked"].max() > 1
    assert ((rows["good"] >= 1) | (rows["asked"] == 6)).all()
    corpus = run_filter(
        FilterConfig(rules="cold-start", traces=[result.facts["family"], family]), context
    )
    assert corpus.rows > 0


def test_a_chinese_question_is_rewritten_in_chinese(context, stub_model, tmp_path):
    path = tmp_path / "zh.jsonl"
    path.write_text(
        json.dumps({"question": "请问 3 + 4 等于多少？这道题怎么做？", "reference": "7"}) + "\n"
    )
    family = harvest(context, stub_model, str(path))
    job.run(rework(family, stub_model, None, split=None), context)
    rows = context.warehouse.sql("SELECT prompt FROM traces WHERE parent_trace_id IS NOT NULL")
    assert rows.height > 0
    assert "全文只用中文书写" in rows["prompt"][0]


def test_errors_explain_why_nothing_can_be_rewritten(context, stub_model, sums):
    context.warehouse.create()
    with pytest.raises(UsageError, match="no traces called nothing"):
        job.run(rework("nothing", stub_model, sums), context)
    result = job.run(config("r1-zero", stub_model, sums, samples=1), context)
    with pytest.raises(UsageError, match="curate annotate"):
        job.run(rework(result.facts["family"], stub_model, sums), context)
    annotate.run(annotate.AnnotateConfig(), context)
    with pytest.raises(UsageError, match=r"none of the .* traces of .* passes"):
        job.run(
            rework(
                result.facts["family"],
                stub_model,
                sums,
                rework={"traces": [result.facts["family"]], "where": "false"},
            ),
            context,
        )
    with pytest.raises(UsageError, match="rework: name the traces"):
        rework("x", stub_model, sums, rework=None)


def test_worked_examples_come_from_a_file_from_those_that_ship_or_from_traces(
    context, stub_model, sums, tmp_path
):
    family = harvest(context, stub_model, sums)
    result = job.run(rework(family, stub_model, sums), context)
    annotate.run(annotate.AnnotateConfig(), context)
    own = tmp_path / "own.jsonl"
    own.write_text(
        json.dumps({"question": "What is 1 + 1?", "completion": "<think>Two.</think> \\boxed{2}"})
        + "\n"
    )
    for number, (examples, text) in enumerate(
        (
            ({"file": "long-cot", "count": 2}, "<think>\nI need the price of 18 pens"),
            ({"file": str(own), "count": 1}, "<think>Two.</think>"),
            ({"traces": [result.facts["family"]], "count": 2}, "<think>\nWe add. The sum is"),
        )
    ):
        done = job.run(
            config(
                "cold-start",
                stub_model,
                sums,
                examples=examples,
                seed=number,
                adaptive=None,
                limit=3,
            ),
            context,
        )
        rows = context.warehouse.sql(
            "SELECT prompt, template, question FROM annotated WHERE dataset = "
            f"'{done.facts['family']}'"
        )
        assert rows.height == 3
        assert rows["prompt"].str.contains(text, literal=True).all()
        assert rows["template"].str.contains(f"+{examples['count']}@", literal=True).all()
    assert "What is 1 + 1?" in rows["prompt"][0] or rows.height  # of traces: any training question
    with pytest.raises(UsageError, match=r"examples\.count is 9, and there are 4"):
        job.run(
            config("cold-start", stub_model, sums, examples={"file": "long-cot", "count": 9}),
            context,
        )
    with pytest.raises(UsageError, match="one of problems, traces and file"):
        config("cold-start", stub_model, sums, examples={"count": 1})
    own.write_text('{"question": "a"}\n')
    with pytest.raises(UsageError, match=r"own.jsonl:1: a worked example"):
        job.run(
            config("cold-start", stub_model, sums, examples={"file": str(own), "count": 1}), context
        )


def test_simple_queries_are_answered_without_a_chain_of_thought(context, stub_model, tmp_path):
    path = tmp_path / "mixed.jsonl"
    rows = [
        {
            "question": f"What is {i} + 2?",
            "reference": str(i + 2),
            "domain": "math",
            "verifier": "math",
        }
        for i in range(6)
    ]
    rows += [{"question": f"Hello number {i}!", "domain": "general"} for i in range(4)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    problems = {"sources": [{"source": "files", "path": str(path)}], "held_out": 0}
    settings = config(
        "distill", stub_model, str(path), problems=problems, simple={"where": "domain = 'general'"}
    )
    result = job.run(settings, context)
    assert result.rows == 40
    traces = context.warehouse.sql("SELECT domain, form, template, prompt, question FROM annotated")
    simple = traces.filter(pl.col("domain") == "general")
    assert set(simple["form"]) == {"plain"}
    assert simple["template"].str.starts_with("plain@").all()
    assert (simple["prompt"] == simple["question"]).all()
    rest = traces.filter(pl.col("domain") == "math")
    assert set(rest["form"]) == {"r1"}
    assert rest["template"].str.starts_with("r1@").all()
    annotate.run(annotate.AnnotateConfig(), context)
    corpus = run_filter(FilterConfig(rules="unfiltered"), context)
    assert corpus.rows == 40
    with pytest.raises(UsageError, match=r"simple.where: .*nothing"):
        job.run(
            config("distill", stub_model, None, problems=problems, simple={"where": "nothing = 1"}),
            context,
        )


def test_only_problems_that_meet_the_condition_are_sampled(context, stub_model, sums):
    result = job.run(
        config(
            "r1-zero", stub_model, sums, samples=1, split=None, where="question LIKE 'What is 1 +%'"
        ),
        context,
    )
    assert result.rows == 5
    with pytest.raises(UsageError, match="no problems where false"):
        job.run(config("r1-zero", stub_model, sums, where="false"), context)


def test_every_prompt_is_rendered_with_the_chat_template(context, stub_model, sums):
    job.run(config("r1-zero", stub_model, sums, samples=1, chat=True, split=None), context)
    prompts = context.warehouse.sql("SELECT prompt FROM traces")["prompt"]
    assert len(prompts) == 40
    assert (prompts.str.starts_with("<user>") & prompts.str.ends_with("<assistant>")).all()


def test_a_dry_run_writes_nothing_and_estimates_tokens_and_cost(
    context, stub_model, sums, tmp_path
):
    prices = {
        "model": "m",
        "base_url": "http://localhost:1/v1",
        "price_in": 1.0,
        "price_out": 2.0,
        "budget": 5,
    }
    settings = config(
        "distill", "owner/name", sums, engine={"name": "openai", "args": prices}, split=None
    )
    text = job.describe(job.make_plan(settings, context, commit=False))
    assert not (tmp_path / "wh").exists()
    # 40 problems, 4 samples, 512 tokens at 2 per million, and the prompts
    assert "completions at most 81,920" in text
    most = float(text.split("cost      at most ")[1].split(",")[0].split(";")[0])
    assert 160 * 512 * 2e-6 < most < 160 * 512 * 2e-6 + 160 * 200 * 1e-6
    assert "stops at its budget of 5" in text
    assert "What is 1 + 1?" in text
