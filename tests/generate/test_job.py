import polars as pl
import pytest

from curate.engines.testing.tiny import make_tiny_model
from curate.errors import CurateError, UsageError
from curate.generate import job
from curate.generate.config import generate_config
from curate.job import Context

COLUMNS = (
    "problem_id, sample_index, attempt, completion, finish_reason, max_tokens, error, trace_id"
)
ALL = f"SELECT {COLUMNS} FROM traces"


@pytest.fixture
def context(tmp_path):
    with Context(tmp_path / "wh") as ctx:
        yield ctx


def config(stub_model, sums, **changes):
    base = {
        "recipe": "r1-zero",
        "model": stub_model,
        "engine": {"name": "stub"},
        "problems": {
            "sources": [{"source": "files", "path": sums, "verifier": "math"}],
            "held_out": 0.2,
        },
        "split": None,
        "samples": 3,
        "sampling": {"max_tokens": 256},
    }
    return generate_config({**base, **changes})


def test_every_sample_of_every_problem_once_and_a_second_run_does_nothing(
    context, stub_model, sums
):
    first = job.run(config(stub_model, sums), context)
    assert first.rows == 120
    rows = context.warehouse.sql(ALL)
    assert rows.select("problem_id", "sample_index").is_unique().all()
    assert rows["trace_id"].n_unique() == 120
    assert set(rows["finish_reason"]) == {"stop"}
    assert job.run(config(stub_model, sums), context).rows == 0
    assert context.warehouse.sql(ALL).height == 120


def test_columns_record_everything_that_determined_a_trace(context, stub_model, sums):
    job.run(config(stub_model, sums, seed=5), context)
    row = context.warehouse.sql("SELECT * FROM annotated LIMIT 1").row(0, named=True)
    assert row["prompt"].endswith(f"User: {row['question']} Assistant:")
    assert row["template"].startswith("r1-zero@")
    assert (row["recipe"], row["form"], row["engine"], row["temperature"]) == (
        "r1-zero",
        "r1-zero",
        "stub",
        1.0,
    )
    assert row["reasoning"] in row["completion"]
    assert f"<answer> {row['answer']} </answer>" in row["completion"]
    assert row["model_hash"]
    assert row["created_at"] is not None


def test_the_size_of_a_part_is_a_setting_that_a_later_run_may_change(context, stub_model, sums):
    job.run(config(stub_model, sums, chunk=10, limit=10), context)
    traces = context.warehouse.root / "traces"
    assert len(list(traces.rglob("part-[0-9]*.parquet"))) == 3  # of 30 rows
    assert job.run(config(stub_model, sums, chunk=1000), context).rows == 90
    assert len(list(traces.rglob("part-[0-9]*.parquet"))) == 4
    assert context.warehouse.sql(ALL).height == 120


def few_from(engine, model, sums):
    return config(str(model), sums, engine=engine, limit=2, samples=1, sampling={"max_tokens": 4})


def test_traces_of_another_engine_or_precision_are_not_reused(context, sums, tmp_path):
    model = make_tiny_model(tmp_path / "tiny")
    engines = [
        {"name": "stub"},
        {"name": "transformers", "dtype": "float32"},
        {"name": "transformers", "dtype": "bfloat16"},
    ]
    for engine in engines:
        assert job.run(few_from(engine, model, sums), context).rows == 2
    for engine in engines:
        assert job.run(few_from(engine, model, sums), context).rows == 0
    traces = context.warehouse.sql("SELECT trace_id, engine FROM traces")
    assert traces["trace_id"].n_unique() == 6
    assert sorted(traces["engine"]) == ["stub"] * 2 + ["transformers"] * 4


def test_auto_keeps_the_engine_and_precision_of_stored_traces(
    context, sums, tmp_path, monkeypatch, capsys
):
    model = make_tiny_model(tmp_path / "tiny")
    monkeypatch.setattr("curate.engines.registry.LOCAL", ("transformers",))
    monkeypatch.setattr("curate.extras.find_spec", lambda name: None if name == "vllm" else name)
    named = {"name": "transformers", "dtype": "bfloat16"}
    job.run(few_from(named, model, sums), context)
    assert job.run(few_from({"name": "auto"}, model, sums), context).rows == 0
    messages = capsys.readouterr().err
    assert "transformers/bfloat16, as for the existing traces" in messages
    assert (
        "engine.dtype=float32" in messages
    )  # the message says how to sample with today's choice of auto


def test_more_samples_or_problems_generate_only_what_is_new(context, stub_model, sums):
    assert job.run(config(stub_model, sums, limit=10), context).rows == 30
    assert job.run(config(stub_model, sums), context).rows == 90
    before = dict(context.warehouse.sql("SELECT trace_id, completion FROM traces").iter_rows())
    assert job.run(config(stub_model, sums, samples=5), context).rows == 80
    after = dict(context.warehouse.sql("SELECT trace_id, completion FROM traces").iter_rows())
    assert len(after) == 200
    assert before.items() <= after.items()


