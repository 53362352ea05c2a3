"""JSON Schemas of configs: the shipped files fit them and point to them; mistakes do not fit."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from curate.errors import UsageError
from curate.pipeline.json_schema import NAMES, STAGES, schema, text
from curate.pipeline.stages import KINDS
from curate.shipped import data_dir

PIPELINES = sorted(data_dir("pipelines").glob("*.yaml"))
RULES = sorted((data_dir("pipelines") / "rules").glob("*.yaml"))


def faults(name: str, value: Any) -> list[str]:
    jsonschema = pytest.importorskip("jsonschema")
    validator = jsonschema.Draft202012Validator(schema(name))
    return [error.message for error in validator.iter_errors(value)]


@pytest.mark.parametrize("path", [*PIPELINES, *RULES], ids=lambda path: path.stem)
def test_a_shipped_file_fits_its_schema_and_points_to_it(path: Path) -> None:
    name = "rules" if path.parent.name == "rules" else "pipeline"
    content = path.read_text()
    first = content.splitlines()[0]
    mark = "# yaml-language-server: $schema="
    assert first.startswith(mark)
    target = (path.parent / first.removeprefix(mark)).resolve()
    assert target == (data_dir("schemas") / "json" / f"{name}.json").resolve()
    assert faults(name, yaml.safe_load(content)) == []


@pytest.mark.parametrize("name", ["pipeline", "rules"])
def test_the_files_in_schemas_are_those_that_the_command_writes(name: str) -> None:
    stored = data_dir("schemas") / "json" / f"{name}.json"
    assert stored.read_text() == text(name), f"run: curate schema {name} --out {stored}"


def test_every_kind_of_stage_has_a_schema() -> None:
    assert set(STAGES) == set(KINDS)
    for name in NAMES:
        json.dumps(schema(name))
    with pytest.raises(UsageError, match=r"no schema 'pipelin'.*did you mean 'pipeline'"):
        schema("pipelin")


@pytest.mark.parametrize(
    ("change", "fits"),
    [
        ({"samples": 4}, True),
        ({"samples": "$samples"}, True),
        ({"problems": "@problems"}, True),
        ({"samples": "four"}, False),
        ({"smaples": 4}, False),
        ({"sampling": {"max_tokens": "$max_tokens"}}, True),
        ({"sampling": {"max_token": 3}}, False),
        ({"after": ["a"], "processes": 2}, True),
    ],
)
def test_a_stage_is_checked_by_its_kind(change: dict[str, Any], fits: bool) -> None:
    stage = {"do": "generate", "recipe": "r1-zero", "model": "m", "problems": "p", **change}
    loop = {"do": "loop", "rounds": 1, "carry": {"model": {"first": "m", "then": "a"}},
            "stages": {"a": stage}}  # fmt: skip
    for one in (stage, loop):
        assert (faults("pipeline", {"name": "x", "stages": {"a": one}}) == []) is fits


def test_the_command_prints_and_writes(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "curate", "schema", "generate"]
    printed = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert json.loads(printed.stdout)["title"] == "GenerateConfig"
    written = subprocess.run(
        [*command, "--out", str(tmp_path / "g.json")], capture_output=True, text=True, timeout=60
    )
    assert "yaml-language-server" in written.stdout
    assert (tmp_path / "g.json").read_text() == printed.stdout
