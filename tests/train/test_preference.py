"""GRPO over several kinds of problems: rules, and a judge's preference for open questions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from curate.engines.models import weights_hash
from curate.errors import UsageError
from curate.job import Context
from curate.train import job as jobs
from curate.warehouse import Warehouse

JUDGE = (
    "tests.verify.models.test_preference:Longer"  # a script, no model: it prefers the longer answer
)


def data(model: Path, folder: Path, **options: Any) -> dict[str, Any]:
    rows = [{"question": f"say {c}", "reference": c, "verifier": "exact"} for c in "ab"]
    rows += [{"question": f"write of {c}"} for c in "ab"]
    path = folder / "both.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    judge = {"model": str(model), "engine": {"name": JUDGE}} | options
    return {
        **{
            "model": str(model),
            "template": "plain",
            "form": "plain",
            "steps": 2,
            "prompts": 4,
            "samples": 4,
        },
        "problems": {"sources": [{"source": "files", "path": str(path)}], "held_out": 0},
        "rewards": {"accuracy": 1.0, "preference": {"weight": 1.0, "options": judge}},
        "sampling": {"max_tokens": 12, "stop": list("aeiou")},
        "engine": {"name": "transformers", "dtype": "float32"},
        "compute": {"precision": "fp32", "device": "cpu"},
        "optim": {"lr": 1e-3},
    }


def test_preference_trains_on_open_questions_alongside_problems_with_rules(
    tiny_dir: Path, tmp_path: Path
) -> None:
    wh = Warehouse(tmp_path / "wh")
    with Context(wh) as context:
        result = jobs.run_grpo(data(tiny_dir, tmp_path), context, "grpo")
    rows = wh.sql(
        "SELECT p.verifier IS NULL AS open, r.reward, r.advantage, "
        "r.components['accuracy'] AS accuracy, r.components['preference'] AS preference, "
        "length(t.answer) AS long, t.finish_reason, r.policy_step "
        "FROM rollouts r JOIN traces t USING (trace_id) "
        "JOIN problems p ON p.problem_id = r.problem_id"
    )
    open_, rules = rows.filter("open"), rows.filter(~rows["open"])
    assert (open_.height, rules.height) == (16, 16)
    assert rules["preference"].null_count() == open_["accuracy"].null_count() == 16
    assert open_["preference"].is_between(0, 1).all()
    assert open_["reward"].equals(open_["preference"])
    assert (open_["advantage"] != 0).any()
    assert (open_.filter(open_["finish_reason"] == "length")["preference"] == 0).all()
    ended = open_.filter(open_["finish_reason"] == "stop").sort("long")
    assert ended["preference"][0] < ended["preference"][-1]
    assert weights_hash(Path(str(result.model))) != weights_hash(tiny_dir)


def test_a_wrong_name_of_a_judge_is_reported_before_sampling(
    tiny_dir: Path, tmp_path: Path
) -> None:
    with Context(Warehouse(tmp_path / "wh")) as context:
        with pytest.raises(UsageError, match=r"rewards: preference: .*'temper'"):
            jobs.run_grpo(data(tiny_dir, tmp_path, temper=1), context, "grpo")
        assert not context.warehouse.versions("traces")