def test_a_higher_limit_redoes_only_the_truncated(context, stub_model, sums):
    job.run(config(stub_model, sums, sampling={"max_tokens": 90}), context)
    cut = context.warehouse.sql("SELECT count(*) FROM traces WHERE finish_reason = 'length'").item()
    assert 0 < cut < 120
    assert job.run(config(stub_model, sums, sampling={"max_tokens": 256}), context).rows == cut
    last = context.warehouse.sql("SELECT attempt, max_tokens, finish_reason FROM last_traces")
    assert last.height == 120
    assert set(last["finish_reason"]) == {"stop"}
    assert last.filter(pl.col("attempt") == 1)["max_tokens"].unique().to_list() == [256]
    assert job.run(config(stub_model, sums, sampling={"max_tokens": 256}), context).rows == 0
    assert job.run(config(stub_model, sums, sampling={"max_tokens": 90}), context).rows == 0


def test_failures_are_rows_and_are_retried_only_on_demand(context, stub_model, sums):
    failing = config(stub_model, sums, engine={"name": "stub", "args": {"fail": 4}}, max_failed=0.5)
    result = job.run(failing, context)
    assert result.rows == 120
    assert 0 < result.failed < 60
    assert (
        context.warehouse.sql("SELECT count(*) FROM traces WHERE error IS NOT NULL").item()
        == result.failed
    )
    assert job.run(config(stub_model, sums, max_failed=0.5), context).rows == 0
    mended = job.run(config(stub_model, sums, retry_failed=True), context)
    assert (mended.rows, mended.failed) == (result.failed, 0)
    assert (
        context.warehouse.sql("SELECT count(*) FROM last_traces WHERE error IS NOT NULL").item()
        == 0
    )


def test_too_many_failures_fail_the_job_and_lose_nothing(context, stub_model, sums):
    with pytest.raises(CurateError, match=r"\d+ of 120 requests failed.*--retry-failed"):
        job.run(
            config(stub_model, sums, engine={"name": "stub", "args": {"fail": 4}}, max_failed=0.1),
            context,
        )
    assert context.warehouse.sql(ALL).height == 120


def test_worked_solutions_are_traces_that_verify(context, stub_model, sums):
    result = job.run(
        config(None, sums, recipe="cold-start", source="solutions", template="r1-zero", samples=1),
        context,
    )
    assert result.rows == 40
    row = context.warehouse.sql(
        "SELECT engine, completion, reasoning, answer FROM annotated ORDER BY trace_id"
    ).row(0)
    assert row[0] == "solution"
    assert row[1] == f"<think> {row[2]} </think> <answer> {row[3]} </answer>"


def test_worked_examples_are_shown_and_never_sampled(context, stub_model, sums):
    problems = {"sources": [{"source": "files", "path": sums, "verifier": "math"}], "held_out": 0.2}
    job.run(
        config(stub_model, sums, samples=1, examples={"problems": problems, "count": 2}), context
    )
    rows = context.warehouse.sql("SELECT question, prompt FROM annotated")
    assert rows.height == 38
    shown = rows["prompt"].str.count_matches("<answer> [0-9]+ </answer>", literal=False)
    assert shown.to_list() == [2] * 38
    assert not any(q in p.rsplit("User:", 1)[0] for q, p in rows.iter_rows())


def test_other_weights_make_another_family(context, stub_model, sums, tmp_path):
    job.run(config(stub_model, sums, samples=1), context)
    (tmp_path / "stub-model" / "model.safetensors").write_bytes(b"other weights")
    assert job.run(config(stub_model, sums, samples=1), context).rows == 40
    assert context.warehouse.sql("SELECT count(DISTINCT trace_id) FROM traces").item() == 80


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"samplse": 3}, r"samplse: no such key"),
        (
            {"sampling": {"temprature": 1}},
            r"sampling.temprature: no such key; did you mean 'temperature'",
        ),
        ({"samples": 0}, "samples"),
        ({"model": None}, "model: missing"),
        ({"recipe": "r2"}, "unknown recipe 'r2'"),
    ],
)
def test_errors_of_a_config_name_the_key(stub_model, sums, changes, message):
    with pytest.raises(UsageError, match=message):
        config(stub_model, sums, **changes)


def test_missing_inputs_are_errors_before_anything_runs(context, stub_model, sums):
    for changes, message in (
        ({"model": "no/such/model"}, "no model"),
        ({"problems": "nothing"}, "no problems called 'nothing'"),
        ({"template": "nothing"}, "template 'nothing'"),
        (
            {
                "split": "held-out",
                "problems": {"sources": [{"source": "files", "path": sums}], "held_out": 0},
            },
            "no problems",
        ),
    ):
        with pytest.raises(UsageError, match=message):
            job.make_plan(config(stub_model, sums, **changes), context)
    assert not context.warehouse.versions("traces")


