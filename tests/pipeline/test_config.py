"""An invalid pipeline is refused before anything runs, with the stage and the key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from curate.config import Config
from curate.errors import UsageError
from curate.job import Context, JobResult, Size, StageKind
from curate.pipeline.config import load_pipeline
from curate.pipeline.drawing import planned
from curate.pipeline.runner import Pipeline
from curate.pipeline.stages import KINDS, Done, stage_kind

PROBLEMS = {"do": "problems", "sources": [{"source": "files", "path": "p.jsonl"}]}
HARVEST = {"do": "generate", "recipe": "r1-zero", "model": "$model", "problems": "@problems"}
STAGES: dict[str, Any] = {
    "problems": PROBLEMS,
    "harvest": HARVEST,
    "judge": {"do": "annotate", "traces": ["@harvest"]},
    "corpus": {"do": "filter", "rules": "rejection", "traces": ["@harvest"], "after": ["judge"]},
    "sft": {"do": "sft", "model": "$model", "corpus": "@corpus"},
}


def load(tmp_path: Path, stages: dict[str, Any], *overrides: str) -> dict[str, Any]:
    path = tmp_path / "mine.yaml"
    path.write_text(json.dumps({"name": "mine", "vars": {"model": "m"}, "stages": stages}))
    return {stage.name: stage for stage in load_pipeline(path, overrides)[1]}


def refused(tmp_path: Path, changes: dict[str, Any], *overrides: str) -> str:
    """The message about the pipeline with some stages changed."""
    stages = {n: {**STAGES.get(n, {}), **changes.get(n, {})} for n in {**STAGES, **changes}}
    with pytest.raises(UsageError) as error:
        load(tmp_path, stages, *overrides)
    return str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sft": {"corpus": "@judge"}}, "stage sft: corpus: '@judge' is not a corpus: stage judge"),
        ({"sft": {"corpus": "@harvest"}}, "(do: generate) gives traces; these stages do: corpus"),
        ({"sft": {"model": "@corpus"}}, "stage sft: model: '@corpus' is not a model"),
        ({"judge": {"traces": ["@problems"]}}, "stage judge: traces: '@problems' is not a traces"),
        (
            {"sft": {"corpus": "@corpse"}},
            "no stage before it has that name; did you mean 'corpus'?",
        ),
        ({"judge": {"do": "anotate"}}, "'anotate' is none of problems, generate, import, annotate"),
        ({"judge": {"do": "anotate"}}, "report, loop, repeat; did you mean 'annotate'?"),
        ({"harvest": {"model": "$modle"}}, "no variable 'modle' in vars; there are model; did you"),
        ({"harvest": {"processes": 2}}, "stage harvest: processes: 2; give a number of ranks"),
        ({"corpus": {"rules": "rejecton"}}, "no rule set 'rejecton'"),
        ({"sft": {"epocs": 2}}, "stage sft: invalid config:\n  epocs: no such key; did you mean"),
    ],
)
def test_a_wrong_stage_is_refused_with_its_name(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    assert message in refused(tmp_path, changes)


def test_models_compared_must_be_in_the_table(tmp_path: Path) -> None:
    models = [{"label": "a", "model": "m"}, {"label": "b", "model": "@sft"}]
    stage = {"do": "evaluate", "problems": "@problems", "models": models, "compare": [["b", "c"]]}
    assert "no model has the label 'c'" in refused(tmp_path, {"evaluate": stage})


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("vars.modle=x", "no variable 'modle'; did you mean 'model'?"),
        ("stages.harvst.samples=4", "no stage 'harvst'; did you mean 'harvest'?"),
        ("stages.harvest.smaples=4", "stage harvest: invalid config:\n  smaples: no such key"),
        ("engin.name=stub", "engin: no such key; did you mean 'engine'?"),
        ("engine.nmae=stub", "engine: invalid config:\n  nmae: no such key"),
    ],
)
def test_a_typo_in_an_override_is_refused(tmp_path: Path, override: str, message: str) -> None:
    assert message in refused(tmp_path, {}, override)


def test_an_unknown_pipeline_is_named_with_the_closest_one() -> None:
    with pytest.raises(UsageError, match=r"no pipeline quikstart; did you mean 'quickstart'\?"):
        load_pipeline("quikstart")


def test_every_kind_of_stage_declares_itself() -> None:
    for name in KINDS:
        kind = stage_kind(name)
        assert kind.takes <= {"engine", "seed", "cluster", "label", "name"}, name
        assert kind.gives in {"problems", "traces", "corpus", "model", "page", None}, name
    assert [name for name in KINDS if stage_kind(name).ranks] == ["sft", "distill", "dpo", "grpo"]


def test_a_cluster_is_a_default_of_stages_and_changes_no_key(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    harvest = {**HARVEST, "model": "m", "limit": 5, "samples": 2}
    stages = {"problems": PROBLEMS, "harvest": harvest}
    path.write_text(json.dumps({"name": "mine", "stages": stages}))
    with Context(tmp_path / "wh") as context:
        keys = []
        overrides = {
            "cluster=null": 0,
            "cluster.workers=4": 4,
            "stages.harvest.cluster.workers=2": 2,
        }
        for override, workers in overrides.items():
            config, loaded = load_pipeline(path, [override])
            cluster = loaded[1].checked.cluster
            assert (cluster.workers if cluster else 0) == workers
            pipeline = Pipeline(config, loaded, context)
            done = {"problems": Done("k", "sums@1", {}, [], "", 0.0)}
            keys.append(pipeline.key(loaded[1], done))
            assert "cluster" not in loaded[1].checked.model_dump()
    assert len(set(keys)) == 1


class CountConfig(Config):
    traces: list[str]
    label: str = ""


def _count(config: CountConfig, context: Context) -> JobResult:
    return JobResult(summary=f"{config.label} counts {config.traces}", facts={"value": "3"})


COUNT = StageKind(
    config=lambda data, where: CountConfig(**data),
    run=_count,
    size=lambda config, rows: Size(f"{rows(config.traces[0])} traces"),
    takes=frozenset({"label"}),
)


def test_a_stage_of_your_own_is_named_by_its_path(tmp_path: Path) -> None:
    own = {"do": "tests.pipeline.test_config:COUNT", "traces": ["@harvest"]}
    path = tmp_path / "mine.yaml"
    harvest = {**HARVEST, "model": "m", "limit": 5, "samples": 2}
    stages = {"problems": PROBLEMS, "harvest": harvest, "count": own}
    path.write_text(json.dumps({"name": "mine", "stages": stages}))
    config, loaded = load_pipeline(path)
    with Context(tmp_path / "wh") as context:
        plan = planned(Pipeline(config, loaded, context))
    assert plan[-1].size == "10 traces"


def test_sizes_come_from_the_defaults_of_the_configs(tmp_path: Path) -> None:
    """Nothing here sets the sizes of GRPO, of the procedural source or of SFT: the plan takes the
    defaults.
    """
    sums = {"source": "procedural", "dataset": "chain_sum"}
    problems = {"do": "problems", "sources": [sums], "held_out": 0.1}
    grpo = {"do": "grpo", "model": "m", "problems": "@problems"}
    stages = {**STAGES, "problems": problems, "grpo": grpo}
    path = tmp_path / "mine.yaml"
    path.write_text(json.dumps({"name": "mine", "vars": {"model": "m"}, "stages": stages}))
    config, loaded = load_pipeline(path)
    with Context(tmp_path / "wh") as context:
        sizes = {p.name: (p.size, p.cost) for p in planned(Pipeline(config, loaded, context))}
    assert sizes["problems"] == ("100 problems", "")
    assert sizes["harvest"] == ("100 problems x 16 = 1,600 traces", f"≤ {1600 * 8192:,} tokens")
    assert sizes["judge"] == ("1,600 traces", "")
    assert sizes["sft"] == ("1 epoch of the kept traces", "")
    assert sizes["grpo"] == (
        "100 rounds of 16 x 8 = 12,800 rollouts",
        f"≤ {12800 * 256:,} tokens",
    )
