"""A pipeline skips finished stages, resumes after a kill, and ends in the same model either
way.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from curate.errors import UsageError
from curate.job import Context
from curate.pipeline.config import load_pipeline
from curate.pipeline.drawing import draw, planned
from curate.pipeline.runner import Pipeline
from curate.warehouse.schemas import data_dir
from tests import kills


def small(sums: str, model: str) -> dict:
    """Every kind of stage, on a tiny model with random weights."""
    sampling = {"max_tokens": 12}
    return {
        "name": "small",
        "engine": {"name": "transformers", "max_model_len": 1024},
        "stages": {
            "problems": {
                "do": "problems",
                "sources": [{"source": "files", "path": sums, "verifier": "math"}],
                "held_out": 0.2,
            },
            "harvest": {
                "do": "generate",
                "recipe": "r1-zero",
                "model": model,
                "problems": "@problems",
                "limit": 6,
                "samples": 2,
                "sampling": sampling,
            },
            "solutions": {
                "do": "generate",
                "recipe": "cold-start",
                "source": "solutions",
                "template": "r1-zero",
                "problems": "@problems",
            },
            "annotate": {"do": "annotate", "traces": ["@harvest", "@solutions"]},
            "cold-start": {
                "do": "filter",
                "rules": "cold-start",
                "traces": ["@harvest", "@solutions"],
                "after": ["annotate"],
            },
            "sft": {
                "do": "sft",
                "model": model,
                "corpus": "@cold-start",
                "batch_size": 8,
                "checkpoint": {"every": 1},
            },
            "grpo": {
                "do": "grpo",
                "model": "@sft",
                "problems": "@problems",
                "steps": 2,
                "prompts": 2,
                "samples": 2,
                "sampling": sampling,
                "checkpoint": {"every": 1},
            },
            "rejection": {
                "do": "generate",
                "recipe": "rejection",
                "model": "@grpo",
                "problems": "@problems",
                "limit": 4,
                "samples": 2,
                "sampling": sampling,
            },
            "evaluate": {
                "do": "evaluate",
                "problems": "@problems",
                "samples": 2,
                "sampling": sampling,
                "models": [{"label": "base", "model": model}, {"label": "GRPO", "model": "@grpo"}],
            },
        },
    }


@pytest.fixture
def tiny(tmp_path: Path) -> str:
    from curate.engines.testing.tiny import make_tiny_model

    make_tiny_model(tmp_path / "tiny", seed=1)
    return str(tmp_path / "tiny")


def write(tmp_path: Path, config: dict) -> str:
    path = tmp_path / "pipeline.yaml"
    path.write_text(json.dumps(config))
    return str(path)


def run(path: str, root: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "curate.cli", "run", path, "-w", str(root)]
    return subprocess.run(command, capture_output=True, text=True, timeout=280)


@pytest.mark.slow
def test_kill_in_every_stage_then_the_same_end_then_nothing_to_do(tmp_path, sums, tiny):
    """Each stage is killed once, at a random moment. `python -m tests.kills r1-small FOLDER` does
    so to a recipe.
    """
    config = small(sums, tiny)
    config["stages"]["grpo"]["rewards"] = {"tests.kills:letters": 1.0}
    path = write(tmp_path, config)
    counts = kills.kill_in_every_stage(path, tmp_path, seed=1)
    assert (
        min(
            counts[t]
            for t in ("traces", "verdicts", "rollouts", "corpora", "models", "evaluations")
        )
        > 0
    )
    last, again = (run(path, tmp_path / "killed") for _ in range(2))
    assert "nothing to do: 9 stages done before" in again.stderr
    assert again.stdout == last.stdout  # the table is printed again


@pytest.mark.slow
def test_only_changed_stages_and_their_successors_run_again(tmp_path, sums, tiny):
    config = small(sums, tiny)
    for stage in ("sft", "grpo", "rejection", "evaluate"):
        del config["stages"][stage]
    root = tmp_path / "wh"
    assert run(write(tmp_path, config), root).returncode == 0
    config["stages"]["harvest"]["samples"] = 3
    changed = run(write(tmp_path, config), root)
    assert "[1/5] problems: done before" in changed.stderr
    assert "18 traces (6 new)" in changed.stderr
    assert "[3/5] solutions: done before" in changed.stderr
    assert "[4/5] annotate: 6 traces annotated" in changed.stderr
    # a missing output is made again
    shutil.rmtree(next((root / "corpora").glob("cold-start/*")))
    assert "1 stage run, 4 skipped" in run(write(tmp_path, config), root).stderr


def test_the_plan_shows_stages_and_runs_none(tmp_path, sums, stub_model):
    config, stages = load_pipeline(write(tmp_path, small(sums, stub_model)))
    with Context(tmp_path / "wh") as context:
        rows = planned(Pipeline(config, stages, context))
    assert [(r.name, r.state) for r in rows[:2]] == [
        ("problems", "to run"),
        ("harvest", "waits for problems"),
    ]
    sizes = {r.name: (r.size, r.cost) for r in rows}
    assert sizes["harvest"] == ("6 problems x 2 = 12 traces", "≤ 144 tokens")
    assert sizes["grpo"] == ("2 rounds of 2 x 2 = 8 rollouts", "≤ 96 tokens")
    assert "← problems, grpo" in draw(config.name, config.description, rows)
    assert not (tmp_path / "wh").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {
                "harvest": {
                    "do": "generate",
                    "recipe": "r1-zero",
                    "model": "m",
                    "problems": "@later",
                }
            },
            "needs 'later'",
        ),
        ({"harvest": {"do": "nothing"}}, "do: 'nothing' is none of"),
    ],
)
def test_a_wrong_pipeline_is_refused_before_it_runs(tmp_path, change, message):
    with pytest.raises(UsageError, match=message):
        load_pipeline(write(tmp_path, {"name": "x", "stages": change}))


def test_a_wrong_key_of_a_stage_is_named_before_any_stage_runs(tmp_path, sums, stub_model):
    config = small(sums, stub_model)
    config["stages"]["grpo"]["stepz"] = 3
    done = run(write(tmp_path, config), tmp_path / "wh")
    assert done.returncode == 2
    assert "stage grpo: invalid config" in done.stderr
    assert "stepz: no such key" in done.stderr
    assert "[1/9]" not in done.stderr


def test_variables_are_filled_into_every_stage_that_names_them(tmp_path, sums, stub_model):
    config = {**small(sums, "$model"), "vars": {"model": stub_model}}
    stages = {s.name: s.config for s in load_pipeline(write(tmp_path, config))[1]}
    assert (
        stages["harvest"]["model"]
        == stages["sft"]["model"]
        == stages["evaluate"]["models"][0]["model"]
        == stub_model
    )
    other = {
        s.name: s.config for s in load_pipeline(write(tmp_path, config), ["vars.model=other"])[1]
    }
    assert other["evaluate"]["models"][0]["model"] == "other"
    with pytest.raises(UsageError, match="no variable 'model' in vars; there are none"):
        load_pipeline(write(tmp_path, small(sums, "$model")))


def test_shipped_pipelines_are_valid_and_found_by_name():
    config, stages = load_pipeline("quickstart")
    assert config.name == "quickstart"
    assert {s.do for s in stages} == {
        "problems",
        "generate",
        "annotate",
        "filter",
        "sft",
        "grpo",
        "evaluate",
    }
    assert len(config.queries) == 3


SHIPPED = sorted(path.stem for path in data_dir("pipelines").glob("*.yaml"))


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_pipeline_opens_with_its_command_and_can_be_planned(name, tmp_path):
    modeline, first = (data_dir("pipelines") / f"{name}.yaml").read_text().splitlines()[:2]
    assert modeline.startswith("# yaml-language-server: ")
    assert re.match(rf"# curate run (pipelines/)?{re.escape(name)}\b", first)
    config, stages = load_pipeline(name)
    assert config.name == name
    with Context(tmp_path / "wh") as context:
        rows = planned(Pipeline(config, stages, context))
    assert [r.name for r in rows] == [s.name for s in stages]
    assert {s.do for s in stages} >= {"problems", "generate", "annotate", "grpo", "evaluate"}


# An untrained base is never right: rules that would keep nothing are replaced by all.
TWO = ["prompts=2", "samples=2"]
ONE_STEP = {
    "r1-zero-small": [
        *("vars.steps=1", "vars.prompts=2", "vars.samples=2", "vars.held_out=2", "vars.k=2"),
        *("stages.harvest.limit=2", "stages.report.traces=2"),
    ],
    "r1-small": [
        *(
            "stages.rework.rework.where=null",
            "stages.best.rules=unfiltered",
            "stages.rejection.limit=2",
        ),
        *(
            "stages.harvest.limit=2",
            "stages.harvest.samples=2",
            "stages.rework.limit=1",
            "stages.solutions.limit=8",
        ),
        *(
            f"stages.{stage}.{key}"
            for stage in ("reasoning", "r1", "r1-open")
            for key in ("steps=1", *TWO)
        ),
        *("stages.evaluate.limit=2", "stages.evaluate.samples=2"),
    ],
    "distill-small": [
        *("stages.corpus.rules=unfiltered", "stages.samples.limit=2", "stages.samples.samples=2"),
        *(
            f"stages.{stage}.{key}"
            for stage in ("teacher", "student-rl")
            for key in ("steps=1", *TWO)
        ),
        *(
            "stages.evaluate.limit=2",
            "stages.evaluate.samples=2",
            "stages.solutions.limit=8",
            "vars.student_steps=1",
        ),
    ],
    "findings": [
        *("vars.rounds=1", "vars.student_rounds=1", "vars.held_out=2", "vars.k=2", "vars.size=4"),
        *("stages.teach.stages.student-rl-long.steps=2", "stages.solutions.limit=8"),
        *("stages.harvest.limit=4", "stages.harvest.samples=2", "vars.samples=2"),
        *("stages.teach.stages.lessons.limit=2", "stages.report.traces=2"),
        "stages.teach.stages.lesson-corpus.rules=unfiltered",
        *(f"stages.{stage}.seeds=[0]" for stage in ("rl", "teach", "filters")),
        *(
            f"stages.{stage}.prompts=2"
            for stage in (
                *(f"rl.stages.{name}" for name in ("r1-zero", "language", "cold-grpo")),
                *(f"teach.stages.{name}" for name in ("student-rl", "student-rl-long")),
            )
        ),
        *(
            f"stages.filters.stages.{name}-corpus.{change}"
            for name in ("filtered", "any-answer", "any-form", "any-language", "any-text")
            for change in ("rules=unfiltered", "without=[]")
        ),
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ONE_STEP)
def test_one_step_of_every_stage_of_the_small_recipes(name, tmp_path):
    from curate.engines.testing.tiny import make_tiny_model

    writer = make_tiny_model(tmp_path / "writer", max_len=4096)
    overrides = [*ONE_STEP[name], "vars.base_steps=1", "vars.least=0"]
    overrides += ["vars.max_tokens=8"] if name != "findings" else []
    overrides += [f"vars.rewriter={writer}"] if name == "r1-small" else []
    config, stages = load_pipeline(shrunk(name, tmp_path), overrides)
    with Context(tmp_path / "wh") as context:
        line = Pipeline(config, stages, context)
        done = line.run()
        assert list(done) == [s.name for s in stages]
        assert all(p.state == "done" for p in planned(line))
        kinds = dict(context.warehouse.sql("SELECT name, kind FROM models").iter_rows())
        wanted = {
            s.config.get("name", s.name): s.do for s in stages if s.do in ("base", "sft", "grpo")
        }
        assert wanted.items() <= kinds.items()
        for stage in stages:
            if stage.do in ("base", "sft", "grpo"):
                assert "## Made from" in (Path(done[stage.name].value) / "README.md").read_text()
    assert (tmp_path / "wh" / "report.html").stat().st_size > 10_000


def shrunk(name: str, folder: Path) -> str:
    """The shipped pipeline with few problems; an override cannot reach into the list of sources."""
    text = (data_dir("pipelines") / f"{name}.yaml").read_text()
    text, count = re.subn(r"\bsize: (700|1000)\b", "size: 40", text)
    assert count
    path = folder / f"{name}.yaml"
    path.write_text(text)
    return str(path)


def loop(rounds: int) -> dict:
    return {
        "name": "again",
        "vars": {"samples": 2},
        "stages": {
            "problems": {"do": "problems", "sources": [{"source": "files", "path": "x.jsonl"}]},
            "loop": {
                "do": "loop",
                "rounds": rounds,
                "carry": {"model": {"first": "start", "then": "tune"}},
                "stages": {
                    "sample": {
                        "do": "generate",
                        "recipe": "rejection",
                        "model": "$model",
                        "problems": "@problems",
                        "samples": "$samples",
                        "seed": "$round",
                    },
                    "pick": {
                        "do": "filter",
                        "rules": "rejection",
                        "traces": ["@sample"],
                        "after": ["sample"],
                    },
                    "tune": {"do": "sft", "model": "start", "corpus": "@pick"},
                },
            },
            "evaluate": {
                "do": "evaluate",
                "problems": "@problems",
                "models": [{"label": "last", "model": "@loop"}],
            },
        },
    }


def test_a_loop_passes_the_output_of_a_round_to_the_next(tmp_path):
    _, stages = load_pipeline(write(tmp_path, loop(2)))
    by_name = {s.name: s for s in stages}
    assert list(by_name) == [
        "problems",
        *(f"loop-{turn}-{name}" for turn in (1, 2) for name in ("sample", "pick", "tune")),
        "evaluate",
    ]
    first, second = by_name["loop-1-sample"], by_name["loop-2-sample"]
    assert (first.config["model"], first.config["seed"], first.config["samples"]) == ("start", 1, 2)
    assert second.config["model"] == "@loop-1-tune"
    assert second.needs == ("loop-1-tune", "problems")
    assert by_name["loop-2-pick"].needs == ("loop-2-sample",)
    assert by_name["evaluate"].config["models"][0]["model"] == "@loop-2-tune"


def test_a_loop_cannot_carry_a_stage_that_it_does_not_have(tmp_path):
    config = loop(1)
    config["stages"]["loop"]["carry"]["model"]["then"] = "nothing"
    with pytest.raises(UsageError, match="carry names 'nothing', which is not a stage of the loop"):
        load_pipeline(write(tmp_path, config))
