"""The shipped full-size pipelines are rehearsed from end to end, and broken copies are caught."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("transformers")

from curate.cli import app
from curate.rehearsal.costs import Assumptions
from curate.rehearsal.gpus import gpu_named
from curate.rehearsal.job import Rehearsal, rehearse
from curate.shipped import data_dir

pytestmark = pytest.mark.slow

CODE = [
    {
        "question": f"Write a function add(a, b) that returns a + b + {number}.",
        "tests": json.dumps(
            {"type": "call", "function": "add", "cases": [{"args": [1, 2], "output": 3 + number}]}
        ),
    }
    for number in range(8)
]
GENERAL = [
    {"question": f"Write greeting number {n} for a friend.", "completion": f"Hello, friend {n}!"}
    for n in range(8)
]


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """The user's own files that r1.yaml names, as overrides."""
    overrides = []
    for name, rows in (("code", CODE), ("general", GENERAL)):
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        overrides.append(f"vars.{name}={path}")
    return overrides


def rehearsed(path: str | Path, overrides: list[str], tmp_path: Path) -> Rehearsal:
    return rehearse(path, overrides, gpu_named("h100"), Assumptions(), tmp_path / "users")


def r1_with(tmp_path: Path, stages: list[str], **changes: Any) -> Path:
    """A copy of r1.yaml with some of its stages, and with changed values at dotted places."""
    data = yaml.safe_load((data_dir("pipelines") / "r1.yaml").read_text("utf-8"))
    data["stages"] = {name: data["stages"][name] for name in stages}
    for stage in data["stages"].values():
        stage.pop("after", None)
    for place, value in changes.items():
        group: Any = data
        *path, last = place.split("__")
        for key in path:
            group = group[int(key) if key.isdigit() else key.replace("_", "-")]
        group[last] = value
    copy = tmp_path / "broken.yaml"
    copy.write_text(yaml.safe_dump(data, sort_keys=False))
    return copy


def test_r1_zero_runs_from_end_to_end_and_has_a_bill(tmp_path: Path) -> None:
    result = rehearsed("r1-zero", [], tmp_path)
    assert result.faults == []
    lines = {line.stage: line for line in result.bills}
    grpo = lines["grpo"]
    # 650 rounds x 512 problems x 16 samples x 8,192 tokens
    assert grpo.sampled_tokens == 650 * 512 * 16 * 8192
    assert grpo.gpus == 8
    # 7.6 billion parameters: 16 bytes over 8 ranks, and the reference in fp32 on every rank
    memory = grpo.memory["training"]
    assert memory.optimizer == pytest.approx(8 * 7.616e9 / 8, rel=0.01)
    assert memory.reference == pytest.approx(4 * 7.616e9, rel=0.01)
    assert lines["harvest"].sampled_tokens == 4000 * 4 * 8192
    assert lines["evaluate"].requests == 2 * 30 * 65  # two models, AIME 2024, k = 64 and greedy
    assert result.fed == ["harvest"]
    assert not (tmp_path / "users").exists()
    assert all(name in result.replaced for name in ("engine auto", "model Qwen/Qwen2.5-7B"))


def test_r1_runs_from_end_to_end(tmp_path: Path, files: list[str]) -> None:
    result = rehearsed("r1", files, tmp_path)
    assert result.faults == []
    lines = {line.stage: line for line in result.bills}
    assert lines["r1"].served_tokens > 0  # the judge is a server, whose GPUs are not billed
    assert lines["sft"].trained_tokens > 0
    assert any("traces 'r1-zero'" in line for line in result.needed)
    assert {"teacher", "rework", "rejection"} <= set(result.fed)


def test_distill_runs_from_end_to_end(tmp_path: Path) -> None:
    result = rehearsed("distill", [], tmp_path)
    assert result.faults == []
    teacher = next(line for line in result.bills if line.stage == "teacher")
    assert teacher.models == ["deepseek-ai/DeepSeek-R1-Distill-Qwen-32B"]
    assert teacher.gpus == 8


def caught(result: Rehearsal, stage: str, *words: str) -> bool:
    lines = [line for line in result.faults if line.startswith(f"stage {stage}: ")]
    return any(all(word in line for word in words) for line in lines)


