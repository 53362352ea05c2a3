"""Errors that would stop a pipeline after hours are found by `--plan` and before the first
stage.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from curate.errors import UsageError
from curate.job import Context
from curate.pipeline.checks import check_stages
from curate.pipeline.config import load_pipeline
from curate.pipeline.runner import Pipeline


def pipeline(sums: str, model: str) -> dict[str, Any]:
    source = {"source": "files", "path": sums, "verifier": "math"}
    harvest = {"do": "generate", "recipe": "r1-zero", "model": model, "problems": "@problems"}
    models = [{"label": "a", "model": model}]
    return {
        "name": "p",
        "engine": {"name": "stub"},
        "stages": {
            "problems": {"do": "problems", "sources": [source], "held_out": 0.2},
            "harvest": harvest,
            "evaluate": {"do": "evaluate", "problems": "@problems", "models": models},
        },
    }


def load(tmp_path: Path, config: dict[str, Any], *overrides: str) -> Any:
    path = tmp_path / "p.yaml"
    path.write_text(json.dumps(config))
    return load_pipeline(path, overrides)


def test_a_pipeline_that_can_run_passes(tmp_path: Path, sums: str, stub_model: str) -> None:
    config = pipeline(sums, stub_model)
    # Names of columns and of the author of imported traces are not models to load.
    config["stages"]["problems"]["sources"][0]["columns"] = {"reference": "reference"}
    inline = {"sources": config["stages"]["problems"]["sources"]}
    config["stages"]["inline"] = {**config["stages"]["harvest"], "problems": inline}
    config["stages"]["more"] = {"do": "import", "path": sums, "model": "somebody"}
    check_stages(load(tmp_path, config)[1])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["stages.problems.sources=[{source: files, path: none.jsonl}]"],
            "stage problems: no problems at 'none.jsonl'",
        ),
        (["stages.harvest.where=difficultly > 1"], 'stage harvest: where: .*"difficultly"'),
        (["engine.name=stubb"], "stage harvest: unknown engine 'stubb'.*did you mean 'stub'"),
        (
            ["engine.name=transformers", "stages.harvest.model=no/such/model"],
            "no model 'no/such/mo",
        ),
        (["engine.name=openai", "engine.args={budget: 1}"], "without price_in and price_out"),
        (
            ["stages.problems.held_out=0"],
            "evaluate: evaluates on held-out .* problems holds out no",
        ),
    ],
)
def test_what_would_fail_later_is_found(
    tmp_path: Path, sums: str, stub_model: str, overrides: list[str], message: str
) -> None:
    stages = load(tmp_path, pipeline(sums, stub_model), *overrides)[1]
    with pytest.raises(UsageError, match=message):
        check_stages(stages)


def with_stages(sums: str, model: str, **stages: Any) -> dict[str, Any]:
    config = pipeline(sums, model)
    config["stages"] |= stages
    return config


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        (
            {"do": "filter", "rules": "rejection", "traces": ["@harvest"], "where": "qualityy > 1"},
            "stage more: .*qualityy",
        ),
        (
            {"do": "filter", "rules": "{rules}", "traces": ["@harvest"]},
            "stage more: rule 'thinks' of rule set 'mine' fails.*reflexion_count",
        ),
        (
            {"do": "filter", "rules": "rejection",
             "set": {"select.contamination.benchmarks": ["none.jsonl"]}},
            "stage more: select.contamination.benchmarks: no file none.jsonl",
        ),
        (
            {"do": "report", "where": {"bad": "verdictt = 'wrong'"}},
            "stage more: where.bad: .*verdictt",
        ),
        (
            {"do": "annotate", "judge": {"model": "no/such/model"}},
            "stage more: judge: no model 'no/such/model'",
        ),
        (
            {"do": "annotate", "judge": {"model": "{model}", "engine": {"name": "vlm"}}},
            "stage more: judge: unknown engine 'vlm'",
        ),
        (
            {"do": "grpo", "model": "{model}", "problems": "@problems", "name": "g",
             "rewards": {"preference": {"options": {"model": "no/such/model"}}}},
            "stage more: judge: no model 'no/such/model'",
        ),
        ({"do": "import", "path": "nowhere/x.jsonl"}, "stage more: nothing at 'nowhere/x.jsonl'"),
        (
            {"do": "generate", "recipe": "rejection", "model": "{model}", "problems": "@problems",
             "adaptive": {"keep": 1, "rules": "{rules}"}},
            "stage more: rule 'thinks' of rule set 'mine' fails",
        ),
        (
            {"do": "generate", "recipe": "cold-start", "model": "{model}", "problems": "@problems",
             "examples": {"file": "long-cott"}},
            "stage more: examples.file: no file 'long-cott'",
        ),
    ],
)  # fmt: skip
def test_rules_conditions_judges_and_files_are_rehearsed(
    tmp_path: Path, sums: str, stub_model: str, stage: dict[str, Any], message: str
) -> None:
    rules = tmp_path / "mine.yaml"
    rules.write_text("rules: [{name: thinks, keep: reflexion_count > 0, reason: a test}]\n")
    text = json.dumps(stage).replace("{model}", stub_model).replace("{rules}", str(rules))
    stages = load(tmp_path, with_stages(sums, stub_model, more=json.loads(text)))[1]
    with pytest.raises(UsageError, match=message):
        check_stages(stages)


def test_what_fits_is_not_complained_about(tmp_path: Path, sums: str, stub_model: str) -> None:
    stages = {
        "judge": {"do": "annotate", "judge": {"model": stub_model, "engine": {"name": "stub"}}},
        "best": {"do": "filter", "rules": "rejection", "traces": ["@harvest"],
                 "where": "labels.score IS NULL AND quality > 0.1"},
        "page": {"do": "report", "where": {"long": "completion_tokens > 100"}},
    }  # fmt: skip
    check_stages(load(tmp_path, with_stages(sums, stub_model, **stages))[1])


def test_a_column_that_is_not_there_is_found(tmp_path: Path, sums: str, stub_model: str) -> None:
    config = pipeline(sums, stub_model)
    config["stages"]["problems"]["sources"][0]["columns"] = {"question": "prompt"}
    with pytest.raises(UsageError, match=r"stage problems: .* no column 'prompt'"):
        check_stages(load(tmp_path, config)[1])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stages.harvest.template=r2", "template: no template 'r2': choose one of"),
        ("stages.harvest.form=r2", "form: unknown form 'r2'"),
        ("stages.evaluate.template=r1-zer", "template: .* did you mean 'r1-zero'"),
    ],
)
def test_names_of_templates_and_forms_are_checked_with_the_config(
    tmp_path: Path, sums: str, stub_model: str, override: str, message: str
) -> None:
    with pytest.raises(UsageError, match=message.replace(" .* ", ".*")):
        load(tmp_path, pipeline(sums, stub_model), override)


def test_everything_wrong_is_listed_at_once_and_no_stage_runs(
    tmp_path: Path, sums: str, stub_model: str
) -> None:
    config, stages = load(
        tmp_path, pipeline(sums, stub_model), "engine.name=stubb", "stages.problems.held_out=0"
    )
    with Context(tmp_path / "wh") as context, pytest.raises(UsageError) as error:
        Pipeline(config, stages, context).run()
    assert str(error.value).count("\n  stage ") == 3  # harvest once, evaluate twice
    assert not (tmp_path / "wh" / "problems").exists()


def test_the_plan_is_printed_and_then_what_is_wrong_with_it(
    tmp_path: Path, sums: str, stub_model: str
) -> None:
    load(tmp_path, pipeline(sums, stub_model))
    command = [sys.executable, "-m", "curate.cli", "run", str(tmp_path / "p.yaml"), "--plan"]
    done = subprocess.run(
        [*command, "stages.problems.held_out=0"], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 2
    assert "0 of 3 stages are done" in done.stdout
    assert "stage evaluate: evaluates on held-out problems" in done.stderr
    assert "Traceback" not in done.stderr
