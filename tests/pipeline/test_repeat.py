"""Stages that are repeated with several training seeds: names, references, and mistakes."""

import pytest
import yaml

from curate.errors import UsageError
from curate.pipeline.config import load_pipeline, unroll

STAGES = {
    "sft": {"do": "sft", "name": "sft", "model": "base", "corpus": "c"},
    "seeds": {
        "do": "repeat",
        "seeds": [3, 5],
        "stages": {
            "rl": {"do": "grpo", "name": "rl", "model": "@sft", "problems": "sums"},
            "sample": {
                "do": "generate",
                "recipe": "r1-zero",
                "model": "@rl",
                "problems": "sums",
                "limit": "$limit",
                "seed": "$seed",
            },
        },
    },
    "judge": {"do": "annotate", "traces": ["@sample"], "after": ["sample"]},
    "evaluate": {
        "do": "evaluate",
        "problems": "sums",
        "models": [{"label": "sft", "model": "@sft"}, {"label": "rl", "model": "@rl"}],
    },
}


def test_stages_are_named_by_seed_and_refer_to_the_same_seed():
    flat = unroll(STAGES, "file")
    assert list(flat) == ["sft", "rl-3", "sample-3", "rl-5", "sample-5", "judge", "evaluate"]
    assert flat["rl-5"] == STAGES["seeds"]["stages"]["rl"] | {"seed": 5, "name": "rl-5"}
    assert flat["sample-3"]["model"] == "@rl-3"
    assert flat["sample-3"]["seed"] == 3
    assert flat["sample-3"]["limit"] == "$limit"  # a variable of the pipeline


def test_after_a_repeat_a_name_means_all_seeds():
    flat = unroll(STAGES, "file")
    assert flat["evaluate"]["models"][0]["model"] == "@sft"
    assert flat["evaluate"]["models"][1]["model"] == ["@rl-3", "@rl-5"]
    assert flat["judge"]["traces"] == ["@sample-3", "@sample-5"]
    assert flat["judge"]["after"] == ["sample-3", "sample-5"]


def test_the_whole_pipeline_is_checked(tmp_path):
    path = tmp_path / "p.yaml"
    path.write_text(
        yaml.safe_dump({"name": "p", "vars": {"limit": 4}, "stages": STAGES}, sort_keys=False)
    )
    _, stages = load_pipeline(path)
    evaluation = stages[-1]
    assert evaluation.needs == ("sft", "rl-3", "rl-5")
    assert evaluation.checked.models[1].model == ["@rl-3", "@rl-5"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seeds": [1, 1]}, "a seed occurs twice"),
        ({"seeds": []}, "seeds"),
        ({"seed": [1]}, "seed"),
    ],
)
def test_mistakes_name_the_stage(change, message):
    stages = {"again": {"do": "repeat", "stages": {"a": {"do": "report"}}, "seeds": [0]} | change}
    with pytest.raises(UsageError, match=f"(?s)stage again.*{message}"):
        unroll(stages, "file")