def test_a_missing_column_is_caught(tmp_path: Path, files: list[str]) -> None:
    broken = r1_with(
        tmp_path, ["problems"], stages__problems__sources__0__columns={"question": "prompt"}
    )
    result = rehearsed(broken, files, tmp_path)
    assert caught(result, "problems", "no column 'prompt'", "columns: {question: problem"), (
        result.faults
    )


def test_choices_that_no_prompt_shows_are_caught(tmp_path: Path, files: list[str]) -> None:
    broken = r1_with(tmp_path, ["problems"], stages__problems__sources__6__show_choices=False)
    result = rehearsed(broken, files, tmp_path)
    assert caught(result, "problems", "do not show their choices", "show_choices: true")


COLD = ["problems", "solutions", "annotate-cold", "cold-start", "cold-sft", "reasoning"]
ONLY_SOLUTIONS = {
    "stages__annotate_cold__traces": ["@solutions"],
    "stages__cold_start__traces": ["@solutions"],
}


def test_tags_that_the_corpus_lost_are_caught(tmp_path: Path, files: list[str]) -> None:
    plain = {"output.form": "plain"}
    broken = r1_with(tmp_path, COLD, **ONLY_SOLUTIONS, stages__cold_start__set=plain)
    result = rehearsed(broken, files, tmp_path)
    assert caught(result, "reasoning", "</think>", "stage cold-sft learns from", "output.form"), (
        result.faults
    )


def test_a_contradictory_rule_is_caught_and_later_stages_still_run(
    tmp_path: Path, files: list[str]
) -> None:
    rules = yaml.safe_load((data_dir("pipelines") / "rules" / "cold-start.yaml").read_text("utf-8"))
    rules["rules"].append(
        {"name": "long", "keep": "recipe = 'cold-strat'", "reason": "a name with a typo"}
    )
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(rules))
    broken = r1_with(
        tmp_path, COLD[:5], **ONLY_SOLUTIONS, stages__cold_start__rules=str(tmp_path / "own.yaml")
    )
    result = rehearsed(broken, files, tmp_path)
    assert caught(result, "cold-start", "'long'", "never be true", "recipe is cold-start"), (
        result.faults
    )
    assert not any("cold-sft" in line for line in result.open)


def test_a_filter_of_traces_that_nothing_judged_is_caught(tmp_path: Path, files: list[str]) -> None:
    stages = [name for name in COLD[:4] if name != "annotate-cold"]
    broken = r1_with(tmp_path, stages, stages__cold_start__traces=["@solutions"])
    result = rehearsed(broken, files, tmp_path)
    assert caught(result, "cold-start", "reads verdicts", "do: annotate"), result.faults


def test_a_context_that_is_too_short_is_caught(tmp_path: Path, files: list[str]) -> None:
    broken = r1_with(
        tmp_path, ["problems", "teacher"], stages__teacher__engine={"max_model_len": 8192}
    )
    result = rehearsed(broken, files, tmp_path)
    assert caught(result, "teacher", "max_tokens=8,192", "Set engine.max_model_len="), result.faults


def test_a_batch_that_does_not_fit_is_caught(tmp_path: Path, files: list[str]) -> None:
    compute = {"precision": "bf16", "micro_batch_tokens": 262_144}
    broken = r1_with(tmp_path, COLD[:5], **ONLY_SOLUTIONS, stages__cold_sft__compute=compute)
    result = rehearsed(broken, files, tmp_path)
    assert caught(result, "cold-sft", "activations", "micro_batch_tokens"), result.faults


def test_the_command_prints_json_and_exits_with_2_for_a_fault(
    tmp_path: Path, files: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    broken = r1_with(tmp_path, ["problems"], stages__problems__sources__6__show_choices=False)
    command = ["run", str(broken), *files, "--rehearse", "--json", "-w", str(tmp_path / "users")]
    code = app(command, standalone_mode=False)
    content = json.loads(capsys.readouterr().out)
    assert code == 2
    assert content["faults"]
    assert content["gpu"]["name"] == "h100"
    assert [line["stage"] for line in content["stages"]] == ["problems"]