def test_the_plan_is_described_without_loading_the_model(context, stub_model, sums):
    text = job.describe(job.make_plan(config(stub_model, sums), context))
    assert "120 in all" in text
    assert "at most 30,720" in text
    assert not context.warehouse.versions("traces")


def test_the_numbers_of_a_summary_add_up(context, stub_model, sums):
    first = job.run(config(stub_model, sums, limit=10, chunk=1000), context).summary
    assert first.startswith("30 traces (30 new): ")
    # Fewer problems: nothing is new, and stored samples are not reported.
    assert job.run(config(stub_model, sums, limit=5), context).summary.startswith(
        "15 traces (0 new): "
    )
    more = job.run(config(stub_model, sums, limit=10, samples=4), context).summary
    assert more.startswith("40 traces (10 new): ")
    short = {"limit": 10, "seed": 1, "sampling": {"max_tokens": 90}}
    cut = job.run(config(stub_model, sums, **short), context).summary
    assert cut.startswith("30 traces (30 new): ")
    truncated = int(cut.partition(" truncated")[0].split()[-1])
    long = {**short, "sampling": {"max_tokens": 256}}
    again = job.run(config(stub_model, sums, **long), context)
    assert again.rows == truncated > 0
    assert again.summary.startswith(f"30 traces (0 new, {truncated} sampled again): 30 complete")


def test_samples_left_open_by_a_larger_plan_do_not_count_as_new(context, stub_model, sums):
    from curate.generate.plan import make_plan

    plan = make_plan(config(stub_model, sums, limit=20, chunk=1000), context)
    plan.family.extend(
        plan.units.frame["unit"], 3
    )  # planned by a run that was killed before it sampled
    result = job.run(config(stub_model, sums, limit=10), context)
    assert result.rows == 60
    assert result.summary.startswith("30 traces (30 new): ")
    assert "; 30 samples of a larger plan finished as well" in result.summary


def test_cost_and_tokens_are_those_of_the_rows(context, stub_model, sums):
    from curate.generate.plan import make_plan
    from curate.generate.worker import Worker

    settings = config(stub_model, sums, limit=4, samples=1)
    plan = make_plan(settings, context)
    plan.family.extend(plan.units.frame["unit"], 1)
    worker = Worker(plan)
    rows = plan.family.open_rows(plan.units.frame["unit"], 1)
    worker.chunks.clear()
    stream = worker._requests(rows)
    from curate.records import Completion

    for _ in range(2):  # two samples reach the log, and the process dies
        request = next(stream)
        worker._start_engine()
        worker._finished(
            Completion(request.request_id, "a", "stop", completion_tokens=7, extra={"cost": 0.25})
        )
    for chunk in worker.chunks.values():
        chunk.log.close()
    worker.close()
    summary = job.run(settings, context).summary
    tokens, cost = context.warehouse.sql(
        "SELECT sum(completion_tokens), sum(cost) FROM traces"
    ).row(0)
    assert f"; {tokens} tokens in " in summary
    assert f", cost {cost:.4g} (2 samples of them from an earlier run)" in summary


@pytest.mark.parametrize(
    ("api", "chat", "messages"),
    [("chat", None, True), ("chat", False, False), ("completions", None, False)],
)
def test_the_chat_template_is_the_default_for_chat_servers(context, sums, api, chat, messages):
    from curate.generate.plan import make_plan

    args = {"base_url": "http://127.0.0.1:9/v1", "api": api}
    engine = {"name": "openai", "args": args}
    plan = make_plan(config("m", sums, engine=engine, chat=chat), context)
    assert plan.chat is messages
    assert ("+chat" in plan.family.facts["config"]["template"]) is False
    text = plan.units.prompt(
        plan.units.frame.row(0, named=True), (lambda m: str(m)) if plan.chat else None
    )
    assert text.startswith("[{'role': 'user'") is messages


def test_the_completions_api_takes_no_messages(context, sums):
    engine = {"name": "openai", "args": {"base_url": "http://127.0.0.1:9/v1", "api": "completions"}}
    with pytest.raises(UsageError, match="completions API of a server takes raw text"):
        job.run(config("m", sums, engine=engine, chat=True), context)


def test_a_local_model_gets_plain_prompts_by_default(context, stub_model, sums):
    from curate.generate.plan import make_plan

    plan = make_plan(config(stub_model, sums), context)
    assert plan.chat is False
    assert (
        plan.family.family == make_plan(config(stub_model, sums, chat=False), context).family.family
    )
