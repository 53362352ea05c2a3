"""The command line: messages, exit codes, and no heavy imports in quick commands."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from curate.job import Context
from curate.warehouse import Warehouse


def curate(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "curate.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=120)


@pytest.fixture
def home(tmp_path, stub_model, sums):
    """A warehouse with a harvest of the stub engine in it, annotated."""
    from curate.annotate import job as annotate
    from curate.generate import job
    from curate.generate.config import generate_config

    with Context(tmp_path / "wh") as context:
        config = {
            "recipe": "r1-zero",
            "model": stub_model,
            "engine": {"name": "stub"},
            "problems": {
                "sources": [{"source": "files", "path": sums, "verifier": "math"}],
                "held_out": 0.2,
            },
            "samples": 2,
            "sampling": {"max_tokens": 256},
        }
        job.run(generate_config(config), context)
        annotate.run(annotate.AnnotateConfig(), context)
    return tmp_path / "wh"


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["sql", "--help"], ["version"], ["train", "--help"], ["watch", "--help"]],
)
def test_quick_commands_import_nothing_heavy(arguments):
    code = (
        f"import sys; sys.argv = ['curate', *{arguments!r}]\n"
        "from curate.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'vllm', 'transformers', 'sympy', 'math_verify', 'datasets', "
        "'polars', 'duckdb'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_sql_imports_no_model_library(home):
    code = (
        f"import sys; sys.argv = ['curate', 'sql', '-w', {str(home)!r}, 'select 1 as one']\n"
        "from curate.cli import main\n"
        "try: main()\n"
        "except SystemExit as e: assert not e.code\n"
        "heavy = {'torch', 'vllm', 'transformers', 'sympy', 'math_verify', 'datasets'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "one" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (
            ["generate", "r1-zero", "model=none/such/model", "problems=x"],
            2,
            "no problems called 'x'",
        ),
        (["generate", "r2", "model=m", "problems=x"], 2, "unknown recipe 'r2'"),
        (["generate", "r1-zero", "model=m", "problems=x", "smaples=2"], 2, "smaples: no such key"),
        (["generate", "missing.yaml"], 2, "no config file missing.yaml"),
        (["generate", "r1-zero", "model=m", "oops"], 2, "override 'oops': write key=value"),
        (["run", "missing.yaml"], 2, "no pipeline missing.yaml"),
        (["run", "quikstart"], 2, "did you mean 'quickstart'?"),
        (["sql", "select 1"], 2, "no warehouse at"),
        (["filter", "nothing"], 2, "no rule set 'nothing'"),
        (["train", "sft", "model=m"], 2, "corpus: "),
        (["train", "grpo", "model=m"], 2, "problems: missing"),
        (["evaluate"], 2, "models"),
        (["nonsense"], 2, "No such command 'nonsense'; see `curate --help`"),
        (["export", "x", "--outt", "y"], 2, "see `curate export --help`"),
        (["evaluate", "m", "-p", "x", "-k", "0"], 2, "samples: Input should be greater than"),
        (["sql", ""], 2, "the query is empty"),
        (["sql", "select 1", "--file", "recipes"], 2, "give a query or --file, not both"),
        (["filter", "rejection", "--out", "kept.jsonl"], 2, "--out: only for files"),
        (["annotate", "--text-column", "text"], 2, "--text-column: only for files"),
        (["verify", "--gold", "1", "--answer", "1", "--out", "x"], 2, "--out goes with a file"),
        (["sql", "--format", "xml", "select 1"], 2, "choose table, csv, json or parquet"),
    ],
)
def test_errors_give_one_message_and_an_exit_code(tmp_path, arguments, code, message):
    done = curate(*arguments, cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert message in done.stderr
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr


def test_curate_alone_prints_its_help():
    done = curate()
    assert done.returncode == 2
    assert done.stdout.lstrip().startswith("Usage: ")
    assert "error" not in done.stdout + done.stderr


def test_two_configs_for_one_job_are_refused(tmp_path):
    for name in ("a.yaml", "b.yaml"):
        (tmp_path / name).write_text("recipe: r1-zero\n")
    done = curate("generate", "a.yaml", "-c", "b.yaml", cwd=tmp_path)
    assert done.returncode == 2
    assert "two configs are given" in done.stderr


@pytest.mark.parametrize("command", [["annotate"], ["filter", "unfiltered"], ["verify"]])
def test_an_input_is_never_overwritten(tmp_path, command):
    path = tmp_path / "a.jsonl"
    text = '{"completion": "4", "gold": "4", "prediction": "4"}\n'
    path.write_text(text)
    done = curate(*command, path, "--out", tmp_path / ".." / tmp_path.name / "a.jsonl")
    assert done.returncode == 2
    assert "is an input" in done.stderr
    assert path.read_text() == text


def test_a_file_as_warehouse_gives_one_message(tmp_path, sums):
    (tmp_path / "x.txt").write_text("")
    source = {"source": "files", "path": sums, "verifier": "math"}
    stages = {"problems": {"do": "problems", "sources": [source]}}
    (tmp_path / "p.yaml").write_text(json.dumps({"name": "p", "stages": stages}))
    done = curate("run", tmp_path / "p.yaml", "-w", tmp_path / "x.txt")
    assert done.returncode == 1
    assert "a file is where a folder is needed" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [["train", "sft", "model=m", "corpus=c"], ["train", "grpo", "model=m", "problems=p"]],
)
def test_a_missing_package_is_named_with_its_extra(tmp_path, arguments):
    code = (
        f"import sys; sys.argv = ['curate', *{arguments!r}]\n"
        "for name in ('torch', 'transformers', 'safetensors', 'peft'): sys.modules[name] = None\n"
        "from curate.cli import main\n"
        "main()"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1
    assert "pip install 'curate-reasoning[train]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_broken_line_of_json_is_named_with_file_and_line(tmp_path, stub_model):
    (tmp_path / "bad.jsonl").write_text(
        '{"question": "1 + 1?", "reference": "2"}\n{"question": "2 +\n'
    )
    config = {"model": stub_model, "engine": {"name": "stub"}}
    config["problems"] = {
        "sources": [{"source": "files", "path": str(tmp_path / "bad.jsonl"), "verifier": "math"}]
    }
    (tmp_path / "job.yaml").write_text(json.dumps(config))
    done = curate("generate", "r1-zero", "-c", tmp_path / "job.yaml", "-w", tmp_path / "wh")
    assert done.returncode == 2
    assert "bad.jsonl:2" in done.stderr or "bad.jsonl, line 2" in done.stderr
    assert "Traceback" not in done.stderr


def test_sql_prints_a_table_csv_json_or_parquet(home, tmp_path):
    query = "select verdict, count(*) as n from annotated group by 1 order by 1"
    want = Warehouse(home).sql(query)
    assert "| correct" in curate("sql", "-w", home, query).stdout
    assert curate("sql", "-w", home, "-f", "csv", query).stdout.splitlines()[0] == "verdict,n"
    rows = [
        json.loads(line)
        for line in curate("sql", "-w", home, "-f", "json", query).stdout.splitlines()
    ]
    assert rows == want.to_dicts()
    with open(tmp_path / "out.parquet", "wb") as out:
        command = [
            sys.executable,
            "-m",
            "curate.cli",
            "sql",
            "-w",
            str(home),
            "-f",
            "parquet",
            query,
        ]
        assert subprocess.run(command, stdout=out).returncode == 0
    import polars as pl

    assert pl.read_parquet(tmp_path / "out.parquet").equals(want)


def test_sql_refuses_to_write(home):
    done = curate("sql", "-w", home, "create table t (a int)")
    assert done.returncode == 2
    assert "only reads" in done.stderr


def test_the_shipped_queries_run(home):
    for name in ("recipes", "hardest", "funnel", "policy_steps"):
        done = curate("sql", "-w", home, "--file", name)
        assert done.returncode == 0, done.stderr


def test_a_query_over_verdicts_and_traces(home):
    rows = Warehouse(home).sql(
        "select recipe, count(*) n, avg((verdict='correct')::int) c from annotated group by 1"
    )
    recipe, count, share = rows.row(0)
    assert (recipe, count) == ("r1-zero", Warehouse(home).sql("select count(*) from traces").item())
    assert 0.2 < share < 0.8


def test_filter_prints_its_funnel_and_explains_a_trace(home):
    done = curate("filter", "cold-start", "-w", home)
    assert done.returncode == 0, done.stderr
    assert "well-formed" in done.stdout + done.stderr
    assert "corpus cold-start@" in done.stdout
    trace = (
        Warehouse(home).sql("select trace_id from annotated where verdict = 'wrong' limit 1").item()
    )
    why = curate("filter", "cold-start", "-w", home, "--explain", trace)
    assert "dropped by 'correct'" in why.stdout
    assert "'wrong'" in why.stdout or "= wrong" in why.stdout


def test_a_filter_that_keeps_nothing_names_the_rule_and_fails(home):
    done = curate("filter", "cold-start", "-w", home, "where=prompt is null")
    assert done.returncode == 1
    none = curate("filter", "cold-start", "-w", home, "where=verdict = 'wrong'")
    assert none.returncode == 1
    assert "correct" in none.stderr


def test_show_and_lineage(home):
    trace = Warehouse(home).sql("select trace_id from annotated limit 1").item()
    shown = curate("show", trace[:12], "-w", home).stdout
    assert trace in shown
    assert "--- completion ---" in shown
    curate("filter", "cold-start", "-w", home)
    tree = curate("lineage", "cold-start", "-w", home).stdout.splitlines()
    assert tree[0].startswith("corpora/cold-start/")
    assert tree[1].strip().startswith("<- traces/")
    assert any("problems/" in line for line in tree)
    assert curate("show", "zzz", "-w", home).returncode == 2


def test_files_are_annotated_and_filtered_without_a_warehouse(home, tmp_path):
    import polars as pl

    rows = Warehouse(home).sql("SELECT completion, question, 'mine' AS own FROM annotated")
    rows.write_ndjson(tmp_path / "traces.jsonl")
    done = curate(
        "annotate",
        tmp_path / "traces.jsonl",
        "--form",
        "r1-zero",
        "--out",
        tmp_path / "out.parquet",
    )
    assert done.returncode == 0, done.stderr
    out = pl.read_parquet(tmp_path / "out.parquet")
    assert out.height == rows.height
    assert {"own", "well_formed", "readable", "quality"} <= set(out.columns)
    assert "--out" in curate("annotate", tmp_path / "traces.jsonl").stderr
    rules = tmp_path / "rules.yaml"
    rules.write_text("rules:\n  - {name: short, keep: characters < 90, reason: a test}\n")
    kept = curate("filter", rules, tmp_path / "traces.jsonl", "--out", tmp_path / "kept.jsonl")
    assert kept.returncode == 0, kept.stderr
    assert 0 < pl.read_ndjson(tmp_path / "kept.jsonl").height < rows.height


def test_a_corpus_is_exported_with_a_card(home, tmp_path):
    import polars as pl

    curate("filter", "cold-start", "-w", home)
    done = curate("export", "cold-start", "--out", tmp_path / "out", "-w", home)
    assert done.returncode == 0, done.stderr
    rows = pl.read_parquet(tmp_path / "out" / "data" / "*.parquet")
    assert f"{rows.height} rows" in done.stdout
    assert "messages" in rows.columns
    assert (tmp_path / "out" / "README.md").exists()


def test_parts_are_merged(home):
    before = Warehouse(home).sql("SELECT count(*) FROM annotated").item()
    done = curate("merge", "-w", home)
    assert done.returncode == 0, done.stderr
    assert "traces/" in done.stdout
    assert Warehouse(home).sql("SELECT count(*) FROM annotated").item() == before
    assert curate("merge", "-w", home).stdout == ""


def test_verify_judges_a_pair():
    assert curate("verify", "--gold", "1/2", "--answer", "The answer is 0.5").stdout.startswith(
        "correct"
    )
    assert curate("verify", "--gold", "7", "--answer", "<answer> 8 </answer>").stdout.startswith(
        "wrong"
    )


def test_ctrl_c_gives_one_message_and_finished_rows_stay(tmp_path, stub_model, sums):
    import signal
    import time

    config = {
        "model": stub_model,
        "engine": {"name": "stub", "args": {"slow": 0.02}},
        "problems": {
            "sources": [{"source": "files", "path": sums, "verifier": "math"}],
            "held_out": 0,
        },
        "samples": 20,
    }
    (tmp_path / "job.yaml").write_text(json.dumps(config))
    command = [
        sys.executable,
        "-m",
        "curate.cli",
        "generate",
        "r1-zero",
        "-c",
        str(tmp_path / "job.yaml"),
    ]
    process = subprocess.Popen(
        [*command, "-w", str(tmp_path / "wh")], stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("wh/_logs/*/*.log")) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "interrupted: what finished is committed" in err
    assert "Traceback" not in err
    from curate.warehouse.logs import replay

    assert len(list(replay(tmp_path.glob("wh/_logs/*/*.log")))) > 0


def test_help_lists_every_command_in_the_order_of_work():
    from typer.main import get_command

    from curate.cli import ORDER, app

    assert set(ORDER) == set(get_command(app).commands)
    printed = curate("--help").stdout
    places = [printed.index(f"\n  {name} ") for name in ORDER]
    assert places == sorted(places)
